package aggregate

import (
	"context"
	"encoding/json"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/registry"
)

// pageSize is how many events are read at a time.
const pageSize = 1000

// load returns an aggregate as the log has it, from its snapshot if there is a
// good one, and what it holds. An aggregate without events is at version 0.
func (r *Repository[A]) load(ctx context.Context, category eventstore.Category, id string) (*A, held, error) {
	claims := r.codec.d.claims != nil
	loaded, err := r.rt.snapshots.Load(ctx, category, id, r.codec.fingerprint, pageSize, claims)
	if err != nil {
		return nil, held{}, eventstore.AsUnavailable(err)
	}
	a, again := r.codec.New(id), len(loaded.Events) == pageSize
	if loaded.Snapshot.Version > 0 {
		if restored, err := r.codec.restore(id, loaded.Snapshot); err == nil {
			a = restored
		} else {
			r.rt.metrics.badSnapshot()
			r.rt.deps.Logger.Warn("ignoring a snapshot", "category", category.Name, "stream", id, "err", err)
			if loaded.Events, err = r.firstEvents(ctx, category, id); err != nil {
				return nil, held{}, err
			}
			again = true
		}
	}
	if err := r.foldOn(ctx, category, a, loaded.Events, all); err != nil {
		return nil, held{}, err
	}
	if claims && again { // what was read before the last event may be older than it
		if loaded.Claims, err = r.rt.reader.ClaimsOf(ctx, category, id); err != nil {
			return nil, held{}, eventstore.AsUnavailable(err)
		}
	}
	r.codec.Root(a).from = loaded.From
	return a, held{table: loaded.Claims, rule: r.codec.holds(a)}, nil
}

// all is the end of no replay.
func all(*event.Event) bool { return false }

// replayUpTo folds a stream from its first event, up to the event for which past
// is true.
func (r *Repository[A]) replayUpTo(ctx context.Context, category eventstore.Category, id string, past func(*event.Event) bool) (*A, error) {
	a := r.codec.New(id)
	events, err := r.firstEvents(ctx, category, id)
	if err != nil {
		return nil, err
	}
	return a, r.foldOn(ctx, category, a, events, past)
}

func (r *Repository[A]) firstEvents(ctx context.Context, category eventstore.Category, id string) ([]event.Event, error) {
	events, err := r.rt.reader.StreamEvents(ctx, category, id, 0, pageSize, false)
	return events, eventstore.AsUnavailable(err)
}

// foldOn folds a page of events and those that follow it.
func (r *Repository[A]) foldOn(ctx context.Context, category eventstore.Category, a *A, events []event.Event, past func(*event.Event) bool) error {
	root := r.codec.Root(a)
	for {
		for i := range events {
			if past(&events[i]) {
				return nil
			}
			if err := r.fold(ctx, a, &events[i]); err != nil {
				return err
			}
		}
		if len(events) < pageSize {
			return nil
		}
		var err error
		if events, err = r.rt.reader.StreamEvents(ctx, category, root.id, root.version, pageSize, false); err != nil {
			return eventstore.AsUnavailable(err)
		}
	}
}

func (r *Repository[A]) fold(ctx context.Context, a *A, e *event.Event) error {
	writer, _, err := registry.WriterOf(ctx, r.rt.deps.Schemas, e.Value)
	if err != nil {
		return eventstore.AsUnavailable(err)
	}
	return r.codec.Apply(a, e, writer)
}

// Moment is a point in the life of an aggregate: its version, or a time, or the
// zero value for now.
type Moment struct {
	// Version is that of the last event; 0 for no bound.
	Version int64
	// Recorded is up to when events were recorded; 0 for no bound.
	Recorded event.Time
}

// past tells whether an event comes after the moment.
func (m Moment) past(e *event.Event) bool {
	return m.Version > 0 && e.Version > m.Version || m.Recorded != 0 && e.Recorded > m.Recorded
}

// View is an aggregate at a moment.
type View struct {
	Category, ID string
	Version      int64
	// Recorded is when its last event was recorded.
	Recorded event.Time
	State    json.RawMessage
}

// At returns the state of an aggregate at a moment. The error is [*Missing] for
// one without events, or [*UnknownVersion] for one that had no such version, or
// none yet at the time.
func (r *Repository[A]) At(ctx context.Context, id string, when Moment) (View, error) {
	category, err := r.category(id)
	if err != nil {
		return View{}, err
	}
	a, err := r.loadAt(ctx, category, id, when)
	if err != nil {
		return View{}, err
	}
	root := r.codec.Root(a)
	if root.version == 0 || root.version < when.Version {
		actual, err := r.rt.reader.VersionOf(ctx, category, id)
		if err == nil && actual == 0 {
			err = &Missing{Category: category.Name, ID: id}
		} else if err == nil {
			err = &UnknownVersion{Category: category.Name, ID: id, Actual: actual}
		}
		return View{}, eventstore.AsUnavailable(err)
	}
	state, err := r.codec.State(a)
	return View{Category: category.Name, ID: id, Version: root.version, Recorded: root.recorded, State: state}, err
}

// loadAt begins at the snapshot unless that comes after the moment.
func (r *Repository[A]) loadAt(ctx context.Context, category eventstore.Category, id string, when Moment) (*A, error) {
	loaded, err := r.rt.snapshots.Load(ctx, category, id, r.codec.fingerprint, pageSize, false)
	if err != nil {
		return nil, eventstore.AsUnavailable(err)
	}
	snap := loaded.Snapshot
	if snap.Version == 0 || when.past(&event.Event{Version: snap.Version, Recorded: snap.Recorded}) {
		return r.replayUpTo(ctx, category, id, when.past)
	}
	a, err := r.codec.restore(id, snap)
	if err != nil {
		return r.replayUpTo(ctx, category, id, when.past)
	}
	return a, r.foldOn(ctx, category, a, loaded.Events, when.past)
}

// Replay calls visit with nil and the state at a version, and then with each
// event after it and the state that it made, until visit returns an error.
func (r *Repository[A]) Replay(ctx context.Context, id string, after int64, visit func(e *event.Event, state json.RawMessage) error) error {
	category, err := r.category(id)
	if err != nil {
		return err
	}
	a := r.codec.New(id)
	if after > 0 {
		if a, err = r.loadAt(ctx, category, id, Moment{Version: after}); err != nil {
			return err
		}
	}
	show := func(e *event.Event) error {
		state, err := r.codec.State(a)
		if err != nil {
			return err
		}
		return visit(e, state)
	}
	if err := show(nil); err != nil {
		return err
	}
	for {
		events, err := r.rt.reader.StreamEvents(ctx, category, id, r.codec.Root(a).version, pageSize, false)
		if err != nil {
			return eventstore.AsUnavailable(err)
		}
		for i := range events {
			if err := r.fold(ctx, a, &events[i]); err != nil {
				return err
			}
			if err := show(&events[i]); err != nil {
				return err
			}
		}
		if len(events) < pageSize {
			return nil
		}
	}
}
