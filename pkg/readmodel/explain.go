package readmodel

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/registry"
)

// Explanation says how a row came to be.
type Explanation struct {
	Key string `json:"key"`
	// Events are those that concern the row, in order: by version for a row of one
	// stream, by (time, category, slot, seq) for a shared one.
	Events []ExplainedEvent `json:"events"`
	// Folded is the row that the events make, Stored the one that is there; null
	// for none.
	Folded json.RawMessage `json:"folded"`
	Stored json.RawMessage `json:"stored"`
	// Equal tells whether they are the same, and if not Differences names the fields.
	Equal       bool     `json:"equal"`
	Differences []string `json:"differences,omitempty"`
}

// ExplainedEvent is what one event did to a row.
type ExplainedEvent struct {
	Position string     `json:"position"`
	Stream   string     `json:"stream"`
	ID       string     `json:"id"`
	Type     string     `json:"type"`
	Version  int64      `json:"version"`
	Time     event.Time `json:"time"`
	Recorded event.Time `json:"recorded"`
	// Outcome is applied, removed (the row), filtered (the projection does not use
	// it), parked (it, or one before it in its stream, cannot be applied) or skipped
	// (somebody has decided so, for the reason given).
	Outcome string `json:"outcome"`
	Reason  string `json:"reason,omitempty"`
	// Changes are the fields that it changed.
	Changes map[string]FieldChange `json:"changes"`
}

// FieldChange is a field's value before and after an event.
type FieldChange struct {
	From json.RawMessage `json:"from"`
	To   json.RawMessage `json:"to"`
}

// What it may take to explain a row: that many events are read at the most, for so
// long.
const (
	maxExplained   = 200_000
	explainTimeout = 10 * time.Second
)

// Explainer folds single rows from the log. It is safe for concurrent use.
type Explainer struct {
	reader  *Reader
	events  *eventstore.Reader
	schemas registry.Schemas
	feeds   *Feeds
}

// NewExplainer returns an explainer of a reader's models.
func NewExplainer(reader *Reader, feeds *Feeds, events *eventstore.Reader, schemas registry.Schemas) *Explainer {
	return &Explainer{reader: reader, feeds: feeds, events: events, schemas: schemas}
}

// Explain folds the row with a key from the log, up to the progress of the
// snapshot that the stored row is read from, and compares the two. It is
// [ErrNoRow] when there is neither a row nor an event that concerns it.
func (x *Explainer) Explain(ctx context.Context, name, key string, fresh Fresh) (e *Explanation, from Answer, err error) {
	if !utf8.ValidString(key) || strings.IndexByte(key, 0) >= 0 {
		return nil, from, ErrBadKey
	}
	ctx, cancel := context.WithTimeout(ctx, fresh.Wait+explainTimeout)
	defer cancel()
	for attempt := 0; ; attempt++ {
		e, from, err = x.once(ctx, name, key, fresh)
		if isDead(err) && attempt < maxFlips {
			continue
		}
		return e, from, classify(err)
	}
}

// once fails when one of the sessions that it reads with is lost.
func (x *Explainer) once(ctx context.Context, name, key string, fresh Fresh) (e *Explanation, from Answer, err error) {
	var model *Model
	var stored []byte
	from, err = x.reader.answer(ctx, x.reader.current(name), fresh, func(m *Model, doubts []event.Mark, _ bool) (*snapshot, error) {
		rows, of, err := m.getter.read(ctx, []string{key}, doubts)
		model, stored = m, rows[key]
		return of, err
	})
	if err != nil {
		return nil, from, err
	}
	from.stream = key
	if e, err = x.explain(ctx, model, model.Plan, key, stored, from.progress); err != nil {
		return nil, from, err
	}
	// While new fields are filled, a row that only their events make is there as
	// soon as the engine or the fill has come to it.
	if model.Version.Completing && e.Folded == nil && e.Stored != nil {
		plan, err := x.completing(ctx, model.Version)
		if err != nil {
			return nil, from, err
		}
		if e, err = x.explain(ctx, model, plan, key, stored, from.progress); err != nil {
			return nil, from, err
		}
	}
	if stored == nil && len(e.Events) == 0 {
		return nil, from, ErrNoRow
	}
	return e, from, nil
}

// completing returns the plan that a version is being completed by.
func (x *Explainer) completing(ctx context.Context, v Version) (*projection.Plan, error) {
	if err := x.feeds.pool.QueryRow(ctx, `select coalesce(next_definition, definition) from refold.projection_version where projection = $1 and version = $2`,
		v.Projection, v.Number).Scan(&v.Definition); err != nil {
		return nil, fmt.Errorf("reading what completes %s version %d: %w", v.Projection, v.Number, err)
	}
	return x.reader.models.plans.Plan(v)
}

// explain folds a row of a model by a plan that has the fields of the model's, or
// more, and compares what the model has of it.
func (x *Explainer) explain(ctx context.Context, m *Model, plan *projection.Plan, key string, stored []byte, to *Progress) (*Explanation, error) {
	if err := plan.Foldable(); err != nil {
		return nil, badQuery("key", "the row cannot be explained here: %v", err)
	}
	f := &rowFold{schemas: x.schemas, offered: m.Plan, plan: plan, folder: plan.NewFolder(), row: plan.NewRow(), key: key, parked: make(map[string]int64)}
	var events []event.Event
	var err error
	if f.skipped, err = x.skipped(ctx, m.Version); err == nil {
		events, err = x.concerning(ctx, f, to)
	}
	if errors.Is(err, context.DeadlineExceeded) && time.Since(f.heard) < getTimeout {
		return nil, fmt.Errorf("%w: %w", ErrTooExpensive, err) // the database has answered every time
	}
	if err != nil {
		return nil, err
	}
	e := &Explanation{Key: key, Events: make([]ExplainedEvent, 0, len(events)), Stored: stored}
	for i := range events {
		done, err := f.apply(ctx, &events[i])
		if err != nil {
			return nil, err
		}
		if done != nil {
			e.Events = append(e.Events, *done)
		}
	}
	return e, e.compare(f)
}

// concerning returns the events that may concern the row, in the order of the fold.
func (x *Explainer) concerning(ctx context.Context, f *rowFold, to *Progress) (all []event.Event, err error) {
	d := x.feeds.deriver()
	if err := d.prepare(ctx, x.feeds.pool); err != nil {
		return nil, err
	}
	if f.plan.Shared() {
		return concerningShared(ctx, f, d, to)
	}
	for _, c := range to.categories {
		category, slot := d.categories[c.name], event.SlotOf(f.key, len(c.seqs))
		for after := int64(0); ; {
			events, err := x.events.StreamEvents(ctx, category, f.key, after, maxStep, false)
			if err != nil {
				return nil, err
			}
			f.heard = time.Now()
			for _, e := range events {
				if e.Seq <= c.seqs[slot] {
					all = append(all, e)
				}
			}
			if len(events) < maxStep || len(all) > maxExplained {
				break
			}
			after = events[len(events)-1].Version
		}
	}
	if len(all) > maxExplained {
		return nil, fmt.Errorf("%w: more than %d events concern the row", ErrTooExpensive, maxExplained)
	}
	return all, nil
}

// concerningShared has to look at every event, as any may concern the row, or be
// what keeps the later ones of its stream from it.
func concerningShared(ctx context.Context, f *rowFold, d *deriver, to *Progress) (all []event.Event, err error) {
	at := to.clone()
	for i := range at.categories {
		clear(at.categories[i].seqs)
	}
	read := 0
	for i := range to.categories {
		for {
			events, err := d.events(ctx, to.categories[i], &at.categories[i], maxStep)
			if err != nil {
				return nil, err
			}
			f.heard = time.Now()
			if read += len(events); read > maxExplained {
				return nil, fmt.Errorf("%w: the log has more than %d events, and any may concern the row", ErrTooExpensive, maxExplained)
			}
			for k := range events {
				concerned, err := f.concerns(ctx, &events[k])
				if err != nil {
					return nil, err
				}
				if concerned {
					all = append(all, events[k])
				}
			}
			if len(events) < maxStep {
				break
			}
		}
	}
	slices.SortFunc(all, func(a, b event.Event) int {
		return cmp.Or(cmp.Compare(a.Time, b.Time), cmp.Compare(a.Category, b.Category), cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.Seq, b.Seq))
	})
	return all, nil
}

// skippedSQL reads what was decided to be skipped, except for what the version
// has not carried out yet.
const skippedSQL = `select d.id, d.reason from refold.decision d where d.projection = $1 and not exists (
	select from refold.parked_event p where p.projection = d.projection and p.version = $2 and p.category = d.category and p.slot = d.slot and p.seq = d.seq)`

// skipped returns the reasons for which a version has skipped events. Somebody has
// decided on each of them, so they are few.
func (x *Explainer) skipped(ctx context.Context, v Version) (map[event.ID]string, error) {
	rows, err := x.feeds.pool.Query(ctx, skippedSQL, v.Projection, v.Number)
	if err != nil {
		return nil, fmt.Errorf("reading what %s skips: %w", v.Projection, err)
	}
	defer rows.Close()
	skipped := make(map[event.ID]string)
	for rows.Next() {
		var id [16]byte
		var reason string
		if err := rows.Scan(&id, &reason); err != nil {
			return nil, fmt.Errorf("reading what %s skips: %w", v.Projection, err)
		}
		skipped[id] = reason
	}
	return skipped, rows.Err()
}

// compare compares the row that was folded with the one that is stored, in the
// form that the fold gives both.
func (e *Explanation) compare(f *rowFold) (err error) {
	var stored map[string]json.RawMessage
	if e.Stored != nil {
		data, err := f.offer(e.Stored)
		if err == nil {
			err = json.Unmarshal(data, &stored)
		}
		if err != nil {
			return fmt.Errorf("reading the row %q: %w", e.Key, err)
		}
	}
	if e.Folded, err = f.made(); err != nil {
		return fmt.Errorf("reading the row %q as it was folded: %w", e.Key, err)
	}
	e.Differences = differences(f.shown, stored)
	e.Equal = len(e.Differences) == 0 && (e.Folded == nil) == (e.Stored == nil)
	return nil
}
