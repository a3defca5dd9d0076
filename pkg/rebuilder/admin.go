package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// ErrState says that a rebuild is not in a state for what is asked.
var ErrState = errors.New("the rebuild is not in a state for this")

// Pause holds a rebuild up until [Rebuilder.Resume]: at once when a job runs it,
// else as soon as one takes it up.
func (r *Rebuilder) Pause(ctx context.Context, id int64) error {
	return r.want(ctx, id, `wish = 'pause', state = case when state in ('requested', 'running') then 'paused' else state end`)
}

// Resume lets a paused rebuild go on.
func (r *Rebuilder) Resume(ctx context.Context, id int64) error {
	return r.want(ctx, id, `wish = null, state = case when state = 'paused' then case when owner is null then 'requested' else 'running' end else state end`)
}

func (r *Rebuilder) want(ctx context.Context, id int64, set string) error {
	tag, err := r.pool.Exec(ctx, `update refold.rebuild set `+set+`, updated = clock_timestamp() where id = $1 and state in ('requested', 'running', 'paused') and wish is distinct from 'cancel'`, id)
	if err != nil {
		return fmt.Errorf("asking the job of rebuild %d: %w", id, err)
	}
	if tag.RowsAffected() == 0 {
		now, err := r.Get(ctx, id)
		if err != nil {
			return err
		}
		return fmt.Errorf("%w: rebuild %d is %s", ErrState, id, now.State)
	}
	return nil
}

// Cancel ends a rebuild and drops what it has built, and nothing else. A job that
// runs it is told and waited for; without one it is done here.
func (r *Rebuilder) Cancel(ctx context.Context, id int64) error {
	now, err := r.Get(ctx, id)
	if err != nil {
		return err
	}
	if !now.open() {
		return fmt.Errorf("%w: rebuild %d is %s", ErrState, id, now.State)
	}
	if _, err := r.pool.Exec(ctx, `update refold.rebuild set wish = 'cancel' where id = $1 and state not in ('done', 'cancelled')`, id); err != nil {
		return fmt.Errorf("cancelling rebuild %d: %w", id, err)
	}
	for {
		lease, session, err := r.acquire(ctx, now.Projection)
		var busy *Busy
		if err == nil {
			defer session.close()
			j := r.resumed(now, lease, session)
			err = j.giveUp(ctx, nil)
			return errors.Join(err, lease.Release(ctx, session.conn))
		}
		if !errors.As(err, &busy) {
			return err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
		if now, err = r.Get(ctx, id); err != nil || !now.open() {
			return err
		}
	}
}

// resumed returns a job that takes up a rebuild from outside of [Rebuilder.Run].
func (r *Rebuilder) resumed(now Rebuild, lease *postgres.Lease, session *session) *job {
	j := r.newJob(now.Projection, now.Options.Rate)
	j.id, j.rebuild, j.lease, j.session, j.log = now.ID, now, lease, session, j.log.With("rebuild", now.ID)
	return j
}

// giveUp ends the job's own rebuild, under its lease, and undoes what it has
// made; because is why, nil or [ErrCancelled] when somebody wants it.
func (j *job) giveUp(ctx context.Context, because error) error {
	stop := j.keepLease(ctx)
	defer stop()
	now, err := j.Get(ctx, j.id)
	if err != nil || !now.open() {
		return err
	}
	var v readmodel.Version
	if now.Version != 0 {
		if v, err = j.findVersion(ctx, now.Projection, now.Version); err != nil {
			return err
		}
	}
	built := now.Kind == Fresh && v.Number != 0
	if now.Kind == Fields && v.Number != 0 && v.State != "retired" {
		if err := j.abandon(ctx, now); err != nil {
			return fmt.Errorf("going back to the former definition: %w", err)
		}
	}
	why := ""
	if because != nil && !errors.Is(because, ErrCancelled) {
		why = because.Error()
	}
	err = j.write(ctx, "cancel", func(tx pgx.Tx) error {
		if built {
			if err := readmodel.MarkRetired(ctx, tx, v); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `update refold.rebuild set state = 'cancelled', owner = null, wish = null, error = nullif($2, ''), finished = clock_timestamp(), updated = clock_timestamp() where id = $1`, j.id, why)
		return err
	})
	if err != nil {
		return fmt.Errorf("cancelling rebuild %d: %w", j.id, err)
	}
	j.rebuild.State, j.rebuild.Error = Cancelled, why
	j.deps.Metrics.outcomes.WithLabelValues(now.Projection, "cancelled").Inc()
	if built {
		return j.drop(ctx, v)
	}
	return nil
}

// drop drops the table of a retired version, and forgets its group.
func (r *Rebuilder) drop(ctx context.Context, v readmodel.Version) error {
	if err := r.dropTable(ctx, v); err != nil {
		return err
	}
	if err := r.dropGroup(ctx, v); err != nil { // nothing depends on it
		r.deps.Logger.Warn("the group of a retired version stays", "projection", v.Projection, "version", v.Number, "err", err)
	}
	return nil
}

// groupPatience is how long the members of a group have to leave it: engines hear
// of a retirement at once, and look every half second.
const groupPatience = 5 * time.Second

func (r *Rebuilder) dropGroup(ctx context.Context, v readmodel.Version) error {
	client, err := r.client()
	if err != nil {
		return err
	}
	defer client.Close()
	asking, cancel := context.WithTimeout(ctx, groupPatience)
	defer cancel()
	for {
		_, err := kadm.NewClient(client).DeleteGroup(asking, engine.GroupName(r.cfg.Prefix, v))
		if err == nil || errors.Is(err, kerr.GroupIDNotFound) {
			return nil
		}
		if pause(asking, 200*time.Millisecond) != nil {
			return err
		}
	}
}

func (r *Rebuilder) dropTable(ctx context.Context, v readmodel.Version) error {
	conn, err := r.connect(ctx, v.Projection)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `set lock_timeout = '2s'`); err != nil {
		return err
	}
	for {
		err := readmodel.DropRetired(ctx, conn, v)
		if class := postgres.Classify(err); class != postgres.ClassLockTimeout && class != postgres.ClassConflict {
			return err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// Promote makes the version that a rebuild has made ready serve.
func (r *Rebuilder) Promote(ctx context.Context, id int64) (Rebuild, error) {
	now, err := r.Get(ctx, id)
	if err != nil {
		return now, err
	}
	if now.State == Done {
		return now, nil
	}
	if now.State != Waiting {
		return now, fmt.Errorf("%w: rebuild %d of %s is %s at the step %s; it can be promoted once it is waiting", ErrState, id, now.Projection, now.State, now.Step)
	}
	if now.Kind == Fields {
		if err := r.publishFields(ctx, now); err != nil {
			return now, err
		}
		return r.Get(ctx, id)
	}
	err = r.flip(ctx, now.Projection, now.Version, time.Duration(now.Options.Keep), noFence, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `update refold.rebuild set state = 'done', step = 'done', error = null, finished = clock_timestamp(), updated = clock_timestamp() where id = $1`, id)
		return err
	})
	if err != nil {
		return now, err
	}
	return r.Get(ctx, id)
}

// publishFields lets queries go by the definition whose fields are filled.
func (r *Rebuilder) publishFields(ctx context.Context, now Rebuild) error {
	lease, session, err := r.acquire(ctx, now.Projection)
	if err != nil {
		return err
	}
	defer session.close()
	j := r.resumed(now, lease, session)
	stop := j.keepLease(ctx)
	defer stop()
	if j.version, err = r.findVersion(ctx, j.name, now.Version); err != nil {
		return err
	}
	next := j.version
	next.Definition = now.definition
	if j.plan, err = r.plans.Plan(next); err != nil {
		return err
	}
	err = j.publish(ctx)
	stop()
	return errors.Join(err, lease.Release(ctx, session.conn))
}

// noFence is for what needs no lease, because the catalogue row is locked.
func noFence(context.Context, pgx.Tx) error { return nil }

// ErrNoFormer says that there is no version to roll back to.
var ErrNoFormer = errors.New("there is no former version that is still fed")

// RollBack makes the version that served before the present one serve again. It
// has been fed all the time, so nothing is lost and nothing goes back. It returns
// the number of the version that serves now.
func (r *Rebuilder) RollBack(ctx context.Context, name string) (int, error) {
	var former int
	err := r.pool.QueryRow(ctx, `select version from refold.projection_version where projection = $1 and state = 'ready' and promoted is not null order by promoted desc limit 1`, name).Scan(&former)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("%w: %s", ErrNoFormer, name)
	}
	if err != nil {
		return 0, fmt.Errorf("looking for a former version of %s: %w", name, err)
	}
	err = r.flip(ctx, name, former, 24*time.Hour, noFence, func(pgx.Tx) error { return nil })
	return former, err
}

// Retire takes a version out of use and drops its table, in steps that can each
// be repeated; 0 stands for every version that is fed and does not serve, or was
// retired and not dropped. The version that serves is refused.
func (r *Rebuilder) Retire(ctx context.Context, name string, number int) ([]int, error) {
	versions, err := r.catalogue.All(ctx)
	if err != nil {
		return nil, err
	}
	var retired []int
	known := false
	for _, v := range versions {
		known = known || v.Projection == name && (number == 0 || v.Number == number)
		if v.Projection != name || number != 0 && v.Number != number || number == 0 && v.State != "ready" && v.State != "retired" {
			continue
		}
		if v.State == "building" {
			return retired, fmt.Errorf("%w: version %d of %s is being built: `rebuild cancel` drops it", ErrState, v.Number, name)
		}
		waits, err := readRebuilds(ctx, r.pool, `projection = $1 and version = $2 and state not in ('done', 'cancelled')`, name, v.Number)
		if err != nil {
			return retired, err
		}
		if len(waits) > 0 && v.State == "ready" {
			if number == 0 {
				continue // it waits to be promoted
			}
			return retired, fmt.Errorf("%w: version %d of %s waits to be promoted: `rebuild cancel` drops it", ErrState, v.Number, name)
		}
		did, err := r.retire(ctx, v)
		if err != nil {
			return retired, err
		}
		if did {
			retired = append(retired, v.Number)
		}
	}
	if !known {
		return nil, fmt.Errorf("%w: %s has none that could be retired", ErrNoVersion, name)
	}
	return retired, nil
}

func (r *Rebuilder) retire(ctx context.Context, v readmodel.Version) (bool, error) {
	var dropped bool
	if err := r.pool.QueryRow(ctx, `select dropped is not null from refold.projection_version where projection = $1 and version = $2`, v.Projection, v.Number).Scan(&dropped); err != nil || dropped {
		return false, err
	}
	if err := r.stopAt("before retire"); err != nil {
		return false, err
	}
	if err := pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error { return readmodel.MarkRetired(ctx, tx, v) }); err != nil {
		return false, err
	}
	if err := r.stopAt("after retire"); err != nil {
		return false, err
	}
	return true, r.drop(ctx, v)
}

// sweep retires versions whose time is over, and drops what was retired and not
// dropped. It returns how many.
func (r *Rebuilder) sweep(ctx context.Context) (int, error) {
	rows, err := r.pool.Query(ctx, `select projection, version, state, definition, plan, leaf, next_plan is not null from refold.projection_version v
		where dropped is null and (state = 'retired' or state = 'ready' and keep_until < clock_timestamp()
			and not exists (select from refold.rebuild r where r.projection = v.projection and r.version = v.version and r.state not in ('done', 'cancelled')))`)
	if err != nil {
		return 0, fmt.Errorf("looking for versions to retire: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[readmodel.Version])
	if err != nil {
		return 0, fmt.Errorf("looking for versions to retire: %w", err)
	}
	for i, v := range list {
		if _, err := r.retire(ctx, v); err != nil {
			return i, err
		}
		r.deps.Logger.Info("a version is retired", "projection", v.Projection, "version", v.Number)
	}
	return len(list), nil
}
