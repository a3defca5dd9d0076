package rebuilder

import (
	"context"
	"errors"
	"sync"
	"time"
)

// servePoll is how often requests are looked for; sweepPoll is how often versions
// are looked for whose time is over.
const (
	servePoll = 500 * time.Millisecond
	sweepPoll = 10 * time.Second
)

// Serve runs the rebuilds that are asked for over HTTP, and retires versions that
// were kept long enough, until ctx ends. Several processes may serve: the lease
// of a projection decides who runs its rebuild. A rebuild that failed waits for
// somebody; one whose process died is taken up again.
func (r *Rebuilder) Serve(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	var mu sync.Mutex
	busy := make(map[string]bool)
	swept := time.Time{}
	for ctx.Err() == nil {
		if open, err := r.Open(ctx); err == nil {
			for _, one := range open {
				mu.Lock()
				taken := busy[one.Projection]
				if !taken && (one.State == Requested || one.State == Running) {
					busy[one.Projection] = true
				}
				mu.Unlock()
				if taken || one.State != Requested && one.State != Running {
					continue
				}
				all.Go(func() {
					r.serveOne(ctx, one)
					mu.Lock()
					defer mu.Unlock()
					delete(busy, one.Projection)
				})
			}
		}
		if time.Since(swept) > sweepPoll {
			swept = time.Now()
			if _, err := r.sweep(ctx); err != nil && ctx.Err() == nil {
				r.deps.Logger.Warn("retiring versions", "err", err)
			}
		}
		if pause(ctx, servePoll) != nil {
			return nil
		}
	}
	return nil
}

func (r *Rebuilder) serveOne(ctx context.Context, one Rebuild) {
	if plan, err := r.compile(one.Projection); err == nil && one.State == Requested && one.plan != "" && one.plan != plan.Hash() {
		r.noteWhy(ctx, one, anotherPlan(one)) // without the lease, which another process may want
		return
	}
	done, err := r.run(ctx, one.Projection, one.Options, nil, one.ID)
	var busy *Busy
	switch {
	case errors.As(err, &busy) && busy.Why != "":
		r.noteWhy(ctx, one, busy)
	case ctx.Err() != nil, busy != nil, errors.Is(err, ErrNoRebuild): // somebody else has ended it
	case err != nil:
		r.deps.Logger.Error("a rebuild has failed", "projection", one.Projection, "rebuild", one.ID, "err", err)
	default:
		r.deps.Logger.Info("a rebuild has ended", "projection", one.Projection, "rebuild", one.ID, "state", done.State)
	}
}

// noteWhy says, in the log and in the rebuild's status, why this process cannot
// take a rebuild up. It goes on looking: another definition may be deployed.
func (r *Rebuilder) noteWhy(ctx context.Context, one Rebuild, busy *Busy) {
	tag, err := r.pool.Exec(ctx, `update refold.rebuild set error = $2, updated = clock_timestamp() where id = $1 and state = $3 and error is distinct from $2`, one.ID, busy.Error(), one.State)
	if err != nil || tag.RowsAffected() > 0 {
		r.deps.Logger.Warn("a rebuild cannot be taken up", "projection", one.Projection, "rebuild", one.ID, "err", errors.Join(busy, err))
	}
}
