package readmodel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/registry"
)

// Change is one change of a read model.
type Change struct {
	Kind ChangeKind
	Key  string
	// Row is the row as JSON after the change, nil when it is gone.
	Row json.RawMessage
	// Token is what Row contains.
	Token string
	// ID is where to go on behind the change, see [Feeds.Subscribe].
	ID string
	// Version is the version that the row belongs to.
	Version int
}

// ChangeKind says what has changed.
type ChangeKind uint8

// Kinds of changes. After Flipped another version answers, or the same one by a
// definition that has changed in place: any row may differ from what was seen so
// far, if the definition does.
const (
	Upserted ChangeKind = iota
	Removed
	Flipped
)

// Log is what feeds read of the event store.
type Log interface {
	RangeEvents(ctx context.Context, category eventstore.Category, ranges []eventstore.SlotRange, limit int) ([]event.Event, error)
	StreamEvents(ctx context.Context, category eventstore.Category, stream string, after int64, limit int, backward bool) ([]event.Event, error)
}

// ErrChangesTooOld says that the changes behind an id cannot be told any more.
var ErrChangesTooOld = errors.New("the id is too old, or of another log: read the rows anew and follow from now on")

// distance returns how many events lie between two positions, or an error when
// the first is not one of the log that the second has come from.
func (p *Progress) distance(to *Progress) (events int64, err error) {
	if len(p.categories) != len(to.categories) {
		return 0, ErrChangesTooOld
	}
	for i, c := range to.categories {
		from := p.categories[i]
		if from.name != c.name || len(from.seqs) != len(c.seqs) {
			return 0, ErrChangesTooOld
		}
		for slot := range c.seqs {
			if from.seqs[slot] > c.seqs[slot] {
				return 0, ErrChangesTooOld // the log has lost its tail since
			}
			events += c.seqs[slot] - from.seqs[slot]
		}
	}
	return events, nil
}

// clone returns a copy that may be changed until it is shared.
func (p *Progress) clone() *Progress {
	q := &Progress{categories: slices.Clone(p.categories), branch: p.branch}
	for i := range q.categories {
		c := &q.categories[i]
		c.seqs, c.events = slices.Clone(c.seqs), slices.Clone(c.events)
	}
	return q
}

// deriver derives changes from the log: the rows that the events between two
// positions concern, as they are now. So a feed needs no writes of its own, a
// change that was told is told again at the most, and none is left out.
type deriver struct {
	log        Log
	schemas    registry.Schemas
	categories map[string]eventstore.Category
	folders    map[*Model]*projection.Folder
}

// maxStep is the most events of a step.
const maxStep = 1000

// step returns the changes of the next events between two positions, and the
// position behind them. Rows are read after the events, so what is told of a key
// never goes back.
func (d *deriver) step(ctx context.Context, m *Model, from standing, to *Progress) (changes []Change, reached standing, err error) {
	reached = from
	reached.progress = from.progress.clone()
	var keys []string
	seen := map[string]bool{}
	for left, i := maxStep, 0; i < len(to.categories) && left > 0; i++ {
		events, err := d.events(ctx, to.categories[i], &reached.progress.categories[i], left)
		if err != nil {
			return nil, from, err
		}
		left -= len(events)
		for k := range events {
			concerned, err := d.keys(ctx, m, &events[k])
			if err != nil {
				return nil, from, err
			}
			for _, key := range concerned {
				if !seen[key] {
					seen[key] = true
					keys = append(keys, key)
				}
			}
		}
	}
	changes, err = d.rows(ctx, m, keys, from)
	if n := len(changes); err == nil && n > 0 {
		changes[n-1].ID = reached.id()
	}
	return changes, reached, err
}

// events returns the next events of a category and moves at behind them.
func (d *deriver) events(ctx context.Context, to categoryProgress, at *categoryProgress, limit int) ([]event.Event, error) {
	var ranges []eventstore.SlotRange
	for slot, seq := range to.seqs {
		if at.seqs[slot] < seq {
			ranges = append(ranges, eventstore.SlotRange{Slot: slot, After: at.seqs[slot], To: seq})
		}
	}
	if len(ranges) == 0 {
		return nil, nil
	}
	category, ok := d.categories[to.name]
	if !ok {
		return nil, fmt.Errorf("following changes: the category %s is not in the database", to.name)
	}
	events, err := d.log.RangeEvents(ctx, category, ranges, limit)
	if err != nil {
		return nil, err
	}
	for _, e := range events {
		if e.Seq != at.seqs[e.Slot]+1 {
			return nil, ErrChangesTooOld // archived
		}
		at.seqs[e.Slot], at.events[e.Slot] = e.Seq, e.ID.Sum()
	}
	if len(events) < limit {
		for _, r := range ranges {
			if at.seqs[r.Slot] != r.To {
				return nil, ErrChangesTooOld
			}
		}
	}
	return events, nil
}

// keys returns the keys of the rows that an event concerns. An event that cannot be
// applied is parked and changes no row.
func (d *deriver) keys(ctx context.Context, m *Model, e *event.Event) (keys []string, err error) {
	if !m.Plan.Uses(e.Category, e.Type) {
		return nil, nil
	}
	writer, err := registry.WriterIfKnown(ctx, d.schemas, e.Value)
	if err != nil {
		return nil, err
	}
	folder := d.folders[m]
	if folder == nil {
		folder = m.Plan.NewFolder()
		d.folders[m] = folder
	}
	if outcome, err := folder.Begin(e, writer); err != nil || outcome == projection.Filtered {
		return nil, nil //nolint:nilerr // parked
	}
	for key := range folder.Keys() {
		keys = append(keys, string(key))
	}
	return keys, nil
}

func (d *deriver) rows(ctx context.Context, m *Model, keys []string, at standing) ([]Change, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	rows, of, err := m.getter.read(ctx, keys, nil)
	if err != nil {
		return nil, err
	}
	changes, id := make([]Change, 0, len(keys)), at.id()
	for _, key := range keys {
		a := Answer{progress: of.progress, stream: key, byStream: !m.Plan.Shared()}
		c := Change{Kind: Upserted, Key: key, Row: rows[key], Token: a.TokenText(), ID: id, Version: m.Version.Number}
		if c.Row == nil {
			c.Kind = Removed
		}
		changes = append(changes, c)
	}
	return changes, nil
}
