package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/projection"
)

// batch is what one transaction does.
type batch struct {
	from, to int64     // offsets
	seqs     sequencer // after it
	changed  bool      // slots stop or go on
	events   []taken
	bytes    int
	rows     map[string]*rowState // met in this batch
	touched  []*rowState
	counts   counts
	last     event.Time // recorded time of the newest event

	parkedStreams []parkedEvent
	parkedEvents  []parkedEvent
	newlyParked   map[string]bool
	answer        *answer // of a request
}

// taken is an event of a batch.
type taken struct {
	event  event.Event
	source source
	schema *avro.Schema // nil when it was not looked up, or there is none
}

// source is where an event was taken from.
type source uint8

const (
	fromTopic source = iota
	fromTable        // its record is missing
	fromParked
)

// rowState is a row that a batch has met.
type rowState struct {
	key     string
	row     *projection.Row
	touched bool
}

// counts are what a batch adds to those of the progress row.
//
// Two sums hold at any moment: the seqs are applied + filtered + parked + skipped
// (every event is one of these), and the next offset is that + duplicates +
// foreign + held - filled (so is every record).
type counts struct{ applied, duplicates, filtered, parked, skipped, foreign, filled, held int64 }

// maxBatchBytes closes a batch whose values are large.
const maxBatchBytes = 4 << 20

func (w *worker) newBatch() *batch {
	return &batch{from: w.next, to: w.next, seqs: w.seqs.clone(), events: w.spare[:0], rows: make(map[string]*rowState, 256)}
}

func (w *worker) full(b *batch) bool { return len(b.events) >= w.limit || b.bytes >= maxBatchBytes }

// add adds an event that is next in its slot.
func (b *batch) add(e *event.Event, from source) {
	b.seqs.advance(e)
	b.events = append(b.events, taken{event: *e, source: from})
	b.bytes += len(e.Value)
	if e.Recorded > b.last {
		b.last = e.Recorded
	}
	if from == fromTable {
		b.counts.filled++
	}
}

// gather sorts records into a batch until it is full, and returns how many of
// them it has dealt with.
func (w *worker) gather(ctx context.Context, b *batch, records []*kgo.Record) (n int, err error) {
	var e event.Event
	for n < len(records) && !w.full(b) {
		record := records[n]
		if record.Offset < b.to { // it came with a fetch that began before
			n++
			continue
		}
		if kafka.Parse(record, w.category.Name, w.category.Slots, w.category.Partitions, &e) != nil {
			b.counts.foreign++ // anybody may write to a topic
			w.suspect()
		} else if len(w.lost) > 0 && w.lost.Lost(e.Slot, e.Seq, record.Offset) {
			b.counts.foreign++
		} else if done, err := w.sort(ctx, b, &e, record.Offset); err != nil || !done {
			return n, err
		}
		b.to = record.Offset + 1
		n++
	}
	return n, nil
}

// sort takes an event in by the sequence of its slot. It is not done when the
// batch is full before the events that are missing in front of it are all there.
func (w *worker) sort(ctx context.Context, b *batch, e *event.Event, offset int64) (done bool, err error) {
	if w.engine.faults.noSequenceCheck {
		b.add(e, fromTopic)
		return true, nil
	}
	placed := b.seqs.place(e)
	if len(b.seqs.stopped) > 0 && placed != duplicate {
		if s := b.seqs.stop(e.Slot); s != nil {
			if e.Seq > s.Held {
				s.Held, b.changed = e.Seq, true
			}
			b.counts.held++
			return true, nil
		}
	}
	switch placed {
	case duplicate:
		b.counts.duplicates++
	case next:
		b.add(e, fromTopic)
	case diverged:
		w.stopSlot(b, e, offset, divergence(&b.seqs, e))
	case gap:
		return w.fill(ctx, b, e, offset)
	}
	return true, nil
}

func divergence(s *sequencer, e *event.Event) string {
	if e.Seq == s.seq(e.Slot) {
		return fmt.Sprintf("the topic has event %s at %s, the one applied there is %s: the log has lost its tail", e.ID, e.Position(), s.last(e.Slot))
	}
	return fmt.Sprintf("event %s at %s follows event %s, the last one applied is %s: the log has lost its tail", e.ID, e.Position(), e.PrevID, s.last(e.Slot))
}

// fill takes the events that are missing in front of e from the event table, as
// many as the batch has room for, and then e itself. Where they are not there,
// the slot stops.
func (w *worker) fill(ctx context.Context, b *batch, e *event.Event, offset int64) (done bool, err error) {
	why := ""
	reading := w.readSlot(e.Slot, b.seqs.seq(e.Slot))
	for b.seqs.place(e) == gap && why == "" {
		if w.full(b) {
			return false, nil
		}
		missing, err := reading.next(ctx, w.limit-len(b.events))
		if err != nil {
			if ctx.Err() != nil {
				return false, err
			}
			why = "events are missing from the topic, and the event table cannot be read: " + err.Error()
			break
		}
		if len(missing) == 0 {
			why = "events are missing from the topic and from the event table"
		}
		for i := range missing {
			m := &missing[i]
			if m.Seq >= e.Seq {
				break
			}
			if at := b.seqs.place(m); at == gap {
				why = "events are missing from the topic and from the event table"
			} else if at == diverged {
				why = divergence(&b.seqs, m)
			} else if at == next {
				b.add(m, fromTable)
				continue
			}
			break
		}
		if why == "" && len(missing) > 0 && missing[len(missing)-1].Seq >= e.Seq && b.seqs.place(e) == gap {
			why = "events are missing from the topic and from the event table"
		}
	}
	switch {
	case why != "":
		w.stopSlot(b, e, offset, why)
	case b.seqs.place(e) == next:
		b.add(e, fromTopic)
	default:
		w.stopSlot(b, e, offset, divergence(&b.seqs, e))
	}
	return true, nil
}

// stopSlot stops the slot of an event that cannot be applied next.
func (w *worker) stopSlot(b *batch, e *event.Event, offset int64, why string) {
	b.changed = true
	b.counts.held++
	s := StoppedSlot{Slot: e.Slot, FirstMissing: b.seqs.seq(e.Slot) + 1, Offset: offset, Held: e.Seq, Reason: why, Since: time.Now().UTC().Truncate(time.Microsecond)}
	b.seqs.stopped = append(b.seqs.stopped, s)
	v := w.feed.Version
	w.engine.log.Error("a slot stands", "projection", v.Projection, "version", v.Number, "category", w.category.Name, "slot", s.Slot, "first_missing", s.FirstMissing,
		"topic", w.category.Topic, "partition", w.partition, "offset", offset, "err", why)
}

// slotReader reads a slot of the event table in pieces that fit the memory,
// whatever the size of its events.
type slotReader struct {
	worker *worker
	slot   int
	after  int64
	piece  int
}

func (w *worker) readSlot(slot int, after int64) *slotReader {
	return &slotReader{worker: w, slot: slot, after: after, piece: 32}
}

// next returns what follows, at most limit events; none at the end of the slot.
func (r *slotReader) next(ctx context.Context, limit int) ([]event.Event, error) {
	list, err := r.worker.engine.events.SlotEvents(ctx, r.worker.category, r.slot, r.after, max(1, min(limit, r.piece)))
	if err != nil || len(list) == 0 {
		return nil, err
	}
	r.after = list[len(list)-1].Seq
	size := 0
	for i := range list {
		size += len(list[i].Value)
	}
	r.piece = min(1000, max(1, maxBatchBytes/4*len(list)/max(size, 1)))
	return list, nil
}
