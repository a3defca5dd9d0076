package readmodel

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/registry"
)

// rowFold folds the events of one row.
type rowFold struct {
	schemas registry.Schemas
	offered *projection.Plan // whose fields are shown
	plan    *projection.Plan // that is folded by; it may have more
	folder  *projection.Folder
	row     *projection.Row
	key     string
	skipped map[event.ID]string        // why
	parked  map[string]int64           // by stream, the version of the event that keeps it waiting
	shown   map[string]json.RawMessage // the members of row
	heard   time.Time                  // when the database answered last
}

// begin decodes an event; an outcome other than Applies, or a reason, says why not.
func (f *rowFold) begin(ctx context.Context, e *event.Event) (outcome projection.Outcome, reason string, err error) {
	if !f.plan.Uses(e.Category, e.Type) {
		return projection.Filtered, "", nil
	}
	writer, err := registry.WriterIfKnown(ctx, f.schemas, e.Value)
	if err != nil {
		return projection.Applies, "", err
	}
	outcome, err = f.folder.Begin(e, writer)
	if err != nil {
		return outcome, err.Error(), nil //nolint:nilerr // poison, which is told
	}
	return outcome, "", nil
}

// concerns tells whether an event concerns a shared row. One that cannot be applied
// does not, as it does not say which rows it is of, but its stream is parked at it:
// streams are to be shown in their order, which the order of the fold need not be.
func (f *rowFold) concerns(ctx context.Context, e *event.Event) (bool, error) {
	outcome, reason, err := f.begin(ctx, e)
	if err != nil {
		return false, err
	}
	if reason != "" {
		if _, skipped := f.skipped[e.ID]; !skipped {
			f.park(e)
		}
		return false, nil
	}
	return outcome == projection.Applies && f.find(), nil
}

func streamOf(e *event.Event) string { return e.Category + "/" + e.Stream }

// park has the later events of a stream wait.
func (f *rowFold) park(e *event.Event) {
	if _, parked := f.parked[streamOf(e)]; !parked {
		f.parked[streamOf(e)] = e.Version
	}
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

// apply folds one event and tells what it did; nil for one that does not concern
// the row.
func (f *rowFold) apply(ctx context.Context, e *event.Event) (*ExplainedEvent, error) {
	done := &ExplainedEvent{Position: e.Position().String(), Stream: streamOf(e), ID: e.ID.String(), Type: e.Type, Version: e.Version,
		Time: e.Time, Recorded: e.Recorded, Outcome: "applied", Changes: map[string]FieldChange{}}
	if reason, skipped := f.skipped[e.ID]; skipped {
		done.Outcome, done.Reason = "skipped", reason
		return done, nil
	}
	if at, parked := f.parked[done.Stream]; parked && e.Version > at {
		done.Outcome, done.Reason = "parked", fmt.Sprintf("it waits behind version %d of its stream", at)
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
	if reason == "" {
		if err := f.folder.Apply(f.row); err != nil {
			reason = err.Error()
		}
	}
	if reason != "" {
		f.park(e)
		done.Outcome, done.Reason = "parked", reason
		return done, nil
	}
	if !f.row.Exists() {
		done.Outcome = "removed"
	}
	before := f.shown
	f.shown = f.members()
	for _, name := range differences(before, f.shown) {
		done.Changes[name] = FieldChange{orNull(before[name]), orNull(f.shown[name])}
	}
	return done, nil
}

// members returns the row as it is so far, with the fields that are shown; empty
// for none.
func (f *rowFold) members() (members map[string]json.RawMessage) {
	made, err := f.made()
	if err != nil || made == nil || json.Unmarshal(made, &members) != nil {
		return nil // what the fold makes is a row, and JSON
	}
	return members
}

// made returns the row as it is so far, with the fields that are shown; nil for
// none.
func (f *rowFold) made() ([]byte, error) {
	if !f.row.Exists() {
		return nil, nil
	}
	data := f.row.AppendData(nil)
	if f.plan == f.offered {
		return data, nil
	}
	return f.offer(data)
}

// offer brings a row into the form that the fold gives it, with the fields that are
// shown.
func (f *rowFold) offer(data []byte) ([]byte, error) {
	row, err := f.offered.LoadRow(data, nil)
	if err != nil {
		return nil, err
	}
	return row.AppendData(nil), nil
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
