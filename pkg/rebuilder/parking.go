package rebuilder

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// parkedStream is a stream whose event could not be applied, with that event and
// those behind it.
type parkedStream struct {
	why    string
	from   int64 // seq of the first, when earlier passes have to be told
	events []event.Event
}

// parkFirst parks a stream by the event that cannot be applied.
func (l *loader) parkFirst(e *event.Event, why string) error {
	p := &parkedStream{why: why, from: e.Seq}
	l.parked[strings.Clone(e.Stream)] = p
	if l.pass > 1 && l.job.plan.Shared() {
		return errAgain
	}
	l.park(p, e)
	return nil
}

// park keeps an event of a parked stream, once however many passes meet it.
func (l *loader) park(p *parkedStream, e *event.Event) {
	if n := len(p.events); n > 0 && p.events[n-1].Seq >= e.Seq {
		return
	}
	if l.pass > 1 && !l.job.plan.Uses(e.Category, e.Type) {
		l.counts.filtered-- // the first pass did not know that the stream would be parked
	}
	kept := *e
	kept.Stream, kept.Type, kept.Value = strings.Clone(e.Stream), strings.Clone(e.Type), bytes.Clone(e.Value)
	kept.Metadata = event.Metadata{Actor: strings.Clone(e.Metadata.Actor), CorrelationID: strings.Clone(e.Metadata.CorrelationID),
		CausationID: strings.Clone(e.Metadata.CausationID), Traceparent: strings.Clone(e.Metadata.Traceparent)}
	p.events = append(p.events, kept)
}

func (l *loader) parkedEvents() (list []event.Event) {
	for _, p := range l.parked {
		list = append(list, p.events...)
	}
	return list
}

// parkedFrom returns the first parked seq of each parked stream of a version.
func (r *Rebuilder) parkedFrom(ctx context.Context, q querier, v readmodel.Version, category string) (map[string]int64, error) {
	rows, err := q.Query(ctx, `select stream, min(seq) from refold.parked_event where projection = $1 and version = $2 and category = $3 group by 1`, v.Projection, v.Number, category)
	if err != nil {
		return nil, fmt.Errorf("reading parked streams: %w", err)
	}
	list := make(map[string]int64)
	var stream string
	var seq int64
	_, err = pgx.ForEachRow(rows, []any{&stream, &seq}, func() error {
		list[stream] = seq
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading parked streams: %w", err)
	}
	return list, nil
}
