package torture

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// row is one event as the table holds it, read by plain SQL.
type row struct {
	Slot        int
	Seq         int64
	Stream      string
	Version     int64
	ID          string
	Type        string
	Correlation string
	Value       []byte
	// Event is what the client sent for it.
	Event newEvent
}

func readLog(ctx context.Context, conn *pgx.Conn) ([]*row, error) {
	rows, err := conn.Query(ctx, `
		select e.slot, e.seq, e.stream, e.version, e.id::text, e.type, coalesce(e.correlation_id, ''), e.value
		from refold.event e join refold.category c on c.id = e.category
		where c.name = 'Account' order by e.slot, e.seq`)
	if err != nil {
		return nil, err
	}
	var events []*row
	var e row
	_, err = pgx.ForEachRow(rows, []any{&e.Slot, &e.Seq, &e.Stream, &e.Version, &e.ID, &e.Type, &e.Correlation, &e.Value}, func() error {
		copied := e
		copied.Value = bytes.Clone(e.Value)
		events = append(events, &copied)
		return nil
	})
	return events, err
}

// checkLog checks invariants 1 to 5: the table against the clients' history.
func checkLog(h *history, events []*row) (broken []string) {
	report := func(format string, args ...any) { broken = append(broken, fmt.Sprintf(format, args...)) }
	byRequest := checkDense(events, report)
	for _, r := range h.requests {
		got := byRequest[r.ID]
		delete(byRequest, r.ID)
		r.check(got, report)
	}
	for id := range byRequest {
		report("2: events of the request %q, which nobody made", id)
	}
	checkConflicts(h, report)
	return broken
}

// checkDense checks 3 and groups the events by request, in order of version.
func checkDense(events []*row, report func(string, ...any)) map[string][]*row {
	streams, byRequest := make(map[string][]*row), make(map[string][]*row)
	slots := make(map[int]int64)
	for _, e := range events { // by slot and seq, so by version within a stream too
		if slots[e.Slot]++; e.Seq != slots[e.Slot] {
			report("3: slot %d goes from seq %d to %d", e.Slot, slots[e.Slot]-1, e.Seq)
			slots[e.Slot] = e.Seq
		}
		streams[e.Stream] = append(streams[e.Stream], e)
		if n := int64(len(streams[e.Stream])); e.Version != n {
			report("3: stream %s has version %d where %d belongs", e.Stream, e.Version, n)
		}
		byRequest[e.Correlation] = append(byRequest[e.Correlation], e)
	}
	return byRequest
}

// check checks 1, 2 and the expected version of one request, and gives its
// events to the rows.
func (r *request) check(got []*row, report func(string, ...any)) {
	switch {
	case len(got) == 0 && r.Outcome == ok:
		report("1: %s was acknowledged and is not in the log", r.ID)
	case len(got) > 0 && (r.Outcome == failed || r.Outcome == conflict):
		report("2: %s was refused and is in the log", r.ID)
	}
	if len(got) == 0 {
		return
	}
	if len(got) != len(r.Events) {
		report("1: %s has %d events, of which %d are in the log", r.ID, len(r.Events), len(got))
		return
	}
	for i, e := range got {
		e.Event = r.Events[i]
		position := "Account/" + strconv.Itoa(e.Slot) + "/" + strconv.FormatInt(e.Seq, 10)
		if e.Stream != r.Stream || e.Type != r.Events[i].Type || e.Version != got[0].Version+int64(i) {
			report("3: event %d of %s stands as %s %s version %d", i, r.ID, e.Stream, e.Type, e.Version)
		}
		if r.Outcome == ok && (r.Positions[i] != position || r.IDs[i] != e.ID || r.FirstVersion != got[0].Version) {
			report("1: %s was acknowledged at %s version %d and stands at %s version %d", r.ID, r.Positions[i], r.FirstVersion, position, got[0].Version)
		}
	}
	if r.Expected >= 0 && got[0].Version != r.Expected+1 {
		report("4: %s expected version %d and was appended at %d", r.ID, r.Expected, got[0].Version)
	}
}

// checkConflicts checks the rest of 4: a conflict names a version that existed
// during the call: not below what was acknowledged before it, not above what
// had been asked for by its end, and not the expected one.
func checkConflicts(h *history, report func(string, ...any)) {
	asked := make(map[string][]*request)
	for _, r := range h.requests {
		asked[r.Stream] = append(asked[r.Stream], r)
	}
	for _, r := range h.requests {
		if r.Outcome != conflict {
			continue
		}
		var most int64
		for _, x := range asked[r.Stream] {
			if x.Invoked.Before(r.Returned) && x.Outcome != conflict {
				most += int64(len(x.Events))
			}
		}
		if r.Actual < r.acked || r.Actual > most || r.Actual == r.Expected {
			report("4: %s expected %d and was told %d, with %d acknowledged before and at most %d possible", r.ID, r.Expected, r.Actual, r.acked, most)
		}
	}
}

// topicCounts is what a topic holds.
type topicCounts struct{ records, duplicates, foreign int }

// checkTopic checks invariant 6: the first occurrences of a slot's events are
// the slot's events, in order, in one partition; a duplicate is byte-identical.
func checkTopic(ctx context.Context, brokers []string, topic string, events []*row) (counts topicCounts, broken []string, err error) {
	bySlot := make(map[int][]*row)
	for _, e := range events {
		bySlot[e.Slot] = append(bySlot[e.Slot], e)
	}
	seen := make(map[int]int)
	err = eachRecord(ctx, brokers, topic, func(r *kgo.Record) {
		counts.records++
		slot, seq, ours := place(r)
		if !ours {
			counts.foreign++
			return
		}
		list := bySlot[slot]
		switch {
		case int(r.Partition) != slot%8:
			broken = append(broken, fmt.Sprintf("6: slot %d in partition %d", slot, r.Partition))
		case seq > len(list) || header(r, "ce_id") != list[seq-1].ID || string(r.Key) != list[seq-1].Stream || !bytes.Equal(r.Value, list[seq-1].Value):
			broken = append(broken, fmt.Sprintf("6: the record %d/%d is not the event %d/%d", r.Partition, r.Offset, slot, seq))
		case seq == seen[slot]+1:
			seen[slot]++
		case seq <= seen[slot]:
			counts.duplicates++
		default:
			broken = append(broken, fmt.Sprintf("6: slot %d goes from seq %d to %d at %d/%d", slot, seen[slot], seq, r.Partition, r.Offset))
			seen[slot] = seq
		}
	})
	for slot, list := range bySlot {
		if seen[slot] != len(list) {
			broken = append(broken, fmt.Sprintf("6: slot %d has %d events and %d records", slot, len(list), seen[slot]))
		}
	}
	return counts, broken, err
}

func place(r *kgo.Record) (slot, seq int, ours bool) {
	slot, err1 := strconv.Atoi(header(r, "ce_slot"))
	seq, err2 := strconv.Atoi(header(r, "ce_seq"))
	return slot, seq, err1 == nil && err2 == nil && seq > 0 && header(r, "ce_id") != ""
}

func header(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// eachRecord reads a topic from its beginning to its present end.
func eachRecord(ctx context.Context, brokers []string, topic string, each func(*kgo.Record)) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err != nil {
		return fmt.Errorf("listing the end offsets of %s: %w", topic, err)
	}
	left := make(map[int32]int64)
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return fmt.Errorf("reading %s: %w", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if end, open := left[r.Partition]; open {
				each(r)
				if r.Offset+1 >= end {
					delete(left, r.Partition)
				}
			}
		})
	}
	return nil
}
