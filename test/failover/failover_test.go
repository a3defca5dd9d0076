// Package failover breaks the servers under living relays: brokers of a cluster of
// three, and a Postgres whose standby is promoted without the tail of the log.
// Whatever happens, a reader of the topic meets each slot's events in order and
// without a gap, and what the database has lost is named.
package failover

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/relay"
)

var ctx = context.Background()

const (
	waitLimit = 90 * time.Second
	slots     = 32
)

// log appends to a category of 32 slots in 8 partitions.
type log struct {
	t        *testing.T
	pool     *pgxpool.Pool
	brokers  []string
	category eventstore.Category
	value    []byte // of every event

	mu       sync.Mutex // guards the rest
	heads    map[int]int64
	versions map[string]int64
}

func newLog(t *testing.T, url string, brokers []string) *log {
	t.Helper()
	pool, err := postgres.Open(ctx, postgres.Config{URL: url, MaxConns: 4})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.NoError(t, postgres.Migrate(ctx, pool))
	_, err = pool.Exec(ctx, `with c as (insert into refold.category (name, slots, partitions, topic) values ('User', 32, 8, $1) returning id)
		insert into refold.slot (category, slot) select id, generate_series(0, 31) from c`, "t"+event.NewID().String()+".user")
	require.NoError(t, err)
	all, err := eventstore.ReadCategories(ctx, pool)
	require.NoError(t, err)
	return &log{t: t, pool: pool, brokers: brokers, category: all[0], value: []byte("\x00\x00\x00\x00\x01value"), heads: make(map[int]int64), versions: make(map[string]int64)}
}

// add appends an event to each stream and tells whether they were committed.
func (l *log) add(pool *pgxpool.Pool, streams ...string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	var rows [][]any
	heads, versions := make(map[int]int64), make(map[string]int64)
	for _, stream := range streams {
		slot := event.SlotOf(stream, slots)
		heads[slot]++
		versions[stream]++
		rows = append(rows, []any{l.category.ID, int16(slot), l.heads[slot] + heads[slot], l.versions[stream] + versions[stream], [16]byte(event.NewID()), now, now, stream,
			"UserCreated", l.value})
	}
	if _, err := pool.CopyFrom(ctx, pgx.Identifier{"refold", "event"},
		[]string{"category", "slot", "seq", "version", "id", "time", "recorded", "stream", "type", "value"}, pgx.CopyFromRows(rows)); err != nil {
		return err
	}
	for slot, n := range heads {
		l.heads[slot] += n
	}
	for stream, n := range versions {
		l.versions[stream] += n
	}
	return nil
}

// streams returns n names of streams from the first on.
func streams(first, n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("s%d", first+i))
	}
	return names
}

// load appends until the returned function is called.
func (l *log) load() (stop func()) {
	done, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				ended <- nil
				return
			case <-time.After(5 * time.Millisecond): // a pace, not a wait
			}
			if err := l.add(l.pool, streams(i*7%200, 5)...); err != nil {
				ended <- err
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(done)
		require.NoError(l.t, <-ended)
	})
}

func (l *log) total() (n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, head := range l.heads {
		n += head
	}
	return n
}

// relay runs a relay until it is stopped, at the end of the test at the latest.
func (l *log) relay(owner, url string) (stop func()) {
	l.t.Helper()
	r := relay.New(relay.Config{Owner: owner, DatabaseURL: url, Lease: 3 * time.Second, Kafka: kafka.Config{Brokers: l.brokers}},
		slog.New(slog.NewTextHandler(testLog{l.t}, nil)).With("relay", owner), prometheus.NewRegistry())
	running, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- r.Run(running) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(l.t, <-done)
	})
	l.t.Cleanup(stop)
	return stop
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}

func (l *log) text(pool *pgxpool.Pool, sql string, args ...any) (s string) {
	if err := pool.QueryRow(ctx, sql, args...).Scan(&s); err != nil {
		return err.Error()
	}
	return s
}

const (
	relayedSQL = `select coalesce(sum(s), 0)::text from refold.relay_partition, unnest(seqs) s`
	ownersSQL  = `select count(distinct owner)::text from refold.relay_partition where expires > clock_timestamp()`
	stopsSQL   = `select coalesce(string_agg(slot || '/' || seq || ' ' || kind, ',' order by slot), '') from refold.relay_stop`
)

func (l *log) eventually(condition func() bool, message string) {
	l.t.Helper()
	require.Eventually(l.t, condition, waitLimit, 50*time.Millisecond, message)
}

func (l *log) awaitRelayed(pool *pgxpool.Pool) {
	l.t.Helper()
	l.eventually(func() bool { return l.text(pool, relayedSQL) == fmt.Sprint(l.total()) }, "everything is relayed")
}

// awaitProgress waits until what is committed now is relayed, while the load goes
// on.
func (l *log) awaitProgress(after string) {
	l.t.Helper()
	goal := l.total()
	l.eventually(func() bool {
		var n int64
		_, err := fmt.Sscan(l.text(l.pool, relayedSQL), &n)
		return err == nil && n >= goal
	}, "events flow after "+after)
}

// verify reads the whole topic and compares it with the log.
func (l *log) verify(pool *pgxpool.Pool) relay.TopicReport {
	l.t.Helper()
	report, err := relay.VerifyTopic(ctx, pool, kafka.Config{Brokers: l.brokers}, l.category, 5*time.Second)
	require.NoError(l.t, err)
	require.Equal(l.t, l.total(), report.Records-report.Duplicates)
	return report
}

// Brokers die and come back, leaders move, relays come and go, all under load:
// nothing is lost, and first occurrences stay in order.
func TestBrokersFailUnderLivingRelays(t *testing.T) {
	cluster := devstack.OwnKafka(t, devstack.KafkaConfig{Nodes: 3}) // it replicates to three and acknowledges from two on
	server, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	url := server.URL("postgres")
	l := newLog(t, url, cluster.Brokers())
	stopLoad := l.load()
	defer stopLoad()
	one := l.relay("one", url)
	l.relay("two", url)
	l.eventually(func() bool { return l.text(l.pool, ownersSQL) == "2" }, "two share the partitions")
	l.awaitProgress("the start")

	require.NoError(t, cluster.Kill(0))
	l.awaitProgress("the death of a broker")
	three := l.relay("three", url)
	l.eventually(func() bool { return l.text(l.pool, ownersSQL) == "3" }, "a third takes its share with a broker down")
	require.NoError(t, cluster.Start(0))
	l.awaitProgress("its return")

	require.NoError(t, cluster.Kill(1))
	require.NoError(t, cluster.Kill(2)) // too few are in sync: nothing is acknowledged
	require.NoError(t, cluster.Launch(1))
	require.NoError(t, cluster.Launch(2))
	waiting, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	require.NoError(t, cluster.Await(waiting))
	l.awaitProgress("the death of two")

	one()
	require.NoError(t, cluster.Stop(1))
	l.awaitProgress("a broker that left, and a relay")
	require.NoError(t, cluster.Start(1))
	three()
	stopLoad()
	l.awaitRelayed(l.pool)
	report := l.verify(l.pool)
	t.Logf("%d records, %d copies", report.Records, report.Duplicates)
	require.Empty(t, l.text(l.pool, stopsSQL))
}

// The primary dies before its standby has replayed the last events, which Kafka
// has already: the slots that lost any are named and stopped, all others flow, and
// the lost events come back from the topic.
func TestPromotedStandbyHasLostTheTail(t *testing.T) {
	primary, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, primary.Close()) })
	l := newLog(t, primary.URL("postgres"), devstack.RealKafka(t))
	standby, err := primary.Standby(ctx)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, standby.Close()) })
	either := fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?target_session_attrs=read-write", primary.Port(), standby.Port())
	l.relay("living", either)
	for range 20 {
		require.NoError(t, l.add(l.pool, streams(0, 100)...))
	}
	l.awaitRelayed(l.pool)
	require.NoError(t, standby.CatchUp(ctx))
	require.NoError(t, standby.PauseReplay(ctx))

	lost := []string{"s1", "s2", "s3", "s1", "s2", "s1"}
	lostSlots := make(map[int]int64) // the first seq that is lost
	for _, s := range lost {
		slot := event.SlotOf(s, slots)
		if lostSlots[slot] == 0 {
			lostSlots[slot] = l.heads[slot] + 1
		}
	}
	require.NoError(t, l.add(l.pool, lost...))
	l.awaitRelayed(l.pool)
	require.NoError(t, primary.Stop("immediate"))
	require.NoError(t, standby.Promote(ctx))

	promoted, err := postgres.Open(ctx, postgres.Config{URL: standby.URL("postgres"), MaxConns: 4})
	require.NoError(t, err)
	t.Cleanup(promoted.Close)
	var others []string
	for _, s := range streams(0, 100) {
		if lostSlots[event.SlotOf(s, slots)] == 0 {
			others = append(others, s)
		}
	}
	require.NoError(t, l.add(promoted, others...))
	l.relay("restarted", either)
	var want string
	for slot := range slots {
		if seq := lostSlots[slot]; seq > 0 {
			want += fmt.Sprintf(",%d/%d diverged", slot, seq)
		}
	}
	l.eventually(func() bool { return l.text(promoted, stopsSQL) == want[1:] }, "each slot that has lost events is stopped at its first lost one")
	l.eventually(func() bool {
		return l.text(promoted, relayedSQL) == fmt.Sprint(l.total()-int64(len(lost)))
	}, "the others flow")
	for slot := range lostSlots {
		n, err := relay.Restore(ctx, promoted, kafka.Config{Brokers: l.brokers}, l.category, slot)
		require.NoError(t, err)
		t.Logf("slot %d: %d events are back", slot, n)
	}
	require.NoError(t, l.add(promoted, lost...))
	l.awaitRelayed(promoted)
	require.Empty(t, l.text(promoted, stopsSQL))
	report := l.verify(promoted)
	require.LessOrEqual(t, report.Duplicates, int64(len(lost)), "nothing but what was in flight at the end of the primary")
}
