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

// Run begins a rebuild of a projection by its deployed definition, or resumes the
// one that is not at its end, and returns when it is done, waits to be promoted,
// or cannot go on. watch, which may be nil, is called with every change.
//
// A second run is a *[Busy] at once while a first one lives. Faults of the
// database and the brokers are waited out. An incomplete history is a
// *[Incomplete], a failed verification [ErrNotVerified]; both leave the rebuild
// to be resumed with other options, or to be cancelled. A crash leaves what was
// committed: the next run goes on from there.
func (r *Rebuilder) Run(ctx context.Context, name string, options Options, watch func(Rebuild)) (Rebuild, error) {
	return r.run(ctx, name, options, watch, 0)
}

// run is Run; with the number of a rebuild it goes on with that one only, or is
// [ErrNoRebuild] when that has ended meanwhile.
func (r *Rebuilder) run(ctx context.Context, name string, options Options, watch func(Rebuild), only int64) (Rebuild, error) {
	options, err := options.withDefaults()
	if err != nil {
		return Rebuild{}, err
	}
	j := r.newJob(name, options.Rate)
	j.watch = watch
	if j.plan, err = r.compile(name); err != nil {
		return Rebuild{}, err
	}
	if j.categories, err = r.categories(ctx, j.plan); err != nil {
		return Rebuild{}, err
	}
	if j.lease, j.session, err = r.acquire(ctx, name); err != nil {
		return Rebuild{}, err
	}
	defer func() { j.session.close() }()
	kind, active, err := j.decide(ctx, options, only)
	if err == nil && kind == Indexes {
		err = j.changeIndexes(ctx, active, options)
	} else if err == nil {
		err = j.work(ctx, kind, options)
	}
	if errors.Is(err, errStopped) {
		return j.rebuild, err // as a kill leaves it
	}
	return j.finish(ctx, err)
}

// work takes the rebuild up and does its steps, again and again while what ends
// them is transient.
func (j *job) work(ctx context.Context, kind Kind, options Options) error {
	if err := j.takeUp(ctx, kind, options); err != nil {
		return err
	}
	working, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	beating := make(chan struct{})
	go func() {
		defer close(beating)
		j.heartbeat(working, cancel)
	}()
	defer func() {
		cancel(nil)
		<-beating
	}()
	pause := 200 * time.Millisecond
	for {
		began := time.Now()
		err := j.steps(working)
		if cause := context.Cause(working); cause != nil && err != nil {
			return cause
		}
		if !transient(err) {
			return err
		}
		j.log.Warn("the rebuild is interrupted and tries again", "step", j.rebuild.Step, "err", err)
		j.meter.wait("interrupted, tries again: " + err.Error())
		if time.Since(began) > 10*time.Second {
			pause = 200 * time.Millisecond
		}
		select {
		case <-working.Done():
			return context.Cause(working)
		case <-time.After(pause):
		}
		pause = min(2*pause, 3*time.Second)
		if err := j.reload(working); err != nil && !transient(err) {
			return err
		}
		j.meter.wait("")
	}
}

// takeUp begins, and tries again while the database is away.
func (j *job) takeUp(ctx context.Context, kind Kind, options Options) error {
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 3*time.Second) {
		err := j.begin(ctx, kind, options)
		if !transient(err) {
			return err
		}
		j.log.Warn("the rebuild cannot begin and tries again", "err", err)
		j.reconnect(ctx)
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// begin takes up the rebuild that is open, or makes one.
func (j *job) begin(ctx context.Context, kind Kind, options Options) error {
	err := j.write(ctx, "begin", func(tx pgx.Tx) error {
		open, err := one(readRebuilds(ctx, tx, `projection = $1 and state not in ('done', 'cancelled') for update`, j.name))
		switch {
		case errors.Is(err, ErrNoRebuild):
			open = Rebuild{Projection: j.name, Step: StepPreflight, Options: options}
			err = tx.QueryRow(ctx, `insert into refold.rebuild (projection, options) values ($1, $2) returning id`, j.name, mustJSON(options)).Scan(&open.ID)
		case err == nil && open.plan != "" && open.plan != j.plan.Hash():
			return anotherPlan(open)
		case err == nil && open.State == Requested:
			options = open.Options // what was asked for
		}
		if err != nil {
			return err
		}
		open.Options, open.Kind = options, kind
		j.rebuild = open
		_, err = tx.Exec(ctx, `update refold.rebuild set state = case when wish = 'pause' then 'paused' else 'running' end, options = $2, owner = $3, owner_pid = $4, owner_start = $5,
			error = null, started = coalesce(started, clock_timestamp()), updated = clock_timestamp(), definition = $6, plan = $7, kind = $8 where id = $1`,
			open.ID, mustJSON(options), j.cfg.Owner, j.session.backend.PID, j.session.backend.Started, j.plan.Source(), j.plan.Hash(), kind)
		return err
	})
	if err != nil {
		return fmt.Errorf("beginning a rebuild of %s: %w", j.name, err)
	}
	j.rebuild.State, j.rebuild.Owner = Running, j.cfg.Owner
	j.id, j.log = j.rebuild.ID, j.log.With("rebuild", j.rebuild.ID)
	j.limiter.rate = float64(options.Rate) // those of what was asked for
	j.meter.greatest = j.rebuild.Progress
	if j.rebuild.wish == "pause" {
		j.limiter.pause()
	}
	j.show(j.rebuild.Progress)
	return j.reload(ctx)
}

// reload reads how far the rebuild is.
func (j *job) reload(ctx context.Context) error {
	now, err := j.Get(ctx, j.rebuild.ID)
	if err != nil {
		return err
	}
	j.rebuild.Step, j.rebuild.Version, j.rebuild.Report = now.Step, now.Version, now.Report
	if j.rebuild.Version == 0 {
		return nil
	}
	if j.version, err = j.findVersion(ctx, j.name, j.rebuild.Version); err != nil {
		return err
	}
	if j.rebuild.Kind == Fields { // the rows are to become what this plan makes
		j.version.Definition, j.version.PlanHash, j.version.Completing = j.plan.Source(), j.plan.Hash(), false
	}
	return j.readParts(ctx)
}

// ErrNoVersion says that a projection has no version of a number.
var ErrNoVersion = errors.New("no such version")

func (r *Rebuilder) findVersion(ctx context.Context, name string, number int) (readmodel.Version, error) {
	versions, err := r.catalogue.All(ctx)
	if err != nil {
		return readmodel.Version{}, err
	}
	for _, v := range versions {
		if v.Projection == name && v.Number == number {
			return v, nil
		}
	}
	return readmodel.Version{}, fmt.Errorf("%w: version %d of %s", ErrNoVersion, number, name)
}

// finish writes down how the run ended and gives the lease back.
func (j *job) finish(ctx context.Context, cause error) (Rebuild, error) {
	ending, done := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer done()
	var unfit *Unfit
	givenUp := errors.Is(cause, ErrCancelled) || errors.As(cause, &unfit)
	if givenUp {
		if err := j.giveUp(ctx, cause); err != nil {
			cause = errors.Join(cause, err)
		}
	}
	if cause != nil && j.rebuild.ID != 0 && !givenUp && !postgres.LeaseLost(cause) {
		state, text := Failed, cause.Error()
		if ctx.Err() != nil { // asked to stop: the next run goes on
			state, text = Requested, ""
		}
		noted := false
		if err := j.write(ending, "failure", func(tx pgx.Tx) error {
			// What was promoted before the stop came stays done.
			tag, err := tx.Exec(ending, `update refold.rebuild set state = $2, error = nullif($3, ''), owner = null, updated = clock_timestamp()
				where id = $1 and state not in ('done', 'cancelled')`, j.rebuild.ID, state, text)
			noted = err == nil && tag.RowsAffected() > 0
			return err
		}); err == nil && noted {
			j.rebuild.State, j.rebuild.Error = state, text
		}
		j.deps.Metrics.outcomes.WithLabelValues(j.name, "failed").Inc()
	}
	if !postgres.LeaseLost(cause) && !j.session.conn.IsClosed() {
		if err := j.lease.Release(ending, j.session.conn); err != nil {
			j.log.Debug("releasing the lease", "err", err) // it ends by itself
		}
	}
	j.show(j.told())
	j.rebuild.Progress = j.told()
	return j.rebuild, cause
}
