package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/postgres"
)

// session is the connection that holds a job's lease and tells others that the
// job is alive: when its process is killed, the kernel closes the connection and
// the server forgets the backend at once. A holder whose backend is gone is
// waited for until its lease ends; one that is there is a reason to give up.
type session struct {
	conn    *pgx.Conn
	backend postgres.Backend
}

func (r *Rebuilder) connect(ctx context.Context, name string) (*pgx.Conn, error) {
	return postgres.Connect(ctx, postgres.Config{URL: r.cfg.DatabaseURL, AppName: "refold-rebuild-" + name})
}

// acquire takes the lease of a projection. A holder that lives is a *[Busy] at
// once, a dead one is waited for.
func (r *Rebuilder) acquire(ctx context.Context, name string) (*postgres.Lease, *session, error) {
	s := &session{}
	var err error
	if s.conn, err = r.connect(ctx, name); err != nil {
		return nil, nil, err
	}
	if s.backend, err = postgres.ReadBackend(ctx, s.conn); err == nil {
		var lease *postgres.Lease
		if lease, err = r.acquireOn(ctx, s, name); err == nil {
			return lease, s, nil
		}
	}
	s.close()
	return nil, nil, err
}

func (r *Rebuilder) acquireOn(ctx context.Context, s *session, name string) (*postgres.Lease, error) {
	owner := fmt.Sprintf("%s (backend %d since %s)", r.cfg.Owner, s.backend.PID, s.backend.Started.UTC().Format(time.RFC3339Nano))
	// A holder of our own name is our former self (a Job's pod before this one), even
	// where its host is gone and the server still believes in its session.
	patience := time.Now().Add(r.cfg.LeaseTime + 5*time.Second)
	for {
		lease, err := postgres.AcquireLease(ctx, s.conn, leaseName(name), owner, r.cfg.LeaseTime)
		var held *postgres.LeaseHeld
		if !errors.As(err, &held) {
			return lease, err
		}
		alive, err := r.alive(ctx, s.conn, held.Owner)
		if err != nil {
			return nil, err
		}
		former := strings.HasPrefix(held.Owner, r.cfg.Owner+" (backend ") && time.Now().Before(patience)
		if alive && !former {
			return nil, &Busy{Projection: name, Owner: held.Owner}
		}
		r.deps.Logger.Info("waiting for the lease of a job that has died", "projection", name, "owner", held.Owner, "left", held.Left)
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(min(held.Left, time.Second) + 5*time.Millisecond):
		}
	}
}

// CheckFree is a *[Busy] while another process runs a rebuild of a projection. It
// takes nothing: [Rebuilder.Run] decides.
func (r *Rebuilder) CheckFree(ctx context.Context, name string) error {
	var owner string
	err := r.pool.QueryRow(ctx, `select owner from refold.lease where name = $1 and expires > clock_timestamp()`, leaseName(name)).Scan(&owner)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && strings.HasPrefix(owner, r.cfg.Owner+" (backend ") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("asking who rebuilds %s: %w", name, err)
	}
	if alive, err := r.alive(ctx, r.pool, owner); err != nil || !alive {
		return err
	}
	return &Busy{Projection: name, Owner: owner}
}

// alive tells whether the backend that a holder named is still connected.
func (r *Rebuilder) alive(ctx context.Context, q querier, owner string) (alive bool, err error) {
	rows, err := q.Query(ctx, `select pid, backend_start from pg_stat_activity where application_name like 'refold-rebuild-%'`)
	if err != nil {
		return false, fmt.Errorf("looking for the holder of a lease: %w", err)
	}
	var b postgres.Backend
	_, err = pgx.ForEachRow(rows, []any{&b.PID, &b.Started}, func() error {
		suffix := fmt.Sprintf("(backend %d since %s)", b.PID, b.Started.UTC().Format(time.RFC3339Nano))
		alive = alive || len(owner) >= len(suffix) && owner[len(owner)-len(suffix):] == suffix
		return nil
	})
	return alive, err
}

func (s *session) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.conn.Close(ctx) // the server notices by itself where this fails
}

// keepLease renews the lease while no rebuild is under way, until stop is called.
func (j *job) keepLease(ctx context.Context) (stop func()) {
	ending, end := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pause(ending, j.cfg.LeaseTime/4) == nil {
			renewing, cancel := context.WithTimeout(ctx, j.cfg.LeaseTime/2) // not cut off by end, which would close the connection
			if err := j.lease.Renew(renewing, j.session.conn); err != nil {
				j.log.Warn("the lease could not be renewed", "err", err) // the fence decides
			}
			cancel()
		}
	}()
	return func() { end(); <-done }
}

// heartbeat renews the lease, writes the progress down and looks what somebody
// wants, until ctx ends. It calls cancel when the job must stop.
func (j *job) heartbeat(ctx context.Context, cancel context.CancelCauseFunc) {
	every := min(time.Second, j.cfg.LeaseTime/4)
	tick := time.NewTicker(every)
	defer tick.Stop()
	renewed := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		beat, done := context.WithTimeout(ctx, j.cfg.LeaseTime/2)
		err := j.beat(beat, cancel)
		done()
		switch {
		case err == nil:
			renewed = time.Now()
		case postgres.LeaseLost(err):
			cancel(err)
			return
		case ctx.Err() == nil:
			j.log.Warn("the rebuild's lease could not be renewed", "err", err, "since", time.Since(renewed).Round(time.Second))
			j.reconnect(ctx)
		}
	}
}

func (j *job) reconnect(ctx context.Context) {
	if !j.session.conn.IsClosed() {
		return
	}
	dial, done := context.WithTimeout(ctx, 5*time.Second)
	defer done()
	if conn, err := j.connect(dial, j.name); err == nil {
		j.session.conn = conn
	}
}

func (j *job) beat(ctx context.Context, cancel context.CancelCauseFunc) error {
	if err := j.lease.Renew(ctx, j.session.conn); err != nil {
		return err
	}
	now := j.meter.read(time.Now())
	var wish string
	if err := j.session.conn.QueryRow(ctx, `update refold.rebuild set progress = case when coalesce((progress->>'done')::bigint, 0) <= $3 then $2 else progress end,
		updated = clock_timestamp() where id = $1 returning coalesce(wish, '')`, j.id, mustJSON(now), now.Done).Scan(&wish); err != nil {
		return fmt.Errorf("writing the progress down: %w", err)
	}
	j.tell(now)
	switch wish {
	case "cancel":
		cancel(ErrCancelled)
	case "pause":
		j.limiter.pause()
	default:
		j.limiter.resume()
	}
	return nil
}
