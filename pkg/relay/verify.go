package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
)

// TopicReport is what [VerifyTopic] counted.
type TopicReport struct {
	Topic      string `json:"topic"`
	Records    int64  `json:"records"`
	Duplicates int64  `json:"duplicates"`
	Foreign    int64  `json:"foreign"`
	// Superseded events are of branches that the log has lost, and that [KeepLog]
	// has decided about.
	Superseded int64 `json:"superseded"`
}

// ErrBroken is wrapped by what [VerifyTopic] finds.
var ErrBroken = errors.New("the topic is broken")

// VerifyTopic reads the topic of a category and compares it with the log up to
// the heads at its start: the first occurrences of each slot's events are its
// events, in order, and a duplicate is the same event; what [KeepLog] left behind is
// counted and passed over. It waits up to settle for
// records that are still under way. The error names the first break and wraps
// [ErrBroken].
func VerifyTopic(ctx context.Context, pool *pgxpool.Pool, cfg kafka.Config, category eventstore.Category, settle time.Duration) (TopicReport, error) {
	v := verifier{category: category, report: TopicReport{Topic: category.Topic}, reader: eventstore.NewReader(pool), expected: make(map[int]*slotWalk)}
	var err error
	if v.heads, err = v.reader.Heads(ctx, category); err != nil {
		return v.report, err
	}
	options, err := cfg.Options()
	if err != nil {
		return v.report, err
	}
	client, err := kgo.NewClient(append(options, kgo.ConsumeTopics(category.Topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		return v.report, err
	}
	defer client.Close()
	topic, err := kafka.ReadTopic(ctx, kadm.NewClient(client), category.Topic)
	if err != nil {
		return v.report, err
	}
	if v.branches, err = Repairs(ctx, pool, category, topic.ID); err != nil {
		return v.report, err
	}
	err = v.walk(ctx, client, settle)
	return v.report, err
}

type verifier struct {
	category eventstore.Category
	reader   *eventstore.Reader
	report   TopicReport
	heads    []int64
	branches Branches
	expected map[int]*slotWalk
}

// slotWalk is how far a slot was compared.
type slotWalk struct {
	seq   int64
	ahead []event.Event // read from the log and not met in the topic
	ids   []event.ID    // met, by seq - 1
}

func (v *verifier) walk(ctx context.Context, client *kgo.Client, settle time.Duration) error {
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, v.category.Topic)
	if err != nil {
		return fmt.Errorf("listing the ends of %s: %w", v.category.Topic, err)
	}
	left := make(map[int32]int64)
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	deadline := time.Now().Add(settle)
	for len(left) > 0 || v.missing() != "" && time.Now().Before(deadline) {
		poll, cancel := context.WithTimeout(ctx, time.Until(deadline)+time.Minute)
		if len(left) == 0 {
			cancel()
			poll, cancel = context.WithDeadline(ctx, deadline)
		}
		fetches := client.PollFetches(poll)
		cancel()
		if err := fetches.Err(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("reading %s: %w", v.category.Topic, err)
		}
		for _, record := range fetches.Records() {
			if err := v.record(ctx, record); err != nil {
				return err
			}
			if end, open := left[record.Partition]; open && record.Offset+1 >= end {
				delete(left, record.Partition)
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if missing := v.missing(); missing != "" {
		return fmt.Errorf("%w: %s", ErrBroken, missing)
	}
	return nil
}

// missing says which event of the log the topic does not hold yet.
func (v *verifier) missing() string {
	for slot, head := range v.heads {
		seq := int64(0)
		if w := v.expected[slot]; w != nil {
			seq = w.seq
		}
		if seq < head {
			return fmt.Sprintf("%s ends at %s/%d/%d, the log at seq %d", v.category.Topic, v.category.Name, slot, seq, head)
		}
	}
	return ""
}

func (v *verifier) record(ctx context.Context, record *kgo.Record) error {
	v.report.Records++
	var e event.Event
	if kafka.Parse(record, v.category.Name, v.category.Slots, v.category.Partitions, &e) != nil {
		v.report.Foreign++
		return nil //nolint:nilerr // counted; anybody may write to a topic
	}
	if v.branches.Lost(e.Slot, e.Seq, record.Offset) {
		v.report.Superseded++
		return nil
	}
	w := v.expected[e.Slot]
	if w == nil {
		w = &slotWalk{}
		v.expected[e.Slot] = w
	}
	at := fmt.Sprintf("%s partition %d offset %d", v.category.Topic, record.Partition, record.Offset)
	switch {
	case e.Seq <= w.seq:
		v.report.Duplicates++
		if w.ids[e.Seq-1] != e.ID {
			return fmt.Errorf("%w: %s is event %s at %s, where event %s came first", ErrBroken, at, e.ID, e.Position(), w.ids[e.Seq-1])
		}
		return nil
	case e.Seq > w.seq+1:
		return fmt.Errorf("%w: %s is %s, the slot's next is seq %d", ErrBroken, at, e.Position(), w.seq+1)
	}
	if len(w.ahead) == 0 {
		var err error
		if w.ahead, err = v.reader.SlotEvents(ctx, v.category, e.Slot, w.seq, 1000); err != nil {
			return err
		}
	}
	if len(w.ahead) == 0 {
		return fmt.Errorf("%w: %s is event %s at %s, the log has no event there", ErrBroken, at, e.ID, e.Position())
	}
	want := w.ahead[0]
	w.ahead = w.ahead[1:]
	if e.ID != want.ID || e.Stream != want.Stream || string(e.Value) != string(want.Value) || e.PrevID != want.PrevID {
		return fmt.Errorf("%w: %s is event %s at %s, the log has event %s there", ErrBroken, at, e.ID, e.Position(), want.ID)
	}
	w.seq, w.ids = e.Seq, append(w.ids, e.ID)
	return nil
}
