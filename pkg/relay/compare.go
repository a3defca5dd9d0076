package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/kafka"
)

func (r *Relay) endOffset(ctx context.Context, p *partition) (int64, error) {
	ends, err := r.admin.ListEndOffsets(ctx, p.topic)
	if err != nil {
		return 0, fmt.Errorf("listing the end of %s: %w", p, err)
	}
	o, ok := ends.Lookup(p.topic, int32(p.number))
	if !ok || o.Err != nil {
		return 0, fmt.Errorf("listing the end of %s: %w", p, errors.Join(o.Err, kafka.ErrNoTopic))
	}
	return o.Offset, nil
}

// lookAtEnds compares what others have written to partitions on which nothing of
// ours is under way.
func (r *Relay) lookAtEnds(ctx context.Context) error {
	topics := make(map[string]bool)
	for _, p := range r.owned {
		topics[p.topic] = true
	}
	if len(topics) == 0 {
		return nil
	}
	names := make([]string, 0, len(topics))
	for name := range topics {
		names = append(names, name)
	}
	ends, err := r.admin.ListEndOffsets(ctx, names...)
	if err != nil && len(ends) == 0 {
		return fmt.Errorf("listing the ends of the topics: %w", err)
	}
	for _, p := range r.owned {
		o, ok := ends.Lookup(p.topic, int32(p.number))
		if !ok || o.Err != nil || p.stopped || p.pending > 0 {
			continue
		}
		if o.Offset < p.end {
			if err := r.alarm(ctx, p, fmt.Sprintf("the partition ends at offset %d and had %d records: it was truncated or recreated", o.Offset, p.end)); err != nil {
				return err
			}
		} else if o.Offset > p.end {
			if err := r.compareTo(ctx, p, o.Offset); err != nil {
				return err
			}
		}
	}
	return nil
}

// compareTo compares the records from the known end up to an offset with the
// event table. It stops the partition at a divergence.
func (r *Relay) compareTo(ctx context.Context, p *partition, to int64) error {
	if p.end >= to {
		return nil
	}
	options, err := r.cfg.Kafka.Options()
	if err != nil {
		return err
	}
	consumer, err := kgo.NewClient(append(options, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{p.topic: {int32(p.number): kgo.NewOffset().At(p.end)}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()))...)
	if err != nil {
		return err
	}
	defer consumer.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("reading the tail of the topic took too long"))
	defer cancel()
	for p.end < to && !p.stopped {
		fetches := consumer.PollRecords(ctx, 5000)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("comparing the tail of %s: %w", p, err)
		}
		var records []*kgo.Record
		fetches.EachRecord(func(record *kgo.Record) {
			if record.Offset < to {
				records = append(records, record)
			}
		})
		if err := r.compare(ctx, p, records); err != nil {
			return err
		}
		if records == nil && len(fetches.Records()) > 0 {
			p.end = to // the offsets between belong to no records (a transaction's markers)
		}
	}
	return nil
}

// compare compares records with the event table and takes note of the events
// that the topic holds already.
func (r *Relay) compare(ctx context.Context, p *partition, records []*kgo.Record) error {
	var slots []int16
	var seqs []int64
	events := make([]event.Event, len(records))
	ours := make([]bool, len(records))
	for i, record := range records {
		if kafka.Parse(record, p.name, p.slotCount, p.partitions, &events[i]) == nil {
			ours[i] = true
			slots, seqs = append(slots, int16(events[i].Slot)), append(seqs, events[i].Seq)
		}
	}
	table, err := r.idsAt(ctx, p, slots, seqs)
	if err != nil {
		return err
	}
	for i, record := range records {
		e := &events[i]
		switch {
		case !ours[i]:
			p.foreign++
			r.metrics.foreign.WithLabelValues(p.topic).Inc()
		case table[place{seq: e.Seq}.at(e.Slot)] != e.ID:
			return r.alarm(ctx, p, fmt.Sprintf("%v: the record at offset %d is event %s at %s, the event table has %s there",
				errDiverged, record.Offset, e.ID, e.Position(), describe(table[place{seq: e.Seq}.at(e.Slot)])))
		default:
			if at := p.index(e.Slot); e.Seq == p.acked[at].seq+1 {
				p.acked[at] = place{e.Seq, e.ID}
			}
		}
		p.end, p.dirty = record.Offset+1, true
	}
	return nil
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

func (p place) at(slot int) slotSeq { return slotSeq{slot, p.seq} }

// idsAt returns the ids of the events at positions of a category.
func (r *Relay) idsAt(ctx context.Context, p *partition, slots []int16, seqs []int64) (map[slotSeq]event.ID, error) {
	ids := make(map[slotSeq]event.ID, len(slots))
	if len(slots) == 0 {
		return ids, nil
	}
	rows, err := r.conn.Query(ctx, `select e.slot, e.seq, e.id from unnest($2::smallint[], $3::bigint[]) u (slot, seq)
		join refold.event e on e.category = $1 and e.slot = u.slot and e.seq = u.seq`, p.category, slots, seqs)
	if err != nil {
		return nil, fmt.Errorf("reading events of %s: %w", p, err)
	}
	var slot int16
	var seq int64
	var id [16]byte
	_, err = pgx.ForEachRow(rows, []any{&slot, &seq, &id}, func() error {
		ids[slotSeq{int(slot), seq}] = id
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading events of %s: %w", p, err)
	}
	return ids, nil
}
