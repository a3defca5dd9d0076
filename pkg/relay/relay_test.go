package relay_test

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/relay"
)

func TestEveryEventIsRelayedOnceAndInOrder(t *testing.T) {
	t.Parallel()
	for name, brokers := range map[string]func(testing.TB) []string{"kfake": devstack.FakeKafka, "real": devstack.RealKafka} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setup(t, brokers(t))
			w.add(3000)
			r := w.start(relay.Config{BatchBytes: 20_000})
			w.add(200)
			w.awaitRelayed()
			r.stop()
			w.add(100)
			r = w.start(relay.Config{})
			w.awaitRelayed()
			for range 50 {
				w.add(3)
				r.Wake()
			}
			w.awaitRelayed()
			require.Zero(t, w.whole(), "a graceful stop leaves no copies")
		})
	}
}

func TestEventsOfAnySizeAreRelayed(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	for i := range 60 {
		size := 100
		if i%3 == 0 {
			size = 300_000 // several times a batch, so that reads end by bytes
		}
		w.addTo(size, "s1", "s2", "s3")
	}
	w.start(relay.Config{BatchBytes: 64_000, BufferBytes: 200_000})
	w.awaitRelayed()
	require.Zero(t, w.whole())
}

func TestCommittedSlotsAreReadAtOnce(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	r := w.start(relay.Config{Poll: time.Hour, Lease: time.Minute})
	w.eventually(func() bool { return w.text(`select count(owner) from refold.relay_partition`) == "4" })
	for i := range 20 {
		w.add(1)
		if i%2 == 0 {
			r.Committed("User", []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
		} else {
			w.exec(`notify refold_log`)
		}
		w.awaitRelayed()
	}
	require.Zero(t, w.whole())
}

func TestSeveralRelaysShareThePartitions(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	one := w.start(relay.Config{Owner: "one", Lease: 4 * time.Second})
	w.add(100)
	w.awaitRelayed()
	w.start(relay.Config{Owner: "two", Lease: 4 * time.Second})
	w.eventually(func() bool {
		return w.text(`select string_agg(owner, ',' order by owner) from refold.relay_partition`) == "one,one,two,two"
	})
	w.add(100)
	one.stop()
	w.add(100)
	w.awaitRelayed()
	require.Zero(t, w.whole(), "moving partitions leaves no copies")
}

func TestLostSessionIsTakenUpAtOnce(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	w.add(100)
	r := w.start(relay.Config{Lease: time.Hour})
	w.awaitRelayed()
	w.exec(`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'refold-relay' and datname = current_database()`)
	w.add(100)
	r.Wake()
	w.awaitRelayed() // in seconds, not when the lease ends
	require.Zero(t, w.whole())
}

func TestTakeoverNotesWhatAFormerOwnerHasSent(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	w.add(5000)
	r := w.start(relay.Config{})
	w.awaitRelayed()
	r.stop()
	w.crash()
	w.start(relay.Config{})
	w.awaitRelayed()
	require.Zero(t, w.whole(), "what is in the topic is not sent again")
}

func TestForeignRecordsAreCountedAndPassedOver(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	w.add(50)
	r := w.start(relay.Config{Lease: 4 * time.Second})
	w.awaitRelayed()
	transactional := w.client(kgo.TransactionalID("somebody"))
	require.NoError(t, transactional.BeginTransaction()) // ends with a record that no reader is shown
	for partition := range int32(4) {
		require.NoError(t, transactional.ProduceSync(ctx, &kgo.Record{Topic: w.topic, Partition: partition, Key: []byte("x"), Value: []byte("junk")}).FirstErr())
	}
	require.NoError(t, transactional.EndTransaction(ctx, kgo.TryCommit))
	w.add(50)
	w.awaitRelayed()
	w.eventually(func() bool { return w.text(`select sum(foreign_records) from refold.relay_partition`) == "4" }, "found between our records")
	require.Equal(t, 4.0, r.metric(t, "refold_relay_foreign_records_total"))
	require.NoError(t, w.client().ProduceSync(ctx, &kgo.Record{Topic: w.topic, Partition: 1, Value: []byte("junk")}).FirstErr())
	w.eventually(func() bool { return w.text(`select sum(foreign_records) from refold.relay_partition`) == "5" }, "found while nothing is sent")
	require.Empty(t, w.alarms())
	require.Zero(t, w.whole())
}

func TestMetricsFollowConventions(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	w.add(10)
	r := w.start(relay.Config{})
	w.awaitRelayed()
	families, err := r.registry.Gather()
	require.NoError(t, err)
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
	require.Equal(t, 10.0, r.metric(t, "refold_relay_published_events_total"))
}

func TestBacklogAndOldTransactionsAreMeasured(t *testing.T) {
	t.Parallel()
	broker, err := devstack.StartBroker(devstack.BrokerConfig{})
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	w := setup(t, broker.Addrs())
	w.add(10)
	r := w.start(relay.Config{Lease: time.Second})
	w.awaitRelayed()
	tx, err := w.pool.Begin(ctx)
	require.NoError(t, err)
	defer tx.Rollback(ctx)
	_, err = tx.Exec(ctx, `set transaction isolation level repeatable read`)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `select 1 from refold.event limit 1`)
	require.NoError(t, err)
	broker.Close() // nothing can be sent any more
	w.add(70)
	w.eventually(func() bool {
		return r.metric(t, "refold_relay_backlog_events") == 70 && r.metric(t, "refold_relay_backlog_seconds") > 1 && r.metric(t, "refold_old_snapshot_seconds") > 1
	})
}
