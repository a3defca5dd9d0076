package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/registry"
)

// VerifyReport is what [Verify] counted.
type VerifyReport struct {
	Projection string `json:"projection"`
	Version    int    `json:"version"`
	Events     int64  `json:"events"`
	Parked     int64  `json:"parked"`  // events that are parked
	Skipped    int64  `json:"skipped"` // events that somebody decided to skip
	Rows       int64  `json:"rows"`
	// Filling says that fields are being filled into the rows, which were left out:
	// compared is what queries show.
	Filling bool `json:"filling,omitempty"`
}

// ErrDiffers is wrapped by what [Verify] finds.
var ErrDiffers = errors.New("rows differ from the log")

// Verify folds the log from the event table, up to the progress of the version
// in one snapshot and without what it has parked or skipped, and compares every
// row, of a version whose fields are being filled in so far as queries show it. The
// error names the first difference and wraps [ErrDiffers].
func Verify(ctx context.Context, pool *pgxpool.Pool, schemas registry.Schemas, feed Feed) (VerifyReport, error) {
	v := verification{feed: feed, schemas: schemas, reader: eventstore.NewReader(pool), made: newFolded(feed.Plan), parked: make(map[position]bool), skipped: make(map[position]bool),
		report: VerifyReport{Projection: feed.Version.Projection, Version: feed.Version.Number, Filling: feed.Served != nil}}
	v.shown = v.made
	if feed.Served != nil {
		v.shown = newFolded(feed.Served)
	}
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		heads, err := v.heads(ctx, tx)
		if err != nil {
			return err
		}
		if err := v.positions(ctx, tx, v.parked, `select category, slot, seq from refold.parked_event where projection = $1 and version = $2`, feed.Version.Number); err != nil {
			return err
		}
		if err := v.positions(ctx, tx, v.skipped, `select d.category, d.slot, d.seq from refold.decision d join refold.category c on c.name = d.category
			join refold.event e on e.category = c.id and e.slot = d.slot and e.seq = d.seq and e.id = d.id where d.projection = $1`); err != nil {
			return err
		}
		for _, c := range feed.Categories {
			for slot, head := range heads[c.Name] {
				if err := v.foldSlot(ctx, c, int(slot), head); err != nil {
					return err
				}
			}
		}
		return v.compare(ctx, tx)
	})
	return v.report, err
}

type verification struct {
	feed    Feed
	schemas registry.Schemas
	reader  *eventstore.Reader
	made    *folded // by the plan that the version is fed by
	shown   *folded // by the plan that queries go by: the same one, but while fields are filled
	parked  map[position]bool
	skipped map[position]bool
	report  VerifyReport
}

// folded are the rows that a plan makes of the log.
type folded struct {
	plan   *projection.Plan
	folder *projection.Folder
	rows   map[string]*projection.Row
}

func newFolded(plan *projection.Plan) *folded {
	return &folded{plan: plan, folder: plan.NewFolder(), rows: make(map[string]*projection.Row)}
}

// event folds one event; it may be of no use to the plan.
func (f *folded) event(e *event.Event, schema *avro.Schema) error {
	if !f.plan.Uses(e.Category, e.Type) {
		return nil
	}
	outcome, err := f.folder.Begin(e, schema)
	if err != nil || outcome == projection.Filtered {
		return err
	}
	for key := range f.folder.Keys() {
		if f.rows[string(key)] == nil {
			f.rows[string(key)] = f.plan.NewRow()
		}
		err = errors.Join(err, f.folder.Apply(f.rows[string(key)]))
	}
	return err
}

// holds tells whether the plan makes a row.
func (f *folded) holds(key string) bool { return f.rows[key] != nil && f.rows[key].Exists() }

type position struct {
	category string
	place
}

// positions reads positions of events into a set.
func (v *verification) positions(ctx context.Context, tx pgx.Tx, into map[position]bool, sql string, args ...any) error {
	rows, err := tx.Query(ctx, sql, append([]any{v.feed.Version.Projection}, args...)...)
	if err != nil {
		return err
	}
	var p position
	var slot int16
	_, err = pgx.ForEachRow(rows, []any{&p.category, &slot, &p.seq}, func() error {
		p.slot = int(slot)
		into[p] = true
		return nil
	})
	return err
}

func (v *verification) heads(ctx context.Context, tx pgx.Tx) (map[string]map[int16]int64, error) {
	rows, err := tx.Query(ctx, `select category, slots, seqs from refold.progress where projection = $1 and version = $2`, v.feed.Version.Projection, v.feed.Version.Number)
	if err != nil {
		return nil, err
	}
	heads := make(map[string]map[int16]int64)
	var category string
	var slots []int16
	var seqs []int64
	_, err = pgx.ForEachRow(rows, []any{&category, &slots, &seqs}, func() error {
		if heads[category] == nil {
			heads[category] = make(map[int16]int64)
		}
		for i, slot := range slots {
			heads[category][slot] = seqs[i]
		}
		return nil
	})
	return heads, err
}

func (v *verification) foldSlot(ctx context.Context, c eventstore.Category, slot int, head int64) error {
	for after := int64(0); after < head; {
		events, err := v.reader.SlotEvents(ctx, c, slot, after, 2000)
		if err != nil {
			return err
		}
		if len(events) == 0 {
			return fmt.Errorf("%w: the version has applied %s/%d/%d, the log ends at seq %d", ErrDiffers, c.Name, slot, head, after)
		}
		for i := range events {
			if events[i].Seq > head {
				return nil
			}
			if err := v.fold(ctx, &events[i]); err != nil {
				return err
			}
			after = events[i].Seq
		}
	}
	return nil
}

func (v *verification) fold(ctx context.Context, e *event.Event) error {
	v.report.Events++
	switch at := (position{e.Category, place{e.Slot, e.Seq}}); {
	case v.parked[at]:
		v.report.Parked++
		return nil
	case v.skipped[at]:
		v.report.Skipped++
		return nil
	}
	if !v.feed.Plan.Uses(e.Category, e.Type) {
		return nil
	}
	writer, err := registry.WriterIfKnown(ctx, v.schemas, e.Value)
	if err != nil {
		return err
	}
	err = v.made.event(e, writer)
	if err == nil && v.shown != v.made {
		err = v.shown.event(e, writer)
	}
	if err != nil {
		return fmt.Errorf("%w: event %s at %s is neither applied nor parked nor skipped: %w", ErrDiffers, e.ID, e.Position(), err)
	}
	return nil
}

func (v *verification) compare(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `select key, data, state, (data - $1::text[])::text from `+v.feed.Version.Table()+` order by key`, v.hidden())
	if err != nil {
		return err
	}
	var key, got string
	var data, state []byte
	_, err = pgx.ForEachRow(rows, []any{&key, &data, &state, &got}, func() error {
		if !v.shown.holds(key) && v.made.holds(key) {
			return nil // only fields make it that are not shown yet
		}
		v.report.Rows++
		if !v.shown.holds(key) {
			return fmt.Errorf("%w: the row %q should not exist", ErrDiffers, key)
		}
		if _, err := v.feed.Plan.LoadRow(data, state); err != nil {
			return fmt.Errorf("%w: the row %q: %w", ErrDiffers, key, err)
		}
		if want := string(v.shown.rows[key].AppendData(nil)); want != got {
			return fmt.Errorf("%w: the row %q is %s, the log makes it %s", ErrDiffers, key, got, want)
		}
		delete(v.shown.rows, key)
		return nil
	})
	if err != nil {
		return err
	}
	for key := range v.shown.rows {
		if v.shown.holds(key) {
			return fmt.Errorf("%w: the row %q is missing", ErrDiffers, key)
		}
	}
	return nil
}

// hidden returns the fields that are being filled.
func (v *verification) hidden() []string {
	names := []string{}
	for _, f := range v.made.plan.Fields() {
		if !slices.ContainsFunc(v.shown.plan.Fields(), func(g projection.Field) bool { return g.Name == f.Name }) {
			names = append(names, f.Name)
		}
	}
	return names
}
