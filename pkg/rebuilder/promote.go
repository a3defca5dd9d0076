package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// flipHold is how long the feeding of the serving version is held up at most
// while the other catches up; flipPatience is how long a flip is tried again.
const (
	flipHold     = 500 * time.Millisecond
	flipPatience = 60 * time.Second
)

// promote makes the version serve and ends the rebuild, in one transaction.
func (j *job) promote(ctx context.Context) error {
	j.feed(ctx)
	now := j.meter.read(time.Now())
	err := j.flip(ctx, j.name, j.version.Number, time.Duration(j.rebuild.Options.Keep), func(ctx context.Context, tx pgx.Tx) error { return j.lease.Verify(ctx, tx) }, func(tx pgx.Tx) error {
		return j.noteDone(ctx, tx, now)
	})
	if err != nil {
		return err
	}
	j.ended("the version serves", now)
	return j.stopAt("after promote")
}

// noteDone ends the rebuild, in tx. Whoever was told that it pauses or is
// cancelled has been told the truth: it is looked at under the lock here.
func (j *job) noteDone(ctx context.Context, tx pgx.Tx, now Progress) error {
	var wish string
	if err := tx.QueryRow(ctx, `select coalesce(wish, '') from refold.rebuild where id = $1 for update`, j.id).Scan(&wish); err != nil {
		return fmt.Errorf("looking at what is wanted of the rebuild: %w", err)
	}
	if err := j.heed(wish); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `update refold.rebuild set state = 'done', step = 'done', error = null, owner = null, wish = null, progress = $2, finished = clock_timestamp(), updated = clock_timestamp() where id = $1`, j.id, mustJSON(now))
	return err
}

// ended tells that the rebuild is at its end.
func (j *job) ended(what string, now Progress) {
	j.rebuild.State, j.rebuild.Step, j.rebuild.Owner = Done, StepDone, ""
	j.deps.Metrics.outcomes.WithLabelValues(j.name, "done").Inc()
	j.log.Info(what, "version", j.version.Number)
	j.show(now)
}

// flip changes the serving version, trying again for a while when the other is
// behind or a lock is not to be had.
func (r *Rebuilder) flip(ctx context.Context, name string, to int, keep time.Duration, fence func(context.Context, pgx.Tx) error, also func(pgx.Tx) error) error {
	deadline := time.Now().Add(flipPatience)
	for {
		if err := r.stopAt("before promote"); err != nil {
			return err
		}
		began := time.Now()
		err := pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `set local lock_timeout = '2s'; set local statement_timeout = '5s'`); err != nil {
				return err
			}
			flip := func(ctx context.Context, tx pgx.Tx) error {
				_, err := readmodel.Flip{Projection: name, To: to, Wait: flipHold, Keep: keep}.Do(ctx, tx)
				return err
			}
			if r.faults.flip != nil {
				flip = r.faults.flip
			}
			if err := flip(ctx, tx); err != nil {
				return err
			}
			if err := also(tx); err != nil {
				return err
			}
			if err := r.stopAt("within promote"); err != nil {
				return err
			}
			return fence(ctx, tx)
		})
		r.deps.Metrics.promote.Observe(time.Since(began).Seconds())
		retry := errors.Is(err, readmodel.ErrBehind) || postgres.Classify(err) == postgres.ClassLockTimeout || postgres.Classify(err) == postgres.ClassConflict
		if err == nil || !retry || time.Now().After(deadline) {
			if errors.Is(err, readmodel.ErrBehind) {
				err = fmt.Errorf("%w: is a projector running that feeds it?", err)
			}
			return err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}
