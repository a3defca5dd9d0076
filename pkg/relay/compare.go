package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
)

// compareTo has the records from the known end up to target compared with the
// event table. Nothing is sent to the partition meanwhile; afterwards its end is
// resume.
func (s *session) compareTo(p *partition, target, resume int64) {
	p.phase, p.target, p.resume = comparing, target, resume
}

// tail reads the parts of partitions that are being compared.
type tail struct {
	client *kgo.Client
	of     map[*partition]bool
}

func (t *tail) close() { t.client.Close() }

// Bounds of one look at the tail, so that leases are renewed in between.
const (
	tailRecords = 2000
	tailPause   = 20 * time.Millisecond
)

// compareTails goes on with all comparisons for a moment.
func (s *session) compareTails(ctx context.Context) error {
	for _, p := range s.owned {
		if p.phase == comparing && p.end >= p.target {
			s.compared(p)
		} else if p.phase == comparing {
			if err := s.joinTail(p); err != nil {
				return err
			}
		}
	}
	if s.tail == nil {
		return nil
	}
	polling, cancel := context.WithTimeout(ctx, tailPause)
	fetches := s.tail.client.PollRecords(polling, tailRecords)
	cancel()
	var failure error
	fetches.EachError(func(topic string, number int32, err error) { failure = s.tailError(topic, int(number), err) })
	if failure != nil {
		return failure
	}
	read := make(map[*partition][]*kgo.Record)
	fetches.EachRecord(func(r *kgo.Record) {
		if p := s.inTail(r.Topic, int(r.Partition)); p != nil && r.Offset >= p.end && r.Offset < p.target {
			read[p] = append(read[p], r)
		}
	})
	for p, records := range read {
		if err := s.compare(ctx, p, records); err != nil {
			return err
		}
		if last := records[len(records)-1].Offset + 1; last >= p.target {
			s.compared(p)
		}
	}
	return nil
}

// compared ends a comparison: what is sent next comes behind what the topic holds.
func (s *session) compared(p *partition) {
	s.leaveTail(p)
	p.end, p.phase, p.dirty = max(p.end, p.resume), flowing, true
	s.reset(p)
}

func (s *session) joinTail(p *partition) error {
	if s.tail == nil {
		options, err := s.cfg.Kafka.Options()
		if err != nil {
			return err
		}
		// Control records count as well, so that every offset is met.
		client, err := kgo.NewClient(append(options, kgo.ConsumeResetOffset(kgo.NoResetOffset()), kgo.KeepControlRecords(), kgo.FetchMaxWait(250*time.Millisecond))...)
		if err != nil {
			return fmt.Errorf("making a client to compare topics: %w", err)
		}
		s.tail = &tail{client: client, of: make(map[*partition]bool)}
	}
	if !s.tail.of[p] {
		s.tail.of[p] = true
		s.tail.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{p.topic: {int32(p.number): kgo.NewOffset().At(p.end)}})
	}
	return nil
}

// leaveTail stops reading a partition. The client goes with the last one.
func (s *session) leaveTail(p *partition) {
	if s.tail == nil || !s.tail.of[p] {
		return
	}
	delete(s.tail.of, p)
	s.tail.client.RemoveConsumePartitions(map[string][]int32{p.topic: {int32(p.number)}})
	if len(s.tail.of) == 0 {
		s.tail.close()
		s.tail = nil
	}
}

func (s *session) inTail(topic string, number int) *partition {
	if s.tail == nil {
		return nil
	}
	for p := range s.tail.of {
		if p.topic == topic && p.number == number {
			return p
		}
	}
	return nil
}

// tailError sorts out what kept a partition from being read. Most comes and goes
// with the brokers; an offset that is gone has the topic looked at anew.
func (s *session) tailError(topic string, number int, err error) error {
	p := s.inTail(topic, number)
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), p == nil:
		return nil
	case errors.Is(err, kerr.OffsetOutOfRange), errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.UnknownTopicOrPartition):
		s.settle(p, time.Now().Add(500*time.Millisecond))
		return nil
	case kerr.IsRetriable(err):
		return nil
	default:
		s.log.Warn("comparing the end of a partition", "topic", topic, "partition", number, "err", err)
		s.settle(p, time.Now().Add(500*time.Millisecond))
		return nil
	}
}

// compare compares records with the event table and takes note of the events
// that the topic holds already. A divergence stops its slot, unless an operator has
// decided about it: what a repair names was sent again, or will be, behind it.
func (s *session) compare(ctx context.Context, p *partition, records []*kgo.Record) error {
	events := make([]event.Event, len(records))
	ours := make([]bool, len(records))
	places := make([]slotSeq, 0, len(records))
	for i, record := range records {
		if !record.Attrs.IsControl() && kafka.Parse(record, p.name, p.slotCount, p.partitions, &events[i]) == nil {
			ours[i] = true
			places = append(places, slotSeq{events[i].Slot, events[i].Seq})
		}
	}
	table, err := s.idsAt(ctx, p.category, places)
	if err != nil {
		return err
	}
	repaired, err := Repairs(ctx, s.conn, eventstore.Category{ID: p.category, Topic: p.topic, Generation: p.generation}, p.topicID)
	if err != nil {
		return err
	}
	for i, record := range records {
		e := &events[i]
		if ours[i] && !repaired.Lost(e.Slot, e.Seq, record.Offset) {
			s.compareEvent(p, e, table[slotSeq{e.Slot, e.Seq}], record.Offset)
		} else if !ours[i] && !record.Attrs.IsControl() {
			p.foreign++
			s.metrics.foreign.WithLabelValues(p.topic).Inc()
		}
		p.end, p.dirty = record.Offset+1, true
	}
	return nil
}

func (s *session) compareEvent(p *partition, e *event.Event, inTable event.ID, offset int64) {
	at := &p.slots[p.index(e.Slot)]
	switch {
	case at.stop != nil && at.stop.kind == diverged:
	case inTable != e.ID:
		s.stopSlot(p, at, &stop{kind: diverged, seq: e.Seq, event: inTable, topicEvent: e.ID, offset: offset,
			reason: fmt.Sprintf("the record at offset %d of %s is event %s at %s, the event table has %s there: the database has lost events that were relayed", offset, p, e.ID, e.Position(), describe(inTable))})
	case e.Seq == at.acked.seq+1:
		at.acked = place{e.Seq, e.ID}
	}
}

func describe(id event.ID) string {
	if id.IsZero() {
		return "no event"
	}
	return "event " + id.String()
}

type slotSeq struct {
	slot int
	seq  int64
}

const idsSQL = `select * from (select u.slot, u.seq, (select e.id from refold.event e where e.category = $1 and e.slot = u.slot and e.seq = u.seq) id
	from unnest($2::smallint[], $3::bigint[]) u (slot, seq)) found where id is not null`

// idsAt returns the ids of the events at places of a category.
func (s *session) idsAt(ctx context.Context, category int16, places []slotSeq) (map[slotSeq]event.ID, error) {
	ids := make(map[slotSeq]event.ID, len(places))
	if len(places) == 0 {
		return ids, nil
	}
	slots, seqs := make([]int16, len(places)), make([]int64, len(places))
	for i, at := range places {
		slots[i], seqs[i] = int16(at.slot), at.seq
	}
	rows, err := s.conn.Query(ctx, idsSQL, category, slots, seqs)
	if err != nil {
		return nil, fmt.Errorf("reading the ids of events: %w", err)
	}
	var slot int16
	var seq int64
	var id [16]byte
	if _, err = pgx.ForEachRow(rows, []any{&slot, &seq, &id}, func() error {
		ids[slotSeq{int(slot), seq}] = id
		return nil
	}); err != nil {
		return nil, fmt.Errorf("reading the ids of events: %w", err)
	}
	return ids, nil
}

// checkPlaces compares the places that cursors name with the table: a cursor
// beyond its slot's head speaks of events that were lost.
func (s *session) checkPlaces(ctx context.Context, partitions []*partition) error {
	for _, p := range partitions {
		var places []slotSeq
		for i := range p.slots {
			if at := p.slots[i]; at.acked.seq > 0 {
				places = append(places, slotSeq{at.number, at.acked.seq})
			}
		}
		table, err := s.idsAt(ctx, p.category, places)
		if err != nil {
			return err
		}
		floors, err := s.floors(ctx, p.category)
		if err != nil {
			return err
		}
		for i := range p.slots {
			at := &p.slots[i]
			if at.acked.seq > floors[at.number] && table[slotSeq{at.number, at.acked.seq}] != at.acked.id {
				s.lost(p, at, at.acked, table[slotSeq{at.number, at.acked.seq}])
			}
		}
	}
	return nil
}

// floors returns, by slot, the last seq that was archived: such events are no
// longer in the event table.
func (s *session) floors(ctx context.Context, category int16) (map[int]int64, error) {
	rows, err := s.conn.Query(ctx, `select slot, floor from refold.slot where category = $1 and floor > 0`, category)
	if err != nil {
		return nil, fmt.Errorf("reading the floors of slots: %w", err)
	}
	floors := make(map[int]int64)
	var slot int16
	var floor int64
	if _, err := pgx.ForEachRow(rows, []any{&slot, &floor}, func() error { floors[int(slot)] = floor; return nil }); err != nil {
		return nil, fmt.Errorf("reading the floors of slots: %w", err)
	}
	return floors, nil
}

// lost stops a slot of which a relayed event is no longer in the table.
func (s *session) lost(p *partition, at *slot, relayed place, inTable event.ID) {
	if at.stop == nil || at.stop.kind != diverged {
		s.stopSlot(p, at, &stop{kind: diverged, seq: relayed.seq, event: inTable, topicEvent: relayed.id, offset: -1,
			reason: fmt.Sprintf("event %s was relayed at %s/%d/%d, the event table has %s there: the database has lost events that were relayed",
				relayed.id, p.name, at.number, relayed.seq, describe(inTable))})
	}
	// What was acknowledged since, or after the stop, may be lost too, and the
	// cursor of the whole partition would be refused for it.
	at.acked = at.kept
}
