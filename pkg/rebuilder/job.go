package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// job is one run of one rebuild, under the lease of its projection.
type job struct {
	*Rebuilder
	name       string
	lease      *postgres.Lease
	session    *session
	id         int64 // of the rebuild; set before the heartbeat begins
	rebuild    Rebuild
	plan       *projection.Plan
	categories []eventstore.Category
	version    readmodel.Version
	parts      []*part
	meter      meter
	limiter    *limiter
	feeding    *feeding
	watch      func(Rebuild)
	log        *slog.Logger

	mu    sync.Mutex // guards shown
	shown Rebuild    // what watch was told last
}

// newJob returns a job for a projection, which may have a rate.
func (r *Rebuilder) newJob(name string, rate int) *job {
	return &job{Rebuilder: r, name: name, limiter: &limiter{rate: float64(rate)}, log: r.deps.Logger.With("projection", name)}
}

// beside returns a job that folds for a check of j's, which waits meanwhile: at
// the same rate and paused with it, without the lease, and with a meter of its own.
func (j *job) beside(v readmodel.Version) *job {
	return &job{Rebuilder: j.Rebuilder, name: j.name, id: j.id, rebuild: j.rebuild, plan: j.plan, categories: j.categories, version: v, limiter: j.limiter, log: j.log}
}

// errStopped is the cause of an end that a test asked for.
var errStopped = errors.New("stopped as by a kill")

// ErrCancelled says that the rebuild was cancelled by somebody.
var ErrCancelled = errors.New("the rebuild was cancelled")

func leaseName(projection string) string { return "rebuild/" + projection }

// write does one piece of work in one transaction, which commits only under the
// job's lease. A kill before, within or after it leaves nothing half done.
func (j *job) write(ctx context.Context, point string, work func(pgx.Tx) error) error {
	if err := j.stopAt("before " + point); err != nil {
		return err
	}
	err := pgx.BeginFunc(ctx, j.pool, func(tx pgx.Tx) error {
		if err := work(tx); err != nil {
			return err
		}
		if err := j.stopAt("within " + point); err != nil {
			return err
		}
		return j.lease.Verify(ctx, tx) // late: it keeps the lease from being renewed until the commit
	})
	if err != nil {
		return err
	}
	return j.stopAt("after " + point)
}

// advance makes step the next one; work belongs to the step that ends with it.
func (j *job) advance(ctx context.Context, step Step, work func(pgx.Tx) error) error {
	now := j.meter.read(time.Now())
	var wish string
	err := j.write(ctx, "step "+string(step), func(tx pgx.Tx) error {
		if work != nil {
			if err := work(tx); err != nil {
				return err
			}
		}
		return tx.QueryRow(ctx, `update refold.rebuild set step = $2, progress = $3, updated = clock_timestamp() where id = $1 returning coalesce(wish, '')`,
			j.id, step, mustJSON(now)).Scan(&wish)
	})
	if err != nil {
		return fmt.Errorf("going on to %s: %w", step, err)
	}
	j.rebuild.Step = step
	j.log.Info("rebuild goes on", "step", step)
	j.show(now)
	if err := j.heed(wish); !errors.Is(err, errHeld) { // the next step begins with the gate
		return err
	}
	return nil
}

// errHeld says that somebody wants the rebuild to pause.
var errHeld = errors.New("the rebuild is to pause")

// heed does what somebody wants of the rebuild, which is written down with it.
func (j *job) heed(wish string) error {
	switch wish {
	case "cancel":
		return ErrCancelled
	case "pause":
		j.limiter.pause()
		return errHeld
	}
	return nil
}

// steps takes the rebuild from where it is to its end, or to where it waits.
func (j *job) steps(ctx context.Context) error {
	defer j.stopFeeding()
	for {
		if err := j.gate(ctx, 0); err != nil {
			return err
		}
		var err error
		switch j.rebuild.Step {
		case StepPreflight:
			if j.rebuild.Kind == Fields {
				err = j.preflightFields(ctx)
			} else {
				err = j.preflight(ctx)
			}
		case StepRehearse:
			err = j.rehearse(ctx)
		case StepFill:
			err = j.fill(ctx)
		case StepLoad:
			err = j.load(ctx)
		case StepIndex:
			err = j.index(ctx)
		case StepCheck:
			err = j.check(ctx)
		case StepCatchUp:
			err = j.catchUp(ctx)
		case StepVerify:
			err = j.verify(ctx)
		case StepPromote:
			if j.rebuild.Options.Promote == "manual" {
				return j.await(ctx)
			}
			if j.rebuild.Kind == Fields {
				err = j.publish(ctx)
			} else {
				err = j.promote(ctx)
			}
		default:
			return nil
		}
		if err != nil && !errors.Is(err, errHeld) {
			return fmt.Errorf("%s: %w", j.rebuild.Step, err)
		}
	}
}

// await leaves the version ready, for somebody to promote it.
func (j *job) await(ctx context.Context) error {
	err := j.write(ctx, "waiting", func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `update refold.rebuild set state = 'waiting', owner = null, error = null, updated = clock_timestamp() where id = $1`, j.rebuild.ID)
		return err
	})
	if err == nil {
		j.rebuild.State = Waiting
		j.show(j.told())
	}
	return err
}

// gate waits while the rebuild is paused, and for n events' share of the rate.
func (j *job) gate(ctx context.Context, n int) error {
	for held := j.limiter.held(); held != nil; held = j.limiter.held() {
		j.meter.wait("paused: `rebuild resume " + j.name + "` lets it go on")
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-held:
			j.meter.wait("")
		}
	}
	if wait := j.limiter.take(n, time.Now()); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
	return context.Cause(ctx)
}

// show tells whoever watches where the rebuild stands. The progress is one that
// was written down: what is told does not fall when a job that was killed is taken
// up again.
func (j *job) show(now Progress) {
	j.mu.Lock()
	before := j.shown.Progress
	j.shown = j.rebuild
	j.shown.Progress = before
	j.mu.Unlock()
	j.tell(now)
}

// tell is show for the heartbeat: it looks at nothing that the steps change.
func (j *job) tell(now Progress) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if now.Done < j.shown.Progress.Done { // somebody else of the job has told more meanwhile
		now = j.shown.Progress
	}
	j.deps.Metrics.show(j.name, j.shown.Progress, now)
	j.shown.Progress = now
	if j.watch != nil {
		j.watch(j.shown)
	}
}

// told is the progress that was told last.
func (j *job) told() Progress {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.shown.Progress
}
