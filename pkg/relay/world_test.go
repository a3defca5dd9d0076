package relay_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/relay"
)

var ctx = context.Background()

const (
	waitLimit = 60 * time.Second
	pollEvery = 20 * time.Millisecond
	slots     = 16
)

// world is a database with a category of 16 slots in 4 partitions, and a broker.
type world struct {
	t        *testing.T
	pool     *pgxpool.Pool
	brokers  []string
	topic    string
	category int16
	heads    map[int]int64 // by slot
	versions map[string]int64
}

func setup(t *testing.T, brokers []string) *world {
	t.Helper()
	w := &world{t: t, pool: devstack.MigratedDatabase(t), brokers: brokers, topic: "t" + event.NewID().String() + ".user", heads: map[int]int64{}, versions: map[string]int64{}}
	require.NoError(t, w.pool.QueryRow(ctx, `with c as (insert into refold.category (name, slots, partitions, topic) values ('User', 16, 4, $1) returning id),
		s as (insert into refold.slot (category, slot) select id, generate_series(0, 15) from c) select id from c`, w.topic).Scan(&w.category))
	return w
}

// add appends n events to 40 streams, one after the other.
func (w *world) add(n int) {
	w.t.Helper()
	var streams []string
	for i := range n {
		streams = append(streams, fmt.Sprintf("s%d", i%40))
	}
	w.addTo(64, streams...)
}

// addTo appends an event with a value of so many bytes to each of the streams.
func (w *world) addTo(size int, streams ...string) {
	w.t.Helper()
	now := time.Now()
	value := []byte("\x00\x00\x00\x00\x01" + strings.Repeat("v", size))
	var rows [][]any
	for _, stream := range streams {
		slot := event.SlotOf(stream, slots)
		w.heads[slot]++
		w.versions[stream]++
		rows = append(rows, []any{w.category, int16(slot), w.heads[slot], w.versions[stream], [16]byte(event.NewID()), now, now, stream, "UserCreated", value})
	}
	_, err := w.pool.CopyFrom(ctx, pgx.Identifier{"refold", "event"},
		[]string{"category", "slot", "seq", "version", "id", "time", "recorded", "stream", "type", "value"}, pgx.CopyFromRows(rows))
	require.NoError(w.t, err)
}

func (w *world) total() (n int64) {
	for _, seq := range w.heads {
		n += seq
	}
	return n
}

// running is a relay that runs.
type running struct {
	*relay.Relay
	registry *prometheus.Registry
	stop     func()
}

// start runs a relay until it is stopped, at the end of the test at the latest.
func (w *world) start(cfg relay.Config, bugs ...relay.Fault) running {
	w.t.Helper()
	cfg.DatabaseURL = w.pool.Config().ConnString()
	return w.startOn(cfg, bugs...)
}

// startOn is start with a database of the configuration's.
func (w *world) startOn(cfg relay.Config, bugs ...relay.Fault) running {
	w.t.Helper()
	if len(cfg.Kafka.Brokers) == 0 {
		cfg.Kafka = kafka.Config{Brokers: w.brokers}
	}
	run := running{registry: prometheus.NewRegistry()}
	run.Relay = relay.New(cfg, slog.New(slog.NewTextHandler(&logs{t: w.t}, nil)), run.registry)
	for _, bug := range bugs {
		run.Plant(bug)
	}
	runCtx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- run.Run(runCtx) }()
	run.stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(w.t, <-done)
	})
	w.t.Cleanup(run.stop)
	return run
}

// metric returns the sum of a gauge or counter over its labels.
func (r *running) metric(t *testing.T, name string) (sum float64) {
	t.Helper()
	families, err := r.registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func (w *world) client(options ...kgo.Opt) *kgo.Client {
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(w.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner())}, options...)...)
	require.NoError(w.t, err)
	w.t.Cleanup(client.Close)
	return client
}

func (w *world) admin() *kadm.Client { return kadm.NewClient(w.client()) }

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	_, err := w.pool.Exec(ctx, sql, args...)
	require.NoError(w.t, err)
}

func (w *world) text(sql string, args ...any) (s string) {
	w.t.Helper()
	require.NoError(w.t, w.pool.QueryRow(ctx, sql, args...).Scan(&s))
	return s
}

func (w *world) eventually(condition func() bool, message ...any) {
	w.t.Helper()
	require.Eventually(w.t, condition, waitLimit, pollEvery, message...)
}

// relayed returns how far the cursors are, in events.
func (w *world) relayed() (sum int64) {
	w.t.Helper()
	require.NoError(w.t, w.pool.QueryRow(ctx, `select coalesce(sum(s), 0)::bigint from refold.relay_partition, unnest(seqs) s`).Scan(&sum))
	return sum
}

func (w *world) awaitRelayed() {
	w.t.Helper()
	w.eventually(func() bool { return w.relayed() == w.total() }, "cursors reach the heads")
}

// crash makes the cursors forget, as a crash between acknowledgement and cursor.
func (w *world) crash() {
	w.exec(`update refold.relay_partition set compared = 0, seqs = array_fill(0::bigint, array[cardinality(slots)]),
		ids = array_fill('00000000-0000-0000-0000-000000000000'::uuid, array[cardinality(slots)])`)
}

// alarms returns why partitions are stopped, and stops why slots are.
func (w *world) alarms() string {
	return w.text(`select coalesce(string_agg(alarm, '; '), '') from refold.relay_partition`)
}

func (w *world) stops() string {
	return w.text(`select coalesce(string_agg(format('%s/%s %s: %s', slot, seq, kind, reason), '; ' order by slot), '') from refold.relay_stop`)
}

// topicState is what a reader from the beginning of the topic sees.
type topicState struct {
	seqs       map[int]int64 // by slot, without a gap
	duplicates int
	problems   []string
}

// read reads the whole topic and checks that the first occurrences of each slot
// are in order, in the right partition, and chained.
func (w *world) read() topicState {
	w.t.Helper()
	client := w.client(kgo.ConsumeTopics(w.topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, w.topic)
	require.NoError(w.t, err)
	left := make(map[int32]int64)
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	state := topicState{seqs: make(map[int]int64)}
	last := make(map[int]event.ID)
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		require.NoError(w.t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
			var e event.Event
			if kafka.Parse(r, "User", slots, 4, &e) != nil {
				return
			}
			switch {
			case e.Seq <= state.seqs[e.Slot]:
				state.duplicates++
			case e.Seq > state.seqs[e.Slot]+1:
				state.problems = append(state.problems, fmt.Sprintf("slot %d goes from seq %d to %d", e.Slot, state.seqs[e.Slot], e.Seq))
				state.seqs[e.Slot], last[e.Slot] = e.Seq, e.ID
			default:
				if last[e.Slot] != e.PrevID {
					state.problems = append(state.problems, fmt.Sprintf("slot %d seq %d follows %s, not %s", e.Slot, e.Seq, e.PrevID, last[e.Slot]))
				}
				state.seqs[e.Slot], last[e.Slot] = e.Seq, e.ID
			}
		})
	}
	return state
}

// whole checks that the topic holds the log, in order, and returns the number of
// duplicates.
func (w *world) whole() (duplicates int) {
	w.t.Helper()
	state := w.read()
	require.Empty(w.t, state.problems)
	require.Equal(w.t, w.heads, state.seqs)
	return state.duplicates
}

// logs shows what is logged with the test that it belongs to.
type logs struct{ t *testing.T }

func (l *logs) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}
