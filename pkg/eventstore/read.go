package eventstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/event"
)

// Errors of reading.
var (
	ErrNoStream    = errors.New("no such stream")
	ErrNoEvent     = errors.New("no such event")
	ErrAmbiguousID = errors.New("two categories hold the event id")
)

// Reader reads the log. It is safe for concurrent use.
type Reader struct{ pool *pgxpool.Pool }

// NewReader returns a reader on a database.
func NewReader(pool *pgxpool.Pool) *Reader { return &Reader{pool} }

// StreamInfo is what is known of a stream as a whole.
type StreamInfo struct {
	Version          int64
	Created, Updated event.Time // recorded times of its first and last event
}

// Stream returns a stream's version, or [ErrNoStream].
func (r *Reader) Stream(ctx context.Context, category Category, stream string) (StreamInfo, error) {
	var info StreamInfo
	var created, updated time.Time
	err := r.pool.QueryRow(ctx, `
		select l.version, f.recorded, l.recorded
		from (select version, recorded from refold.event where category = $1 and stream = $2 order by version desc limit 1) l,
		     (select recorded from refold.event where category = $1 and stream = $2 order by version limit 1) f`,
		category.ID, stream).Scan(&info.Version, &created, &updated)
	if errors.Is(err, pgx.ErrNoRows) {
		return info, ErrNoStream
	}
	if err != nil {
		return info, fmt.Errorf("reading the stream %s/%s: %w", category.Name, stream, err)
	}
	info.Created, info.Updated = event.TimeOf(created), event.TimeOf(updated)
	return info, nil
}

// StreamEntry is one stream in a list.
type StreamEntry struct {
	ID string
	StreamInfo
}

// Streams returns at most limit streams of a category behind one, in byte order.
// It costs some probes of an index for each, however many events they have, and
// passes over the entries of other categories that lie between them.
func (r *Reader) Streams(ctx context.Context, category Category, after string, limit int) ([]StreamEntry, error) {
	rows, err := r.pool.Query(ctx, `
		with recursive s (stream, n) as (
			(select stream, 1 from refold.event where category = $1 and stream > $2 order by stream limit 1)
			union all
			(select x.stream, s.n + 1 from s, lateral (select e.stream from refold.event e where e.category = $1 and e.stream > s.stream order by e.stream limit 1) x where s.n < $3))
		select s.stream, l.version, f.recorded, l.recorded from s,
			lateral (select e.version, e.recorded from refold.event e where e.category = $1 and e.stream = s.stream order by e.version desc limit 1) l,
			lateral (select e.recorded from refold.event e where e.category = $1 and e.stream = s.stream order by e.version limit 1) f
		order by s.stream`, category.ID, after, limit)
	if err != nil {
		return nil, fmt.Errorf("listing the streams of %s: %w", category.Name, err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e StreamEntry, err error) {
		var created, updated time.Time
		err = row.Scan(&e.ID, &e.Version, &created, &updated)
		e.Created, e.Updated = event.TimeOf(created), event.TimeOf(updated)
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("listing the streams of %s: %w", category.Name, err)
	}
	return list, nil
}

const columns = `slot, seq, version, id, time, recorded, stream, type, value, coalesce(actor, ''), coalesce(correlation_id, ''), coalesce(causation_id, ''), coalesce(traceparent, '')`

// StreamEvents returns at most limit events of a stream with versions beyond
// after, or below it when reading backward, where 0 begins at the end.
func (r *Reader) StreamEvents(ctx context.Context, category Category, stream string, after int64, limit int, backward bool) ([]event.Event, error) {
	sql := `select ` + columns + `, null::uuid from refold.event where category = $1 and stream = $2 and version > $3 order by version limit $4`
	if backward {
		sql = `select ` + columns + `, null::uuid from refold.event where category = $1 and stream = $2 and ($3 = 0 or version < $3) order by version desc limit $4`
	}
	return r.events(ctx, category.Name, sql, category.ID, stream, after, limit)
}

// SlotEvents returns at most limit events of a slot with seqs beyond after, in
// order, each with its predecessor's id.
func (r *Reader) SlotEvents(ctx context.Context, category Category, slot int, after int64, limit int) ([]event.Event, error) {
	return r.events(ctx, category.Name, `select `+columns+`,
		coalesce(lag(id) over (order by seq), (select p.id from refold.event p where p.category = $1 and p.slot = $2 and p.seq = e.seq - 1))
		from refold.event e where category = $1 and slot = $2 and seq > $3 order by seq limit $4`, category.ID, slot, after, limit)
}

// EventByID returns the event with an id, [ErrNoEvent], or [ErrAmbiguousID].
func (r *Reader) EventByID(ctx context.Context, id event.ID) (event.Event, error) {
	var category string
	var n int
	err := r.pool.QueryRow(ctx, `select coalesce(min(c.name), ''), count(*) from refold.event e join refold.category c on c.id = e.category where e.id = $1`,
		[16]byte(id)).Scan(&category, &n)
	switch {
	case err != nil:
		return event.Event{}, fmt.Errorf("reading the event %s: %w", id, err)
	case n == 0:
		return event.Event{}, ErrNoEvent
	case n > 1:
		return event.Event{}, ErrAmbiguousID
	}
	list, err := r.events(ctx, category, `select `+columns+`, null::uuid from refold.event where id = $1`, [16]byte(id))
	if err != nil {
		return event.Event{}, err
	}
	if len(list) == 0 {
		return event.Event{}, ErrNoEvent
	}
	return list[0], nil
}

func (r *Reader) events(ctx context.Context, category, sql string, args ...any) ([]event.Event, error) {
	rows, err := r.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("reading events of %s: %w", category, err)
	}
	return collectEvents(rows, category)
}

// collectEvents reads rows of [columns] and the predecessor's id.
func collectEvents(rows pgx.Rows, category string) ([]event.Event, error) {
	var list []event.Event
	var e event.Event
	var slot int16
	var id [16]byte
	var prev *[16]byte
	var at, recorded time.Time
	_, err := pgx.ForEachRow(rows, []any{&slot, &e.Seq, &e.Version, &id, &at, &recorded, &e.Stream, &e.Type, &e.Value,
		&e.Metadata.Actor, &e.Metadata.CorrelationID, &e.Metadata.CausationID, &e.Metadata.Traceparent, &prev}, func() error {
		e.Category, e.Slot, e.ID, e.Time, e.Recorded, e.PrevID = category, int(slot), id, event.TimeOf(at), event.TimeOf(recorded), event.ID{}
		if prev != nil {
			e.PrevID = *prev
		}
		list = append(list, e)
		e.Value = nil // the next row gets memory of its own
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading events of %s: %w", category, err)
	}
	return list, nil
}

// Heads returns the last seq of every slot of a category, 0 for an empty one.
func (r *Reader) Heads(ctx context.Context, category Category) ([]int64, error) {
	rows, err := r.pool.Query(ctx, `select coalesce((select e.seq from refold.event e where e.category = s.category and e.slot = s.slot order by seq desc limit 1), s.floor)
		from refold.slot s where s.category = $1 order by s.slot`, category.ID)
	if err != nil {
		return nil, fmt.Errorf("reading the heads of %s: %w", category.Name, err)
	}
	heads, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("reading the heads of %s: %w", category.Name, err)
	}
	return heads, nil
}
