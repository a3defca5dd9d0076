package engine

import (
	"context"
	"fmt"
	"time"
)

// Pauses between attempts to let a stopped slot go on.
const (
	healLeast = 500 * time.Millisecond
	healMost  = 30 * time.Second
)

// suspectAfter is how long after a record that could not be read the event table
// is asked whether it was one of ours.
const suspectAfter = 2 * time.Second

// suspect notes that a record could not be read. If it was one of ours, damaged,
// its event is missing without anything behind it that would show the gap.
func (w *worker) suspect() {
	if w.probeAt.IsZero() {
		w.probeAt = time.Now().Add(suspectAfter)
	}
}

// due returns how long it is until tend has something to do.
func (w *worker) due() (in time.Duration, any bool) {
	if len(w.seqs.stopped) > 0 {
		in, any = max(0, time.Until(w.healAt)), true
	}
	if !w.probeAt.IsZero() {
		if probe := max(0, time.Until(w.probeAt)); !any || probe < in {
			in, any = probe, true
		}
	}
	return in, any
}

// tend tries to let stopped slots go on, and looks for events of damaged records.
func (w *worker) tend(ctx context.Context) error {
	if !w.probeAt.IsZero() && !time.Now().Before(w.probeAt) {
		w.probeAt = time.Time{}
		for _, slot := range w.seqs.slots {
			if w.seqs.stop(int(slot)) == nil {
				if err := w.catchUp(ctx, int(slot)); err != nil {
					return err
				}
			}
		}
	}
	if len(w.seqs.stopped) == 0 || time.Now().Before(w.healAt) {
		return nil
	}
	for _, s := range w.seqs.clone().stopped {
		if err := w.catchUp(ctx, s.Slot); err != nil {
			return err
		}
	}
	if len(w.seqs.stopped) == 0 {
		w.healing.reset()
	}
	w.healAt = time.Now().Add(w.healing.next())
	return nil
}

// catchUp applies what the event table holds of a slot behind the last event
// applied. A stopped slot goes on once that reaches beyond all records that were
// passed over.
func (w *worker) catchUp(ctx context.Context, slot int) error {
	for ctx.Err() == nil && w.ctx.Err() == nil {
		b := w.newBatch()
		end, why, err := w.readOn(ctx, b, slot)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			end, why = true, "the event table cannot be read: "+err.Error()
		}
		if s := b.seqs.stop(slot); s != nil && end {
			switch last := b.seqs.seq(slot); {
			case why == "" && last >= s.Held:
				b.seqs.goOn(slot)
				b.changed = true
				v := w.feed.Version
				w.engine.log.Info("a slot goes on", "projection", v.Projection, "version", v.Number, "category", w.category.Name, "slot", slot, "seq", last)
			case why != "" && why != s.Reason || s.FirstMissing != last+1:
				if s.FirstMissing, b.changed = last+1, true; why != "" {
					s.Reason = why
				}
			}
		}
		if len(b.events) == 0 && !b.changed {
			return nil
		}
		done, err := w.settle(ctx, b)
		if err != nil {
			return err
		}
		if done && end {
			return nil
		}
	}
	return ctx.Err()
}

// readOn adds to a batch what follows in a slot of the event table. It is at the
// end when the table holds no more, or, for the reason why, nothing that could be
// applied.
func (w *worker) readOn(ctx context.Context, b *batch, slot int) (end bool, why string, err error) {
	last := b.seqs.seq(slot)
	reading := w.readSlot(slot, max(0, last-1)) // with the last one applied, to see that it is the same
	for first := last > 0; ; first = false {
		if w.full(b) {
			return false, "", nil
		}
		list, err := reading.next(ctx, w.limit-len(b.events)+1)
		if err != nil {
			return false, "", err
		}
		if len(list) == 0 {
			return true, "", nil
		}
		if first {
			if list[0].Seq == last && list[0].ID != b.seqs.last(slot) {
				return true, fmt.Sprintf("event %s was applied at %s, where the event table has %s: the log has lost its tail; a rebuild makes the rows anew",
					b.seqs.last(slot), list[0].Position(), list[0].ID), nil
			}
			if list[0].Seq == last {
				list = list[1:]
			}
		}
		for i := range list {
			switch b.seqs.place(&list[i]) {
			case next:
				b.add(&list[i], fromTable)
			case gap:
				return true, "events are missing from the topic and from the event table", nil
			case diverged:
				return true, divergence(&b.seqs, &list[i]), nil
			case duplicate:
			}
		}
	}
}
