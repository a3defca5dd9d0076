package aggregate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
)

// Policy says when a snapshot is due: when any of its bounds is reached by what
// came after the one before. A bound of 0 is none.
type Policy struct {
	Events int
	// Bytes is the size of the events' values.
	Bytes int
	// Age is how long ago the last snapshot's event was recorded, or the first
	// event, when another is stored.
	Age time.Duration
}

// DefaultPolicy bounds what a load has to fold.
var DefaultPolicy = Policy{Events: 100, Bytes: 256 << 10}

// NoSnapshots is the policy of writing none.
var NoSnapshots = Policy{Events: -1}

func (p Policy) due(s since, now event.Time) bool {
	return p.Events > 0 && s.events >= p.Events || p.Bytes > 0 && s.bytes >= p.Bytes ||
		p.Age > 0 && s.events > 0 && now-s.recorded >= event.Time(p.Age.Microseconds())
}

// maxJobs is how many snapshots may wait. When more are due they are left out
// until the next event: a snapshot only saves time.
const maxJobs = 1024

// job is a snapshot to be written.
type job struct {
	handler Handler
	id      string
}

// maybeSnapshot asks for a snapshot if one is due. It does not block.
func (r *Repository[A]) maybeSnapshot(id string, root *Root) {
	policy := r.rt.cfg.Snapshots
	if own := r.codec.d.policy; own != nil {
		policy = *own
	}
	if !policy.due(root.since, root.recorded) {
		return
	}
	select {
	case r.rt.jobs <- job{r, id}:
		root.since = since{recorded: root.recorded}
	default:
	}
}

const (
	// sweepEvery and sweepAge are when snapshots of other fingerprints go: writers
	// of another version may still run beside this one.
	sweepEvery = 10 * time.Minute
	sweepAge   = 24 * time.Hour
	sweepBatch = 1000
)

func (rt *Runtime) writeSnapshots(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case j := <-rt.jobs:
			began := time.Now()
			err = j.handler.snapshot(ctx, j.id)
			rt.metrics.snapshotWritten(err)
			rest(ctx, time.Since(began))
		case <-tick.C:
			for _, h := range rt.all() {
				err = errors.Join(err, h.sweep(ctx))
			}
		}
		if err != nil && ctx.Err() == nil {
			rt.deps.Logger.Warn("a snapshot was not written", "err", err)
		}
	}
}

// rest leaves the database to the appends for twice as long as a snapshot took,
// so that snapshots never take more than a third of a session.
func rest(ctx context.Context, took time.Duration) {
	timer := time.NewTimer(min(2*took, time.Second))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Snapshot writes a snapshot of an aggregate now.
func (r *Repository[A]) Snapshot(ctx context.Context, id string) error { return r.snapshot(ctx, id) }

// snapshot reads the aggregate from the log again, with the help of the snapshot
// before, rather than taking the one in the cache from those who use it.
func (r *Repository[A]) snapshot(ctx context.Context, id string) error {
	category, err := r.category(id)
	if err != nil {
		return err
	}
	a, _, err := r.load(ctx, category, id)
	if err != nil {
		return err
	}
	root := r.codec.Root(a)
	if root.version == 0 {
		return &Missing{Category: category.Name, ID: id}
	}
	state, err := r.codec.State(a)
	if err != nil {
		return err
	}
	return r.rt.snapshots.Write(ctx, category, id, r.codec.fingerprint,
		eventstore.Snapshot{Version: root.version, Event: root.last, Recorded: root.recorded, State: state})
}

func (r *Repository[A]) sweep(ctx context.Context) error {
	return r.Sweep(ctx, sweepAge)
}

// Sweep deletes snapshots of other state types that are older than age.
func (r *Repository[A]) Sweep(ctx context.Context, age time.Duration) error {
	category, ok := r.rt.deps.Store.Category(r.codec.d.category)
	if !ok {
		return nil
	}
	for {
		n, err := r.rt.snapshots.Sweep(ctx, category, r.codec.fingerprint, age, sweepBatch)
		if err != nil || n < sweepBatch {
			return err
		}
	}
}

// StaleSnapshot says that a snapshot is not what its events make.
type StaleSnapshot struct {
	Category, ID string
	Version      int64
	// State is that of the snapshot, Replayed what folding from the first event gives.
	State, Replayed []byte
}

func (e *StaleSnapshot) Error() string {
	return fmt.Sprintf("the snapshot of %s %s at version %d is %s, its events make %s", e.Category, e.ID, e.Version, e.State, e.Replayed)
}

// VerifySnapshots compares every snapshot of this state type with what the
// stream's events make, from the first on. It deletes those that are wrong, and
// returns how many it has seen and a [*StaleSnapshot] for each that was wrong,
// joined.
func (r *Repository[A]) VerifySnapshots(ctx context.Context) (verified int, err error) {
	category, ok := r.rt.deps.Store.Category(r.codec.d.category)
	if !ok {
		return 0, fmt.Errorf("%w: %s", eventstore.ErrUnknownCategory, r.codec.d.category)
	}
	var wrong []error
	for after := ""; ; {
		ids, err := r.rt.snapshots.Streams(ctx, category, r.codec.fingerprint, after, pageSize)
		if err != nil {
			return verified, err
		}
		for _, id := range ids {
			var stale *StaleSnapshot
			err := r.verifySnapshot(ctx, category, id)
			switch {
			case errors.As(err, &stale):
				wrong = append(wrong, err)
			case err != nil:
				return verified, err
			}
			verified, after = verified+1, id
		}
		if len(ids) < pageSize {
			return verified, errors.Join(wrong...)
		}
	}
}

func (r *Repository[A]) verifySnapshot(ctx context.Context, category eventstore.Category, id string) error {
	loaded, err := r.rt.snapshots.Load(ctx, category, id, r.codec.fingerprint, 1, false)
	snap := loaded.Snapshot
	if err != nil || snap.Version == 0 { // a snapshot of events that are gone is ignored by everybody
		return err
	}
	a, err := r.replayUpTo(ctx, category, id, Moment{Version: snap.Version}.past)
	if err != nil {
		return err
	}
	replayed, err := r.codec.State(a)
	if err != nil {
		return err
	}
	// Through the type, so that the order of fields and white space do not matter.
	restored, err := r.codec.restore(id, snap)
	state := snap.State
	if err == nil {
		state, err = r.codec.State(restored)
	}
	if err == nil && bytes.Equal(state, replayed) {
		return nil
	}
	r.cache.forget(id)
	if err := r.rt.snapshots.Delete(ctx, category, id, r.codec.fingerprint); err != nil {
		return err
	}
	return &StaleSnapshot{Category: category.Name, ID: id, Version: snap.Version, State: snap.State, Replayed: replayed}
}
