package eventstore

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/postgres"
)

// A writer that is stopped between its trips loses its session to
// idle_in_transaction_session_timeout. One that is stopped in the middle of a
// trip, so that the server waits for the rest of its message, is held by no
// time-out of the server's (before Postgres 17): whoever waits for its locks ends
// it. A lane whose trip takes longer than patience looks at who is in its way.
const (
	patience     = 2 * time.Second // then a lane looks at who is in its way, and again after a second
	stoppedAfter = 3 * time.Second // how old the transaction of a writer that says nothing may become
	lockTimeout  = 5 * time.Second // patience, another second, and time for what follows
)

// blocker is a session that others wait for and that waits for its client.
type blocker struct {
	postgres.Backend
	Began time.Time // its transaction
	App   string
	Ours  bool // an append that says nothing for too long
}

// What is in the way of a waiting backend, directly or through others, and stands
// still because its client does. A writer's transaction is milliseconds long, so
// one that is seconds old while its client is silent is that of a stopped process.
const blockersSQL = `with recursive way (pid) as (
		select unnest(pg_blocking_pids($1)) union select unnest(pg_blocking_pids(way.pid)) from way)
	select pid, backend_start, xact_start, application_name, application_name = $2 and xact_start < clock_timestamp() - $3::interval
	from way join pg_stat_activity using (pid)
	where datname = current_database() and backend_start is not null and xact_start is not null and wait_event_type = 'Client'`

// One transaction of one backend is ended, and only while it still stands still.
const endBlockerSQL = `select pg_terminate_backend(pid) from pg_stat_activity
	where pid = $1 and backend_start = $2 and xact_start = $3 and wait_event_type = 'Client'`

// clearWay looks after a trip that has begun on a backend. It returns what stops
// it, which is to be called when the trip has ended.
func (l *lane) clearWay(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	timer := time.AfterFunc(patience, func() {
		defer close(done)
		if err := l.endBlockers(ctx); err != nil && ctx.Err() == nil {
			l.store.log.Warn("looking for what is in the way of appends", "lane", l.name, "err", err)
		}
	})
	return func() {
		cancel()
		if !timer.Stop() {
			<-done
		}
	}
}

// endBlockers ends the sessions of stopped writers that the lane waits for, and
// says who else is in the way. It looks on until ctx ends.
func (l *lane) endBlockers(ctx context.Context) error {
	conn, err := postgres.Connect(ctx, postgres.Config{URL: l.store.cfg.DatabaseURL, AppName: "refold-append-blockers", StatementTimeout: 2 * time.Second})
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		conn.Close(closing)
	}()
	named := make(map[postgres.Backend]bool)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		rows, err := conn.Query(ctx, blockersSQL, l.self.PID, sessionName, stoppedAfter)
		if err != nil {
			return fmt.Errorf("looking for what blocks backend %d: %w", l.self.PID, err)
		}
		list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (b blocker, err error) {
			return b, row.Scan(&b.PID, &b.Started, &b.Began, &b.App, &b.Ours)
		})
		if err != nil {
			return fmt.Errorf("looking for what blocks backend %d: %w", l.self.PID, err)
		}
		for _, b := range list {
			if err := l.endBlocker(ctx, conn, b, named); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (l *lane) endBlocker(ctx context.Context, conn *pgx.Conn, b blocker, named map[postgres.Backend]bool) error {
	if !b.Ours {
		if b.App != sessionName && !named[b.Backend] {
			named[b.Backend] = true
			l.store.log.Error("a session keeps appends waiting and does nothing", "pid", b.PID, "application", b.App, "transaction", b.Began, "lane", l.name)
		}
		return nil
	}
	// The trip may end the moment the way is clear: what was done is said all the same.
	tag, err := conn.Exec(context.WithoutCancel(ctx), endBlockerSQL, b.PID, b.Started, b.Began)
	if err != nil {
		return fmt.Errorf("ending backend %d: %w", b.PID, err)
	}
	if tag.RowsAffected() > 0 {
		l.store.metrics.ended.Inc()
		l.store.log.Warn("ended the session of a writer that had stopped with locks in its hands", "pid", b.PID, "transaction", b.Began, "lane", l.name)
	}
	return nil
}
