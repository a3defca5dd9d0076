package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/registry"
)

// Querier is a connection, a pool or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// StreamFold folds single streams from the event table, for rows that one stream
// feeds. It is not safe for concurrent use.
type StreamFold struct {
	Projection string // whose decisions to skip events hold
	Plan       *projection.Plan
	Category   eventstore.Category
	Schemas    registry.Schemas

	folder *projection.Folder
}

// StreamRange is the part of a stream with seqs beyond After, up to UpTo.
type StreamRange struct {
	Stream      string
	After, UpTo int64
}

const streamsSQL = `select e.slot, e.seq, e.version, e.id, (extract(epoch from e.time) * 1000000)::bigint, (extract(epoch from e.recorded) * 1000000)::bigint, e.stream, e.type, e.value,
		coalesce(e.actor, ''), coalesce(e.correlation_id, ''), coalesce(e.causation_id, ''), coalesce(e.traceparent, '')
	from unnest($2::text[], $3::bigint[], $4::bigint[]) u (stream, after, upto) join refold.event e on e.category = $1 and e.stream = u.stream and e.seq > u.after and e.seq <= u.upto
	where not exists (select from refold.decision d where d.projection = $5 and d.category = $6 and d.slot = e.slot and d.seq = e.seq and d.id = e.id)
	order by e.stream, e.version`

// Into folds streams into rows, which begin as they are there, and returns how
// many events that were. A row that does not exist at the end of its range is
// in rows all the same. Of a stream with an event that cannot be applied nothing
// is folded from there on; poisoned says why.
func (f *StreamFold) Into(ctx context.Context, q Querier, ranges []StreamRange, rows map[string]*projection.Row) (n int, poisoned map[string]error, err error) {
	if f.folder == nil {
		f.folder = f.Plan.NewFolder()
	}
	streams, after, upTo := make([]string, len(ranges)), make([]int64, len(ranges)), make([]int64, len(ranges))
	for i, r := range ranges {
		streams[i], after[i], upTo[i] = r.Stream, r.After, r.UpTo
		if rows[r.Stream] == nil {
			rows[r.Stream] = f.Plan.NewRow()
		}
	}
	found, err := q.Query(ctx, streamsSQL, f.Category.ID, streams, after, upTo, f.Projection, f.Category.Name)
	if err != nil {
		return 0, nil, fmt.Errorf("reading streams of %s: %w", f.Category.Name, err)
	}
	e := event.Event{Category: f.Category.Name}
	var id [16]byte
	var slot int16
	var at, recorded int64
	_, err = pgx.ForEachRow(found, []any{&slot, &e.Seq, &e.Version, &id, &at, &recorded, &e.Stream, &e.Type, &e.Value,
		&e.Metadata.Actor, &e.Metadata.CorrelationID, &e.Metadata.CausationID, &e.Metadata.Traceparent}, func() error {
		e.Slot, e.ID, e.Time, e.Recorded = int(slot), id, event.Time(at), event.Time(recorded)
		n++
		if _, ended := poisoned[e.Stream]; ended {
			return nil
		}
		err := f.apply(ctx, &e, rows[e.Stream])
		if poison := (*projection.Poison)(nil); errors.As(err, &poison) {
			if poisoned == nil {
				poisoned = make(map[string]error)
			}
			poisoned[e.Stream] = fmt.Errorf("event %s at %s: %w", e.ID, e.Position(), poison)
			err = nil
		}
		return err
	})
	if err != nil {
		return n, poisoned, fmt.Errorf("folding streams of %s: %w", f.Category.Name, err)
	}
	return n, poisoned, nil
}

func (f *StreamFold) apply(ctx context.Context, e *event.Event, row *projection.Row) error {
	if !f.Plan.Uses(e.Category, e.Type) {
		return nil
	}
	writer, err := registry.WriterIfKnown(ctx, f.Schemas, e.Value)
	if err != nil {
		return err
	}
	if outcome, err := f.folder.Begin(e, writer); err != nil || outcome == projection.Filtered {
		return err
	}
	return f.folder.Apply(row)
}

// errPlan says that the version is fed by another plan than when this feeder began.
var errPlan = errors.New("the version is fed by another plan now")

// checkPlan refuses a claim for a plan that is not the one by which the version
// is to be fed. Whoever changes that raises the epochs of all owners in the same
// transaction, so a claim either sees it here or is fenced by it.
func (w *worker) checkPlan(ctx context.Context) error {
	v := w.feed.Version
	var plan string
	if err := w.conn.QueryRow(ctx, `select coalesce(next_plan, plan) from refold.projection_version where projection = $1 and version = $2`, v.Projection, v.Number).Scan(&plan); err != nil {
		return fmt.Errorf("reading the plan of %s version %d: %w", v.Projection, v.Number, err)
	}
	switch plan {
	case w.feed.Plan.Hash():
		return nil
	case v.PlanHash: // nobody has changed it: the contracts are others than when the version was made
		return &standing{fmt.Sprintf("%s version %d holds rows of another plan (%s) than its definition makes with these contracts (%s): `rebuild run %s` makes a version that can be fed",
			v.Projection, v.Number, plan, w.feed.Plan.Hash(), v.Projection)}
	}
	return fmt.Errorf("%w: %s version %d", errPlan, v.Projection, v.Number)
}

// lacking returns, while the version is being completed, which of the rows are
// not there with every field of the plan. It is asked before rows are read: one
// that is whole here stays so, one that is not may be filled at any moment.
func (w *worker) lacking(ctx context.Context, keys []string) (map[string]bool, error) {
	v, plan := w.feed.Version, w.feed.Plan
	if !v.Completing || plan.Shared() {
		return nil, nil
	}
	var names []string
	for _, f := range plan.Fields() {
		names = append(names, f.Name)
	}
	rows, err := w.conn.Query(ctx, `select k from unnest($1::text[]) k where not exists (select from `+v.Table()+` where key = k and data ?& $2)`, keys, names)
	if err != nil {
		return nil, fmt.Errorf("looking for rows that lack fields: %w", err)
	}
	lacking := make(map[string]bool)
	var key string
	_, err = pgx.ForEachRow(rows, []any{&key}, func() error {
		lacking[key] = true
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for rows that lack fields: %w", err)
	}
	return lacking, nil
}

// complete gives rows that lack fields which are new in the plan what the log
// makes of their streams up to the batch; and rows that are not there too, because
// the former plan may not have made them. What is folded is what the owner has
// applied, so the row that the batch writes is whole. An event which only the new
// plan cannot apply holds the partition up: the former plan has applied it, so
// whoever completes the version has to give up.
func (w *worker) complete(ctx context.Context, b *batch, lacking map[string]bool) error {
	var ranges []StreamRange
	for i := range b.events {
		e := &b.events[i].event
		if lacking[e.Stream] && (b.events[i].source == fromParked || !w.parked[e.Stream]) {
			delete(lacking, e.Stream) // this is its first event of the batch
			ranges = append(ranges, StreamRange{Stream: e.Stream, UpTo: e.Seq - 1})
		}
	}
	if len(ranges) == 0 {
		return nil
	}
	v := w.feed.Version
	rows := make(map[string]*projection.Row, len(ranges))
	fold := StreamFold{Projection: v.Projection, Plan: w.feed.Plan, Category: w.category, Schemas: w.engine.schemas}
	_, poisoned, err := fold.Into(ctx, w.conn, ranges, rows)
	if err != nil {
		return err
	}
	for stream, why := range poisoned {
		return &standing{fmt.Sprintf("the row of %s/%s cannot be given its new fields: %v; `rebuild cancel %s` goes back to the former definition", w.category.Name, stream, why, v.Projection)}
	}
	for stream, row := range rows {
		b.rows[stream].row = row
	}
	return nil
}
