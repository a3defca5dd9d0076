package torture

import (
	"context"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/test/platform"
)

// How long things are broken (REFOLD_TORTURE, default 30 s), by which schedule
// (REFOLD_SEED, default by the clock) and on how many brokers (REFOLD_BROKERS,
// default 1). `make torture` sets ten minutes and three brokers.
func settings(t *testing.T) (duration time.Duration, seed uint64, nodes int) {
	t.Helper()
	duration, seed, nodes = 30*time.Second, uint64(time.Now().UnixNano()), 1
	var err error
	if s := os.Getenv("REFOLD_TORTURE"); s != "" {
		duration, err = time.ParseDuration(s)
		require.NoError(t, err)
	}
	if s := os.Getenv("REFOLD_SEED"); s != "" {
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	if s := os.Getenv("REFOLD_BROKERS"); s != "" {
		nodes, err = strconv.Atoi(s)
		require.NoError(t, err)
	}
	return duration, seed, nodes
}

// Nothing is lost, doubled or reordered while programs, database and brokers
// fail at random.
func TestInvariantsHoldUnderFaults(t *testing.T) {
	duration, seed, nodes := settings(t)
	t.Logf("REFOLD_SEED=%d REFOLD_TORTURE=%v REFOLD_BROKERS=%d", seed, duration, nodes)
	run := start(t, nodes)
	run.load(duration, seed, func(ctx context.Context, rnd *rand.Rand) { run.world.breakThings(ctx, rnd, onlyFaults()) })
	run.heal()
	counts := run.check()
	t.Logf("%d faults, %d appends acknowledged, %d conflicts, %d unknown; %d records, %d duplicates, %d foreign",
		len(run.world.history.faults), run.world.history.count(ok), run.world.history.count(conflict), run.world.history.count(unknown),
		counts.records, counts.duplicates, counts.foreign)
}

// onlyFaults narrows the schedule: REFOLD_FAULTS="kill a writer,crash Postgres".
func onlyFaults() []string {
	if s := os.Getenv("REFOLD_FAULTS"); s != "" {
		return strings.Split(s, ",")
	}
	return nil
}

// A run without faults leaves no extra copy in the topic (invariant 7) and no
// request without an answer.
func TestARunWithoutFaultsLeavesNoDuplicates(t *testing.T) {
	_, seed, _ := settings(t)
	run := start(t, 1)
	run.load(5*time.Second, seed, func(ctx context.Context, _ *rand.Rand) { <-ctx.Done() })
	run.heal()
	counts := run.check()
	require.Zero(t, counts.duplicates)
	require.Zero(t, counts.foreign)
	require.Zero(t, run.world.history.count(unknown))
	require.Positive(t, run.world.history.count(ok))
}

// run is one deployment under one workload.
type run struct {
	t        *testing.T
	world    *world
	clients  *workload
	baseline map[*platform.Program]resources
}

func start(t *testing.T, nodes int) *run {
	t.Helper()
	ctx := context.Background()
	w := &world{history: newHistory(), disk: mountDisk(t), nodes: nodes}
	// The log must fit the small disk, and sessions must be few enough to take.
	cfg := devstack.PostgresConfig{Settings: map[string]string{"max_wal_size": "128MB", "max_connections": "120", "shared_buffers": "64MB"}}
	if w.disk != nil {
		cfg.Dir = filepath.Join(w.disk.path, "data")
	}
	var err error
	w.postgres, err = devstack.StartPostgres(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { w.postgres.Close() })
	w.kafka, err = devstack.StartKafka(ctx, devstack.KafkaConfig{Nodes: nodes, Through: func(node int, addr string) string {
		if node > 0 {
			return addr
		}
		w.toBroker = devstack.StartProxy(t, addr)
		return w.toBroker.Addr()
	}})
	require.NoError(t, err)
	t.Cleanup(func() { w.kafka.Close() })

	w.database = w.postgres.URL("postgres")
	w.stack = platform.New(t, w.database, w.kafka.Brokers())
	w.stack.Schemas = filepath.Join(platform.Root(), "test", "torture", "schemas")
	w.topic = w.stack.Prefix + ".account"
	for i := range 2 {
		w.writers = append(w.writers, w.via(t, i).Writer())
		w.projectors = append(w.projectors, w.via(t, i).Projector())
		w.queries = append(w.queries, w.via(t, i).Queries())
	}
	load := &workload{history: w.history, streams: 200, problems: make(chan string, 100)}
	for _, p := range w.writers {
		load.writers = append(load.writers, platform.NewClient(t, p.URL()))
	}
	for _, p := range w.queries {
		load.queries = append(load.queries, platform.NewClient(t, p.URL()))
	}
	for _, c := range append(load.writers, load.queries...) {
		c.HTTP.Timeout = 5 * time.Second // a paused program must not hold its clients
	}
	r := &run{t: t, world: w, clients: load, baseline: make(map[*platform.Program]resources)}
	for _, p := range w.programs() {
		r.baseline[p] = readResources(p)
	}
	return r
}

// via returns the stack as the i-th program of its kind sees it: the first one
// of each reaches the database through a proxy of its own.
func (w *world) via(t *testing.T, i int) *platform.Stack {
	if i > 0 {
		return w.stack
	}
	proxy := devstack.StartProxy(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(w.postgres.Port())))
	w.toDatabase = append(w.toDatabase, proxy)
	stack := *w.stack
	stack.DatabaseURL = proxy.URL(w.database)
	return &stack
}

// load runs clients and, beside them, whatever breaks things, for a while.
func (r *run) load(duration time.Duration, seed uint64, breaking func(context.Context, *rand.Rand)) {
	ctx, cancel := context.WithTimeout(context.Background(), duration)
	defer cancel()
	var all sync.WaitGroup
	for id := range 16 {
		all.Go(func() { r.clients.client(ctx, id, rand.New(rand.NewPCG(seed, uint64(id)))) })
	}
	all.Go(func() { r.watchProgress(ctx) })
	all.Go(func() { breaking(ctx, rand.New(rand.NewPCG(seed, 1<<32))) })
	all.Wait()
}

// watchProgress checks invariant 9 as it goes: no seq, offset or epoch of a
// progress row ever decreases.
func (r *run) watchProgress(ctx context.Context) {
	last := make(map[string][]int64)
	for ctx.Err() == nil {
		if conn, err := pgx.Connect(ctx, r.world.database); err == nil {
			r.sampleProgress(ctx, conn, last)
			conn.Close(ctx)
		}
		pause(ctx, 100*time.Millisecond)
	}
}

func (r *run) sampleProgress(ctx context.Context, conn *pgx.Conn, last map[string][]int64) {
	rows, err := conn.Query(ctx, `select projection || '/' || version || '/' || partition, seqs || next_offset || owner_epoch from refold.progress`)
	if err != nil {
		return // the database is down: that is the fault of the hour
	}
	var name string
	var now []int64
	pgx.ForEachRow(rows, []any{&name, &now}, func() error {
		for i, before := range last[name] {
			if now[i] < before {
				r.clients.violation("9: progress %s went from %v to %v", name, last[name], now)
			}
		}
		last[name] = append([]int64(nil), now...)
		return nil
	})
}

// heal lets everything run again and waits until rows have caught up with the
// log (invariant 16: within a minute).
func (r *run) heal() {
	r.t.Helper()
	r.world.healNetwork()
	for _, p := range r.world.programs() {
		p.Resume()
		if !p.Running() {
			r.world.history.fault("%s had ended by itself", p.Name)
			r.t.Errorf("%s ended by itself:\n%s", p.Name, p.Log())
			continue
		}
		p.AwaitReady(time.Minute)
	}
	state := ""
	if !platform.Eventually(time.Minute, func() bool { state = r.behind(); return state == "" }) {
		r.t.Errorf("16: not caught up a minute after the faults healed: %s", state)
	}
}

// behind says what is missing until rows and topic stand at the end of the log.
func (r *run) behind() string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.world.database)
	if err != nil {
		return err.Error()
	}
	defer conn.Close(ctx)
	var missing string
	err = conn.QueryRow(ctx, `
		with head as (select slot, max(seq) seq from refold.event e join refold.category c on c.id = e.category where c.name = 'Account' group by slot),
		     done as (select projection, unnest(slots) slot, unnest(seqs) seq from refold.progress)
		select coalesce(string_agg(format('%s slot %s at %s of %s', projection, slot, done.seq, head.seq), '; '), '')
		from head join done using (slot) where done.seq < head.seq`).Scan(&missing)
	if err != nil {
		return err.Error()
	}
	return missing
}

// check checks every invariant on what is there now.
func (r *run) check() topicCounts {
	r.t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, r.world.database)
	require.NoError(r.t, err)
	events, err := readLog(ctx, conn)
	require.NoError(r.t, err)
	require.NotEmpty(r.t, events)

	broken := checkLog(r.world.history, events)
	counts, more, err := checkTopic(ctx, r.world.kafka.Brokers(), r.world.topic, events)
	require.NoError(r.t, err)
	broken = append(broken, more...)
	more, err = checkRows(ctx, conn, events)
	require.NoError(r.t, err)
	broken = append(broken, more...)
	close(r.clients.problems)
	for problem := range r.clients.problems {
		broken = append(broken, problem)
	}
	if len(broken) > 0 {
		r.t.Errorf("%d violations:\n%s\nfaults:\n%s", len(broken), strings.Join(broken[:min(40, len(broken))], "\n"), strings.Join(r.world.history.faults, "\n"))
	}
	require.NoError(r.t, conn.Close(ctx)) // no session may be left but the one that counts them
	r.checkResources()
	r.checkPrograms()
	return counts
}

// checkPrograms checks invariant 17 and that every program still ends in time.
func (r *run) checkPrograms() {
	programs := r.world.programs()
	slices.Reverse(programs)
	for _, p := range programs {
		if code, took := p.Stop(); code != 0 || took > 13*time.Second {
			r.t.Errorf("%s ended with %d after %v", p.Name, code, took)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.world.database)
	require.NoError(r.t, err)
	defer conn.Close(ctx)
	var sessions int
	const left = `select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'`
	gone := platform.Eventually(5*time.Second, func() bool {
		return conn.QueryRow(ctx, left).Scan(&sessions) == nil && sessions == 0
	})
	require.True(r.t, gone, "17: %d sessions are left in Postgres", sessions)
}
