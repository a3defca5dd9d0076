package engine_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/postgres"
)

// inPartition returns a stream of a partition.
func inPartition(partition int) string {
	for i := 0; ; i++ {
		if name := fmt.Sprintf("s%d", i); event.SlotOf(name, 4)%2 == partition {
			return name
		}
	}
}

func epochOf(partition int) string {
	return fmt.Sprintf(`select owner_epoch from refold.progress where partition = %d`, partition)
}

func seqsOf(partition int) string {
	return fmt.Sprintf(`select sum(s)::bigint from refold.progress, unnest(seqs) s where partition = %d`, partition)
}

func (w *world) check(events int64) {
	w.t.Helper()
	w.await("applied", applied, events)
	w.await("every event is in the rows once", counted, events)
	w.await("counts add up", unaccounted, 0)
}

func TestWorkerThatLosesItsSessionRecoversAlone(t *testing.T) {
	t.Parallel()
	w := setup(t)
	a, b := inPartition(0), inPartition(1)
	w.produce(w.event(a, "1"), w.event(b, "1"))
	w.start()
	w.check(2)
	for i := range 3 {
		_, err := w.pool.Exec(ctx, `select pg_terminate_backend(owner_pid) from refold.progress where partition = 0`)
		require.NoError(t, err)
		w.produce(w.event(a, "again"), w.event(b, "again"))
		w.check(int64(4 + 2*i))
	}
	w.await("it has claimed again", epochOf(0), 4)
	w.await("the other has not been disturbed", epochOf(1), 1)
}

// Progress that was seen never goes back (invariant 9), through crashes of the server
// too: batches wait for the disk.
func TestProgressThatWasSeenOutlivesTheServer(t *testing.T) {
	t.Parallel()
	server, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	pool, err := postgres.Open(ctx, postgres.Config{URL: server.URL("postgres")})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.NoError(t, postgres.Migrate(ctx, pool))
	w := setupIn(t, pool, definition)
	w.start()
	for n := range int64(5) {
		w.produce(w.event(inPartition(0), fmt.Sprint(n)))
		w.await("applied", applied, n+1)
		require.NoError(t, server.Stop("immediate"))
		require.NoError(t, server.Start())
		w.pool.Reset()
		w.await("a session", `select 1`, 1)
		var after int64
		require.NoError(t, w.pool.QueryRow(ctx, applied).Scan(&after))
		require.Equal(t, n+1, after)
	}
}

// A member keeps its partition when somebody claims it who goes away again, as a
// process does that was paused.
func TestFencedWorkerClaimsAgainWhileItIsAMember(t *testing.T) {
	t.Parallel()
	w := setup(t)
	a, b := inPartition(0), inPartition(1)
	w.produce(w.event(a, "1"), w.event(b, "1"))
	w.start()
	w.check(2)
	_, err := w.pool.Exec(ctx, `select refold.progress_claim('logins', 1, 'User', 1, 0, 'late', null, 0)`)
	require.NoError(t, err)
	w.produce(w.event(a, "2"), w.event(b, "2"), w.event(a, "3"))
	w.check(5)
	w.await("it was fenced and has claimed again", epochOf(0), 3)
	w.await("the other has not been disturbed", epochOf(1), 1)
}

// While one partition cannot commit, the others flow, however many records come
// for it: the poll loop waits for nobody.
func TestPartitionThatWaitsHoldsNoOtherUp(t *testing.T) {
	t.Parallel()
	w := setup(t)
	a, b := inPartition(0), inPartition(1)
	w.produce(w.event(a, "1"), w.event(b, "1"))
	w.start(func(c *engine.Config) { c.QueueBytes = 1 })
	w.check(2)
	tx, err := w.pool.Begin(ctx)
	require.NoError(t, err)
	defer tx.Rollback(ctx)
	_, err = tx.Exec(ctx, `select from refold.progress where partition = 0 for update`)
	require.NoError(t, err)
	const rounds = 6
	for i := range rounds {
		var many []*event.Event
		for range 300 {
			many = append(many, w.event(a, "x"))
		}
		w.produce(append(many, w.event(b, "x"))...)
		w.await("the other partition flows", seqsOf(1), int64(2+i))
	}
	require.NoError(t, tx.Rollback(ctx))
	w.check(2 + rounds*301)
	w.await("nobody has claimed again", epochOf(0), 1)
}

func TestGapLongerThanABatchIsFilled(t *testing.T) {
	t.Parallel()
	w := setup(t)
	first := w.event("a", "1")
	for range 400 {
		w.event("a", "x")
	}
	last := w.event("a", "2")
	w.produce(first, last)
	w.start(func(c *engine.Config) { c.MaxBatch = 30 })
	w.check(402)
}

// A record of ours that is damaged beyond recognition leaves no gap in front of
// anything when it was the last one of its slot.
func TestEventOfAnUnreadableLastRecordIsNotForgotten(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.produce(w.event("a", "1"))
	w.start()
	w.check(1)
	e := w.event("a", "2")
	require.NoError(t, w.client.ProduceSync(ctx, &kgo.Record{Topic: "refold.user", Partition: int32(e.Slot % 2), Key: []byte("a"), Value: e.Value}).FirstErr())
	w.check(2)
	w.produce(w.event("a", "3"))
	w.check(3)
}

// lostCommit has an engine commit a batch whose bytes are held back on their way
// to the server while the engine gives the connection up.
func lostCommit(t *testing.T) (*world, *devstack.Proxy) {
	t.Helper()
	w := setup(t)
	config, err := pgconn.ParseConfig(w.pool.Config().ConnString())
	require.NoError(t, err)
	proxy := devstack.StartProxy(t, fmt.Sprintf("%s:%d", config.Host, config.Port))
	w.produce(w.event("a", "1"))
	w.start(func(c *engine.Config) { c.DatabaseURL = proxy.URL(c.DatabaseURL) })
	w.check(1)
	proxy.HoldWhen(devstack.ToServer, func(read []byte) bool { return bytes.Contains(read, []byte("on its way")) })
	w.produce(w.event("a", "2"), w.event("a", "on its way"))
	proxy.AwaitHeld(devstack.ToServer)
	proxy.Sever()
	return w, proxy
}

func TestCommitWithALostReplyThatArrivesIsNotRepeated(t *testing.T) {
	t.Parallel()
	w, proxy := lostCommit(t)
	proxy.Release(devstack.ToServer) // the batch and the claim behind it race
	w.check(3)
	w.produce(w.event("a", "3"))
	w.check(4)
}

func TestCommitThatArrivesAfterAnotherClaimChangesNothing(t *testing.T) {
	t.Parallel()
	w, proxy := lostCommit(t)
	partition := event.SlotOf("a", 4) % 2
	_, err := w.pool.Exec(ctx, `select refold.progress_claim('logins', 1, 'User', 1, $1, 'another', null, 0)`, partition)
	require.NoError(t, err)
	proxy.Release(devstack.ToServer)
	w.check(3)
	w.await("the engine was fenced and has claimed again", epochOf(partition), 3)
}

// An owner whose process is stopped in the middle of a commit holds the row.
func TestSessionOfAStoppedOwnerIsEnded(t *testing.T) {
	t.Parallel()
	w := setup(t)
	conn, err := pgx.Connect(ctx, w.pool.Config().ConnString())
	require.NoError(t, err)
	defer conn.Close(ctx)
	partition := event.SlotOf("a", 4) % 2
	_, err = conn.Exec(ctx, `begin; select refold.progress_claim('logins', 1, 'User', 1, `+fmt.Sprint(partition)+`, 'stopped', null, 0); commit;
		begin; update refold.progress set updated = now()`)
	require.NoError(t, err)
	w.produce(w.event("a", "1"))
	w.start()
	w.check(1)
	require.Error(t, conn.Ping(ctx), "its session is ended")
}

func TestTruncatedTopicStandsWithAnAlarmAndTheOthersFlow(t *testing.T) {
	t.Parallel()
	w := setup(t)
	a, b := inPartition(0), inPartition(1)
	w.produce(w.event(a, "1"), w.event(b, "1"))
	stop := w.start()
	w.check(2)
	stop()
	w.produce(w.event(a, "2"), w.event(a, "3"), w.event(b, "2"))
	offsets := make(kadm.Offsets)
	offsets.AddOffset("refold.user", 0, 2, -1)
	_, err := kadm.NewClient(w.client).DeleteRecords(ctx, offsets)
	require.NoError(t, err)
	w.start()
	w.await("the partition says why it stands", `select count(*) from refold.progress where partition = 0 and alarm like '%does not have the offset%'`, 1)
	w.await("the other one flows", seqsOf(1), 2)
	w.await("nothing is skipped", seqsOf(0), 1)
	w.awaitMetric("refold_projection_stopped_partitions", 1)
}

// awaitMetric waits until the sum of a metric over all labels has a value.
func (w *world) awaitMetric(name string, want float64) {
	w.t.Helper()
	var got float64
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		families, err := w.metrics.Gather()
		require.NoError(w.t, err)
		got = 0
		for _, f := range families {
			if f.GetName() == name {
				for _, m := range f.GetMetric() {
					got += m.GetGauge().GetValue()
				}
			}
		}
		if got == want {
			return
		}
	}
	w.t.Fatalf("%s is %v, want %v", name, got, want)
}

// A topic that holds a branch which the log has lost, and an operator has decided
// about, is folded as the log has it, though the lost branch comes first and is
// the longer one.
func TestALostBranchIsPassedOverOnceItIsRepaired(t *testing.T) {
	t.Parallel()
	w := setup(t)
	first := w.event("a", "1")
	w.produce(first, w.unwritten("a", "lost"), w.unwritten("a", "lost"))
	w.seqs[first.Slot], w.last[first.Slot] = 1, first.ID
	topic, err := kafka.ReadTopic(ctx, kadm.NewClient(w.client), "refold.user")
	require.NoError(t, err)
	_, err = w.pool.Exec(ctx, `insert into refold.relay_repair (category, generation, slot, seq, until_offset, topic_id) select id, generation, $1, 2, 3, $2 from refold.category`,
		first.Slot, topic.ID)
	require.NoError(t, err)
	w.produce(w.event("a", "2"))
	w.start()
	w.check(2)
	w.await("none is stopped", stoppedSlots, 0)
}
