package torture

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/test/platform"
)

// world is what a run can break.
type world struct {
	history    *history
	postgres   *devstack.Postgres
	kafka      *devstack.Kafka
	nodes      int
	database   string
	topic      string
	writers    []*platform.Program
	projectors []*platform.Program
	queries    []*platform.Program
}

// fault breaks one thing and returns what heals it again.
type fault struct {
	name  string
	apply func(*world, context.Context, *rand.Rand) (heal func())
}

var faults = []fault{
	{"kill a writer", func(w *world, _ context.Context, rnd *rand.Rand) func() { return kill(w, pick(rnd, w.writers)) }},
	{"kill a projector", func(w *world, _ context.Context, rnd *rand.Rand) func() { return kill(w, pick(rnd, w.projectors)) }},
	{"kill a query server", func(w *world, _ context.Context, rnd *rand.Rand) func() { return kill(w, pick(rnd, w.queries)) }},
	{"pause a writer", func(w *world, _ context.Context, rnd *rand.Rand) func() { return stop(w, pick(rnd, w.writers)) }},
	{"pause a projector", func(w *world, _ context.Context, rnd *rand.Rand) func() { return stop(w, pick(rnd, w.projectors)) }},
	{"end a writer gracefully", func(w *world, _ context.Context, rnd *rand.Rand) func() { return terminate(w, pick(rnd, w.writers)) }},
	{"end a projector gracefully", func(w *world, _ context.Context, rnd *rand.Rand) func() { return terminate(w, pick(rnd, w.projectors)) }},
	{"restart Postgres fast", func(w *world, _ context.Context, _ *rand.Rand) func() { return restart(w, "fast") }},
	{"restart Postgres immediately", func(w *world, _ context.Context, _ *rand.Rand) func() { return restart(w, "immediate") }},
	{"crash Postgres", crashPostgres},
	{"cut all database sessions", cutSessions},
	{"kill a broker", killBroker},
	{"produce junk", produceJunk},
}

func pick(rnd *rand.Rand, programs []*platform.Program) *platform.Program {
	return programs[rnd.IntN(len(programs))]
}

func kill(w *world, p *platform.Program) func() {
	w.history.fault("kill -9 %s", p.Name)
	p.Kill()
	return p.Launch
}

func stop(w *world, p *platform.Program) func() {
	w.history.fault("SIGSTOP %s", p.Name)
	p.Pause()
	return p.Resume
}

func terminate(w *world, p *platform.Program) func() {
	code, took := p.Stop()
	w.history.fault("SIGTERM %s: exit %d after %v", p.Name, code, took.Round(time.Millisecond))
	return p.Launch
}

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

// breakThings applies one fault after another, heals each after a while, and
// returns when ctx ends, with everything healed.
func (w *world) breakThings(ctx context.Context, rnd *rand.Rand, only []string) {
	pause(ctx, 2*time.Second)
	for ctx.Err() == nil {
		f := faults[rnd.IntN(len(faults))]
		if len(only) > 0 && !contains(only, f.name) {
			continue
		}
		heal := f.apply(w, ctx, rnd)
		pause(ctx, time.Duration(500+rnd.IntN(4000))*time.Millisecond)
		heal()
		w.history.fault("healed: %s", f.name)
		pause(ctx, time.Duration(1000+rnd.IntN(3000))*time.Millisecond)
	}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
