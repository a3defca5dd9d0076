package readmodel

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/refoldhq/refold/pkg/avro"
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
	// it) or parked (it, or one before it in its stream, cannot be applied).
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
	schemas Schemas
	feeds   *Feeds
}

// NewExplainer returns an explainer of a reader's models.
func NewExplainer(reader *Reader, feeds *Feeds, events *eventstore.Reader, schemas Schemas) *Explainer {
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
	var model *Model
	var stored []byte
	pick := func(ctx context.Context) (*Model, bool, error) {
		m, err := x.reader.models.current(ctx, name)
		return m, false, err
	}
	from, err = x.reader.answer(ctx, pick, fresh, func(m *Model, _ bool) (*snapshot, error) {
		rows, of, err := m.getter.read(ctx, []string{key}, written(fresh.Token))
		model, stored = m, rows[key]
		return of, err
	})
	if err != nil {
		return nil, from, err
	}
	if err := model.Plan.Foldable(); err != nil {
		return nil, from, badQuery("key", "the row cannot be explained here: %v", err)
	}
	from.stream = key
	f := &rowFold{x: x, model: model, folder: model.Plan.NewFolder(), row: model.Plan.NewRow(), key: key, parked: make(map[string]bool)}
	events, err := x.concerning(ctx, f, from.progress)
	if err != nil {
		return nil, from, classify(err)
	}
	e = &Explanation{Key: key, Events: make([]ExplainedEvent, 0, len(events)), Stored: stored}
	for i := range events {
		done, err := f.apply(ctx, &events[i])
		if err != nil {
			return nil, from, classify(err)
		}
		if done != nil {
			e.Events = append(e.Events, *done)
		}
	}
	if stored == nil && len(e.Events) == 0 {
		return nil, from, ErrNoRow
	}
	return e, from, e.compare(f)
}

// concerning returns the events that may concern the row, in the order of the fold.
func (x *Explainer) concerning(ctx context.Context, f *rowFold, to *Progress) (all []event.Event, err error) {
	d := x.feeds.deriver()
	if err := d.prepare(ctx, x.feeds.pool); err != nil {
		return nil, err
	}
	if f.model.Plan.Shared() {
		return x.concerningShared(ctx, f, d, to)
	}
	for _, c := range to.categories {
		category, slot := d.categories[c.name], event.SlotOf(f.key, len(c.seqs))
		for after := int64(0); ; {
			events, err := x.events.StreamEvents(ctx, category, f.key, after, maxStep, false)
			if err != nil {
				return nil, err
			}
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

// concerningShared has to look at every event, as any may concern the row.
func (x *Explainer) concerningShared(ctx context.Context, f *rowFold, d *deriver, to *Progress) (all []event.Event, err error) {
	at := to.clone()
	for i := range at.categories {
		clear(at.categories[i].seqs)
	}
	read := 0
	for i := range to.categories {
		for {
			events, err := d.events(ctx, to.categories[i], at.categories[i].seqs, maxStep)
			if err != nil {
				return nil, err
			}
			if read += len(events); read > maxExplained {
				return nil, fmt.Errorf("%w: the log has more than %d events, and any may concern the row", ErrTooExpensive, maxExplained)
			}
			for k := range events {
				if f.concerns(ctx, &events[k]) {
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

// rowFold folds the events of one row.
type rowFold struct {
	x      *Explainer
	model  *Model
	folder *projection.Folder
	row    *projection.Row
	key    string
	parked map[string]bool // streams
}

// begin decodes an event; an outcome other than Applies, or a reason, says why not.
func (f *rowFold) begin(ctx context.Context, e *event.Event) (outcome projection.Outcome, reason string, err error) {
	if !f.model.Plan.Uses(e.Category, e.Type) {
		return projection.Filtered, "", nil
	}
	id, _, err := avro.SplitFrame(e.Value)
	if err != nil {
		return projection.Applies, err.Error(), nil //nolint:nilerr // poison, which is told
	}
	schema, err := f.x.schemas.SchemaByID(ctx, id)
	if errors.Is(err, registry.ErrUnknownSchema) {
		return projection.Applies, err.Error(), nil
	}
	if err != nil {
		return projection.Applies, "", err
	}
	outcome, err = f.folder.Begin(e, schema)
	if err != nil {
		return outcome, err.Error(), nil //nolint:nilerr // poison, which is told
	}
	return outcome, "", nil
}

func (f *rowFold) concerns(ctx context.Context, e *event.Event) bool {
	outcome, reason, err := f.begin(ctx, e)
	return err == nil && reason == "" && outcome == projection.Applies && f.find()
}

// find makes the row's key the folder's present one, and tells whether it is one of
// the event's.
func (f *rowFold) find() bool {
	for key := range f.folder.Keys() {
		if string(key) == f.key {
			return true
		}
	}
	return false
}

// apply folds one event and tells what it did.
func (f *rowFold) apply(ctx context.Context, e *event.Event) (*ExplainedEvent, error) {
	done := &ExplainedEvent{Position: e.Position().String(), Stream: e.Category + "/" + e.Stream, ID: e.ID.String(), Type: e.Type, Version: e.Version,
		Time: e.Time, Recorded: e.Recorded, Outcome: "applied", Changes: map[string]FieldChange{}}
	if f.parked[done.Stream] {
		done.Outcome, done.Reason = "parked", "it waits behind another event of its stream"
		return done, nil
	}
	outcome, reason, err := f.begin(ctx, e)
	switch {
	case err != nil:
		return nil, err
	case reason == "" && outcome == projection.Filtered:
		done.Outcome = "filtered"
		return done, nil
	case reason == "" && !f.find():
		return nil, nil
	}
	before := f.members()
	if reason == "" {
		if err := f.folder.Apply(f.row); err != nil {
			reason = err.Error()
		}
	}
	if reason != "" {
		f.parked[done.Stream] = true
		done.Outcome, done.Reason = "parked", reason
		return done, nil
	}
	if !f.row.Exists() {
		done.Outcome = "removed"
	}
	for _, name := range differences(before, f.members()) {
		done.Changes[name] = FieldChange{orNull(before[name]), orNull(f.members()[name])}
	}
	return done, nil
}

// members returns the row as it is so far, empty for none.
func (f *rowFold) members() (members map[string]json.RawMessage) {
	if f.row.Exists() && json.Unmarshal(f.row.AppendData(nil), &members) != nil {
		return nil // what the fold makes is JSON
	}
	return members
}

func orNull(raw json.RawMessage) json.RawMessage {
	if raw == nil {
		return json.RawMessage("null")
	}
	return raw
}

// differences names the fields whose values differ; null and missing are the same.
func differences(a, b map[string]json.RawMessage) (names []string) {
	for name := range a {
		if !bytes.Equal(orNull(a[name]), orNull(b[name])) {
			names = append(names, name)
		}
	}
	for name := range b {
		if _, both := a[name]; !both && string(b[name]) != "null" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// compare compares the row that was folded with the one that is stored, in the
// form that the fold gives both.
func (e *Explanation) compare(f *rowFold) error {
	folded := f.members()
	if f.row.Exists() {
		e.Folded = f.row.AppendData(nil)
	}
	var stored map[string]json.RawMessage
	if e.Stored != nil {
		row, err := f.model.Plan.LoadRow(e.Stored, nil)
		if err != nil {
			return fmt.Errorf("reading the row %q: %w", e.Key, err)
		}
		if err := json.Unmarshal(row.AppendData(nil), &stored); err != nil {
			return fmt.Errorf("reading the row %q: %w", e.Key, err)
		}
	}
	e.Differences = differences(folded, stored)
	e.Equal = len(e.Differences) == 0 && f.row.Exists() == (e.Stored != nil)
	return nil
}
