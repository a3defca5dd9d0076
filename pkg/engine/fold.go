package engine

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/registry"
)

// fold folds the batch's events into rows.
func (w *worker) fold(ctx context.Context, b *batch) error {
	if err := w.load(ctx, b); err != nil {
		return err
	}
	for i := range b.events {
		if err := w.foldOne(ctx, b, &b.events[i]); err != nil {
			return err
		}
		if b.answer != nil && b.answer.failed != "" {
			break
		}
	}
	return nil
}

// load looks up schemas, and the rows that the batch concerns: those that are not
// in the cache are read. Nobody else writes them while the claim holds, and if it
// does not the commit is refused. Shared rows are never read.
func (w *worker) load(ctx context.Context, b *batch) error {
	plan := w.feed.Plan
	var keys []*rowState
	for i := range b.events {
		t := &b.events[i]
		if !plan.Uses(t.event.Category, t.event.Type) {
			continue
		}
		var err error
		if t.schema, err = registry.WriterIfKnown(ctx, w.engine.schemas, t.event.Value); err != nil {
			return err
		}
		if plan.Shared() {
			continue
		}
		if key := t.event.Stream; b.rows[key] == nil {
			r := &rowState{key: strings.Clone(key)} // the event aliases its record
			b.rows[r.key] = r
			if t.event.Version > 1 || w.feed.Version.Completing { // else nothing has made a row of the stream yet
				keys = append(keys, r)
			}
		}
	}
	if missing := w.rows.lookUp(keys); len(missing) > 0 {
		lacking, err := w.lacking(ctx, missing)
		if err != nil {
			return err
		}
		if err := w.read(ctx, b, missing); err != nil {
			return err
		}
		return w.complete(ctx, b, lacking)
	}
	return nil
}

// read reads rows from the table.
func (w *worker) read(ctx context.Context, b *batch, keys []string) error {
	rows, err := w.conn.Query(ctx, `select key, data, state from `+w.feed.Version.Table()+` where key = any($1)`, keys)
	if err != nil {
		return fmt.Errorf("reading rows: %w", err)
	}
	var key string
	var data, state []byte
	_, err = pgx.ForEachRow(rows, []any{&key, &data, &state}, func() (err error) {
		b.rows[key].row, err = w.feed.Plan.LoadRow(data, state)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading rows: %w", err)
	}
	return nil
}

// foldOne folds one event, or parks it.
func (w *worker) foldOne(ctx context.Context, b *batch, t *taken) error {
	e := &t.event
	switch {
	case len(w.skipped) > 0 && w.skipped.Skips(e):
		b.counts.skipped++
		return nil
	case t.source != fromParked && (w.parked[e.Stream] || b.newlyParked[e.Stream]):
		b.park(e, "")
		return nil
	}
	why := w.apply(b, t)
	if why == "" {
		return nil
	}
	if t.source == fromTopic {
		original, err := w.original(ctx, e)
		if err != nil {
			return err
		}
		if original != nil {
			*t = *original // the bytes of the topic are damaged, those of the event table are the event
			if why = w.apply(b, t); why == "" {
				w.engine.log.Warn("a record is damaged; its event was taken from the event table", "topic", w.category.Topic, "partition", w.partition, "event_id", e.ID, "position", e.Position().String())
				return nil
			}
		}
	}
	if b.answer != nil {
		b.answer.failed, b.answer.at = why, e.Seq
		return nil
	}
	w.parkFirst(b, e, why)
	return nil
}

// apply folds an event into its rows and says why that is impossible; empty when
// it was done.
func (w *worker) apply(b *batch, t *taken) (why string) {
	e, plan := &t.event, w.feed.Plan
	if !plan.Uses(e.Category, e.Type) {
		b.counts.filtered++
		return ""
	}
	if len(w.poison) > 0 {
		if r, refused := w.poison[e.ID]; refused {
			return r.why
		}
	}
	outcome, err := w.folder.Begin(e, t.schema)
	if err == nil && outcome == projection.Filtered {
		b.counts.filtered++
		return ""
	}
	if err != nil {
		return err.Error()
	}
	for key := range w.folder.Keys() {
		r := b.row(plan, key)
		if err := w.folder.Apply(r.row); err != nil { // of a row of one stream, which is the only one then
			return err.Error()
		}
		b.touch(r)
	}
	b.counts.applied++
	return ""
}

// row returns the batch's row of a key, which need not exist.
func (b *batch) row(plan *projection.Plan, key []byte) *rowState {
	r := b.rows[string(key)]
	if r == nil {
		r = &rowState{key: string(key)}
		b.rows[r.key] = r
	}
	if r.row == nil {
		r.row = plan.NewRow()
	}
	return r
}

func (b *batch) touch(r *rowState) {
	if !r.touched {
		r.touched = true
		b.touched = append(b.touched, r)
	}
}
