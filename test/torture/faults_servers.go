package torture

import (
	"context"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

func restart(w *world, mode string) func() {
	w.history.fault("pg_ctl stop -m %s", mode)
	if err := w.postgres.Stop(mode); err != nil {
		w.history.fault("stopping Postgres: %v", err)
	}
	return func() { startPostgres(w) }
}

func crashPostgres(w *world, _ context.Context, _ *rand.Rand) func() {
	w.history.fault("kill -9 the postmaster")
	if err := w.postgres.Kill(); err != nil {
		w.history.fault("killing Postgres: %v", err)
	}
	return func() { startPostgres(w) }
}

func startPostgres(w *world) {
	if err := w.postgres.Start(); err != nil {
		w.history.fault("STARTING POSTGRES: %v", err)
	}
}

func cutSessions(w *world, ctx context.Context, _ *rand.Rand) func() {
	w.history.fault("pg_terminate_backend of every session")
	conn, err := pgx.Connect(ctx, w.database)
	if err != nil {
		w.history.fault("connecting: %v", err)
		return func() {}
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`); err != nil {
		w.history.fault("terminating: %v", err)
	}
	return func() {}
}

// takeSessions opens sessions until the server refuses, so that whoever needs a
// new one gets none.
func takeSessions(w *world, ctx context.Context, _ *rand.Rand) func() {
	var held []*pgx.Conn
	for range 300 {
		conn, err := pgx.Connect(ctx, w.database)
		if err != nil {
			break
		}
		held = append(held, conn)
	}
	w.history.fault("took %d database sessions, until none was left", len(held))
	return func() {
		for _, conn := range held {
			conn.Close(context.Background())
		}
	}
}

// longTransaction holds an old snapshot and an open transaction that has
// written, each in a session that does nothing.
func longTransaction(w *world, ctx context.Context, _ *rand.Rand) func() {
	w.history.fault("an old snapshot and an open writer")
	var held []*pgx.Conn
	for _, sql := range []string{
		`begin isolation level repeatable read; select count(*) from refold.event`,
		`create table if not exists public.foreigner (n int); begin; insert into public.foreigner values (1)`,
	} {
		conn, err := pgx.Connect(ctx, w.database)
		if err != nil {
			continue // with another fault at the same time
		}
		if _, err := conn.Exec(ctx, sql); err != nil {
			w.history.fault("holding a transaction: %v", err)
		}
		held = append(held, conn)
	}
	pause(ctx, 3*time.Second)
	return func() {
		for _, conn := range held {
			conn.Close(context.Background())
		}
	}
}

func fillDisk(w *world, _ context.Context, _ *rand.Rand) func() {
	if w.disk == nil {
		return func() {}
	}
	w.history.fault("the database's disk is full")
	if err := w.disk.fill(); err != nil {
		w.history.fault("filling the disk: %v", err)
	}
	return func() {
		if err := w.disk.free(); err != nil {
			w.history.fault("freeing the disk: %v", err)
		}
		if w.postgres.Pid() == 0 { // it panics when it cannot write its log
			startPostgres(w)
		}
	}
}

func killBroker(w *world, _ context.Context, rnd *rand.Rand) func() {
	node := rnd.IntN(w.nodes)
	w.history.fault("kill -9 broker %d", node)
	if err := w.kafka.Kill(node); err != nil {
		w.history.fault("killing broker: %v", err)
	}
	return func() {
		if err := w.kafka.Start(node); err != nil {
			w.history.fault("STARTING BROKER: %v", err)
		}
	}
}

func pauseBroker(w *world, _ context.Context, rnd *rand.Rand) func() {
	node := rnd.IntN(w.nodes)
	w.history.fault("SIGSTOP broker %d", node)
	pid := w.kafka.Pid(node)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		w.history.fault("stopping broker: %v", err)
	}
	return func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			w.history.fault("CONTINUING BROKER: %v", err)
		}
	}
}

func restartBrokers(w *world, ctx context.Context, _ *rand.Rand) func() {
	w.history.fault("restart all brokers")
	for node := range w.nodes {
		if err := w.kafka.Kill(node); err != nil {
			w.history.fault("killing broker: %v", err)
		}
	}
	pause(ctx, time.Second)
	return func() {
		for node := range w.nodes {
			if err := w.kafka.Launch(node); err != nil {
				w.history.fault("STARTING BROKER: %v", err)
			}
		}
		if err := w.kafka.Await(context.Background()); err != nil {
			w.history.fault("STARTING BROKERS: %v", err)
		}
	}
}
