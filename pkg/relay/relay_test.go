package relay_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

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
	waitLimit = 20 * time.Second
	pollEvery = 20 * time.Millisecond
)

// world is a database with a category and a broker.
type world struct {
	t       *testing.T
	pool    *pgxpool.Pool
	brokers []string
	topic   string
	next    map[int]int64 // by slot
	prev    map[int]event.ID
}

func setup(t *testing.T, brokers []string) *world {
	t.Helper()
	w := &world{t: t, pool: devstack.MigratedDatabase(t), brokers: brokers, topic: "t" + event.NewID().String() + ".user", next: map[int]int64{}, prev: map[int]event.ID{}}
	_, err := w.pool.Exec(ctx, `with c as (insert into refold.category (name, slots, partitions, topic) values ('User', 16, 4, $1) returning id)
		insert into refold.slot (category, slot) select id, generate_series(0, 15) from c`, w.topic)
	require.NoError(t, err)
	return w
}

// add inserts n events by plain SQL and returns how many there are in all.
func (w *world) add(n int) {
	w.t.Helper()
	for i := range n {
		stream := fmt.Sprintf("s%d", i%40)
		slot := event.SlotOf(stream, 16)
		w.next[slot]++
		id := event.NewID()
		_, err := w.pool.Exec(ctx, `insert into refold.event (category, slot, seq, version, id, time, recorded, stream, type, value)
			select id, $1, $2, $2, $3, now(), now(), $4, 'UserCreated', '\x00000000016162' from refold.category`, slot, w.next[slot], [16]byte(id), stream)
		require.NoError(w.t, err)
	}
}

func (w *world) total() (n int64) {
	for _, seq := range w.next {
		n += seq
	}
	return n
}

// start runs a relay until the returned function is called.
func (w *world) start(cfg relay.Config) (stop func()) {
	w.t.Helper()
	cfg.DatabaseURL, cfg.Kafka = w.pool.Config().ConnString(), kafka.Config{Brokers: w.brokers}
	r := relay.New(cfg, slog.New(slog.NewTextHandler(logs{w.t}, nil)), prometheus.NewRegistry())
	runCtx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- r.Run(runCtx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			require.NoError(w.t, <-done)
		}
	}
	w.t.Cleanup(stop)
	return stop
}

func (w *world) client() *kgo.Client {
	client, err := kgo.NewClient(kgo.SeedBrokers(w.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(w.t, err)
	w.t.Cleanup(client.Close)
	return client
}

func (w *world) awaitRelayed() {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		var sum int64
		err := w.pool.QueryRow(ctx, `select coalesce(sum(s), 0) from refold.relay_partition, unnest(seqs) s`).Scan(&sum)
		return err == nil && sum == w.total()
	}, waitLimit, pollEvery, "cursors reach the heads")
}

// records reads the whole topic and checks that the first occurrences of each
// slot are in order, in the right partition, and chained. It returns the number
// of duplicates.
func (w *world) records() (duplicates int) {
	w.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.brokers...), kgo.ConsumeTopics(w.topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(w.t, err)
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, w.topic)
	require.NoError(w.t, err)
	var left int64
	ends.Each(func(o kadm.ListedOffset) { left += o.Offset })
	seqs, last := make(map[int]int64), make(map[int]event.ID)
	for left > 0 {
		fetches := client.PollFetches(ctx)
		require.NoError(w.t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			left--
			var e event.Event
			if kafka.Parse(r, "User", 16, 4, &e) != nil {
				return
			}
			switch {
			case e.Seq == seqs[e.Slot]+1:
				require.Equal(w.t, last[e.Slot], e.PrevID, "the chain")
				seqs[e.Slot], last[e.Slot] = e.Seq, e.ID
			case e.Seq <= seqs[e.Slot]:
				duplicates++
			default:
				w.t.Errorf("slot %d goes from seq %d to %d", e.Slot, seqs[e.Slot], e.Seq)
			}
		})
	}
	require.Equal(w.t, w.next, seqs)
	return duplicates
}

func (w *world) alarms() (all string) {
	require.NoError(w.t, w.pool.QueryRow(ctx, `select coalesce(string_agg(alarm, '; '), '') from refold.relay_partition`).Scan(&all))
	return all
}

func TestEveryEventIsRelayedOnceAndInOrder(t *testing.T) {
	t.Parallel()
	for name, brokers := range map[string]func(testing.TB) []string{"kfake": devstack.FakeKafka, "real": devstack.RealKafka} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setup(t, brokers(t))
			w.add(300)
			stop := w.start(relay.Config{})
			w.add(200)
			w.awaitRelayed()
			stop()
			w.add(100)
			w.start(relay.Config{})
			w.awaitRelayed()
			require.Zero(t, w.records(), "a graceful stop leaves no copies")
		})
	}
}

func TestSeveralRelaysShareThePartitions(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	stop := w.start(relay.Config{Owner: "one", Lease: 400 * time.Millisecond})
	w.add(100)
	w.awaitRelayed()
	w.start(relay.Config{Owner: "two", Lease: 400 * time.Millisecond})
	require.Eventually(t, func() bool {
		var one, two int
		err := w.pool.QueryRow(ctx, `select count(*) filter (where owner = 'one'), count(*) filter (where owner = 'two') from refold.relay_partition`).Scan(&one, &two)
		return err == nil && one == 2 && two == 2
	}, waitLimit, pollEvery)
	w.add(100)
	stop()
	w.add(100)
	w.awaitRelayed()
	w.records()
}

func TestTakeoverNotesWhatAFormerOwnerHasSent(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	w.add(200)
	stop := w.start(relay.Config{})
	w.awaitRelayed()
	stop()
	// As after a crash between acknowledgement and cursor.
	_, err := w.pool.Exec(ctx, `update refold.relay_partition set compared = 0, seqs = array_fill(0::bigint, array[cardinality(slots)]),
		ids = array_fill('00000000-0000-0000-0000-000000000000'::uuid, array[cardinality(slots)])`)
	require.NoError(t, err)
	w.start(relay.Config{})
	w.awaitRelayed()
	require.Zero(t, w.records(), "what is in the topic is not sent again")
}

func TestForeignRecordsAreCountedAndPassedOver(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	w.add(50)
	stop := w.start(relay.Config{})
	w.awaitRelayed()
	client := w.client()
	for partition := range int32(4) {
		require.NoError(t, client.ProduceSync(ctx, &kgo.Record{Topic: w.topic, Partition: partition, Key: []byte("x"), Value: []byte("junk")}).FirstErr())
	}
	w.add(50)
	w.awaitRelayed()
	stop()
	w.start(relay.Config{})
	require.Eventually(t, func() bool {
		var n int
		err := w.pool.QueryRow(ctx, `select sum(foreign_records) from refold.relay_partition`).Scan(&n)
		return err == nil && n == 4
	}, waitLimit, pollEvery)
	require.Empty(t, w.alarms())
	w.records()
}

func TestLostTailIsNamedAndNothingIsOverwritten(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	w.add(100)
	stop := w.start(relay.Config{})
	w.awaitRelayed()
	stop()
	// As after a failover that lost the last event of a slot, whose place another
	// event takes.
	var id [16]byte
	require.NoError(t, w.pool.QueryRow(ctx, `delete from refold.event e where (slot, seq) = (select slot, max(seq) from refold.event group by slot order by slot limit 1) returning id`).Scan(&id))
	_, err := w.pool.Exec(ctx, `update refold.relay_partition set compared = 0`)
	require.NoError(t, err)
	w.start(relay.Config{})
	require.Eventually(t, func() bool { return w.alarms() != "" }, waitLimit, pollEvery)
	require.Contains(t, w.alarms(), event.ID(id).String(), "the alarm names the event")
}

func TestRecreatedTopicStopsItsPartitions(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	w.add(50)
	stop := w.start(relay.Config{})
	w.awaitRelayed()
	stop()
	admin := kadm.NewClient(w.client())
	_, err := admin.DeleteTopic(ctx, w.topic)
	require.NoError(t, err)
	_, err = kafka.EnsureTopic(ctx, admin, w.topic, 4)
	require.NoError(t, err)
	w.add(50)
	w.start(relay.Config{})
	require.Eventually(t, func() bool { return w.alarms() != "" }, waitLimit, pollEvery)
	require.Contains(t, w.alarms(), "recreated")
}

// logs shows what is logged with the test that it belongs to.
type logs struct{ t *testing.T }

func (l logs) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}
