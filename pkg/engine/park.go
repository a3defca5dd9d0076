package engine

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/registry"
)

// park keeps an event of a parked stream.
func (b *batch) park(e *event.Event, why string) {
	b.parkedEvents = append(b.parkedEvents, parkedEvent{e, why})
	b.counts.parked++
}

// parkFirst parks a stream by the event that cannot be applied.
func (w *worker) parkFirst(b *batch, e *event.Event, why string) {
	if b.newlyParked == nil {
		b.newlyParked = make(map[string]bool)
	}
	b.newlyParked[strings.Clone(e.Stream)] = true
	b.parkedStreams = append(b.parkedStreams, parkedEvent{e, why})
	b.park(e, why)
	v := w.feed.Version
	w.engine.log.Error("a stream is parked", "projection", v.Projection, "version", v.Number, "category", e.Category, "stream", e.Stream, "seq", e.Seq, "event_id", e.ID, "err", why)
}

// Original returns the event as the event table holds it, when that differs from
// what the topic has, else nil: a damaged topic is no reason to park a stream. An
// error means that the table could not be asked, so that nothing is known.
func Original(ctx context.Context, log Log, category eventstore.Category, e *event.Event) (*event.Event, error) {
	list, err := log.SlotEvents(ctx, category, e.Slot, e.Seq-1, 1)
	if err != nil {
		return nil, fmt.Errorf("reading %s from the event table: %w", e.Position(), err)
	}
	if len(list) == 0 || list[0].Seq != e.Seq || list[0].ID != e.ID {
		return nil, nil
	}
	o := &list[0]
	if string(o.Value) == string(e.Value) && o.Stream == e.Stream && o.Type == e.Type && o.Version == e.Version && o.Time == e.Time && o.Recorded == e.Recorded && o.Metadata == e.Metadata {
		return nil, nil
	}
	return o, nil
}

// original is [Original] with the schema that the event was written with.
func (w *worker) original(ctx context.Context, e *event.Event) (*taken, error) {
	o, err := Original(ctx, w.engine.events, w.category, e)
	if err != nil || o == nil {
		return nil, err
	}
	t := &taken{event: *o, source: fromTable}
	if w.feed.Plan.Uses(o.Category, o.Type) {
		t.schema, err = registry.WriterIfKnown(ctx, w.engine.schemas, o.Value)
	}
	return t, err
}

// readParked reads which streams of the partition are parked.
func (w *worker) readParked(ctx context.Context) (map[string]bool, error) {
	v := w.feed.Version
	rows, err := w.conn.Query(ctx, `select stream from refold.parked_stream where projection = $1 and version = $2 and category = $3 and slot = any($4)`,
		v.Projection, v.Number, w.category.Name, w.seqs.slots)
	if err != nil {
		return nil, fmt.Errorf("reading the parked streams: %w", err)
	}
	streams, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading the parked streams: %w", err)
	}
	parked := make(map[string]bool, len(streams))
	for _, s := range streams {
		parked[s] = true
	}
	return parked, nil
}

// Decisions are events that somebody decided to skip. Another event that comes to
// stand in the place of one, after the log has lost its tail, is none of them.
type Decisions map[place]event.ID

// Skips tells whether it was decided to skip an event.
func (d Decisions) Skips(e *event.Event) bool {
	id, decided := d[place{e.Slot, e.Seq}]
	return decided && id == e.ID
}

// ReadDecisions reads which events of a category somebody decided to skip, in some
// slots, or in all when slots is nil: what was decided for one version of a projection
// holds for all.
func ReadDecisions(ctx context.Context, q Querier, projection, category string, slots []int16) (Decisions, error) {
	rows, err := q.Query(ctx, `select slot, seq, id from refold.decision where projection = $1 and category = $2 and ($3::smallint[] is null or slot = any($3))`,
		projection, category, slots)
	if err != nil {
		return nil, fmt.Errorf("reading decisions about %s: %w", projection, err)
	}
	skipped := make(Decisions)
	var slot int16
	var seq int64
	var id [16]byte
	_, err = pgx.ForEachRow(rows, []any{&slot, &seq, &id}, func() error {
		skipped[place{int(slot), seq}] = id
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading decisions about %s: %w", projection, err)
	}
	return skipped, nil
}

// breaker counts the streams that a partition parks. Where many fail at once, it
// is not the streams that are wrong, and parking them all would only make more to
// repair: then the partition stops instead, until a batch parks none.
type breaker struct {
	most   int
	recent []time.Time
	open   bool
}

// breakerWindow is the time within which parked streams are counted.
const breakerWindow = time.Minute

// check judges the streams that a batch is about to park.
func (r *breaker) check(n int) error {
	now := time.Now()
	for len(r.recent) > 0 && now.Sub(r.recent[0]) > breakerWindow {
		r.recent = r.recent[1:]
	}
	if n == 0 || !r.open && len(r.recent)+n <= r.most {
		return nil
	}
	r.open = true
	return &standing{fmt.Sprintf("more than %d streams would be parked within %s: the partition stops until what is wrong with them is mended", r.most, breakerWindow)}
}

// parked notes the streams that a committed batch has parked.
func (r *breaker) parked(n int) {
	for range n {
		r.recent = append(r.recent, time.Now())
	}
	if n == 0 {
		r.open = false
	}
}
