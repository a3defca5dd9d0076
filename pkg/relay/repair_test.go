package relay_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/relay"
)

func (w *world) asCategory() eventstore.Category {
	w.t.Helper()
	all, err := eventstore.ReadCategories(ctx, w.pool)
	require.NoError(w.t, err)
	return all[0]
}

// quick is a relay that looks at everything often.
var quick = relay.Config{Lease: 2 * time.Second}

// loseTail removes the last n events of a stream's slot, as a failover to a standby
// that was behind does: with the cursor's knowledge of them.
func (w *world) loseTail(stream string, n int64) (lost []string) {
	w.t.Helper()
	slot := event.SlotOf(stream, slots)
	head := w.heads[slot] - n
	rows, err := w.pool.Query(ctx, `delete from refold.event where slot = $1 and seq > $2 returning id::text, stream`, slot, head)
	require.NoError(w.t, err)
	defer rows.Close()
	for rows.Next() {
		var id, of string
		require.NoError(w.t, rows.Scan(&id, &of))
		lost = append(lost, id)
		w.versions[of]--
	}
	w.heads[slot] = head
	at := slot/4 + 1
	w.exec(`update refold.relay_partition set seqs[$1] = $2, compared = 0, ids[$1] = (select id from refold.event where slot = $3 and seq = $2) where partition = $4`,
		at, head, slot, slot%4)
	return lost
}

func (w *world) awaitStop() {
	w.t.Helper()
	w.eventually(func() bool { return w.stops() != "" }, "the divergence is found")
}

func TestLostTailStopsItsSlotAndComesBack(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	w.add(100)
	w.addTo(64, "s1", "s1", "s1")
	r := w.start(quick)
	w.awaitRelayed()
	r.stop()
	before := w.read().seqs
	lost := w.loseTail("s1", 3)
	r = w.start(quick)
	w.awaitStop()
	require.Contains(t, w.stops(), "diverged")
	require.Contains(t, w.stops(), lost[0])
	require.Contains(t, w.stops(), fmt.Sprintf("`writer repair User --slot=%d --restore`", event.SlotOf("s1", slots)))
	w.addTo(64, "s2", "s3") // other slots flow, of the same partition too
	w.eventually(func() bool { return w.relayed() == w.total() })
	w.eventually(func() bool { return r.metric(t, "refold_relay_stopped_slots") == 1 })
	require.Empty(t, w.alarms())
	r.stop()
	r = w.start(quick)
	w.eventually(func() bool { return r.metric(t, "refold_relay_stopped_slots") == 1 }, "it survives a restart")

	slot := event.SlotOf("s1", slots)
	n, err := relay.Restore(ctx, w.pool, kafka.Config{Brokers: w.brokers}, w.asCategory(), slot)
	require.NoError(t, err)
	require.Equal(t, 3, n)
	w.heads[slot], w.versions["s1"] = before[slot], w.versions["s1"]+3
	w.addTo(64, "s1")
	w.awaitRelayed()
	w.eventually(func() bool { return r.metric(t, "refold_relay_stopped_slots") == 0 })
	require.Zero(t, w.whole())
	_, err = relay.VerifyTopic(ctx, w.pool, kafka.Config{Brokers: w.brokers}, w.asCategory(), time.Second)
	require.NoError(t, err, "what came back is byte for byte what was relayed")
}

func TestLostTailWhosePlacesAreTakenNeedsADecision(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	w.add(100)
	w.addTo(64, "s1", "s1", "s1")
	r := w.start(quick)
	w.awaitRelayed()
	r.stop()
	w.loseTail("s1", 2)
	w.addTo(64, "s1", "s1", "s1", "s1") // others take their places
	w.start(quick)
	w.awaitStop()
	slot := event.SlotOf("s1", slots)
	_, err := relay.Restore(ctx, w.pool, kafka.Config{Brokers: w.brokers}, w.asCategory(), slot)
	require.ErrorIs(t, err, relay.ErrTaken)
	require.NotZero(t, w.stops(), "a repair that was refused changes nothing")
	require.ErrorIs(t, relay.KeepLog(ctx, w.pool, kafka.Config{Brokers: w.brokers}, w.asCategory(), (slot+1)%slots), relay.ErrNotDiverged)
	w.eventually(func() bool {
		err := relay.KeepLog(ctx, w.pool, kafka.Config{Brokers: w.brokers}, w.asCategory(), slot)
		require.True(t, err == nil || errors.Is(err, relay.ErrComparing), "%v", err)
		return err == nil
	})
	w.awaitRelayed()
	require.Empty(t, w.stops())
	state := w.read()
	require.Equal(t, w.heads, state.seqs)
	require.Len(t, state.problems, 1, "readers notice by the chain that they have applied a lost event: %v", state.problems)
	report, err := relay.VerifyTopic(ctx, w.pool, kafka.Config{Brokers: w.brokers}, w.asCategory(), 10*time.Second)
	require.NoError(t, err, "the topic holds both branches, and it is known which is which")
	require.EqualValues(t, 2, report.Superseded)

	w.addTo(64, "s1")
	w.awaitRelayed()
	w.loseTail("s1", 1) // and once more
	w.addTo(64, "s1")
	_, err = relay.VerifyTopic(ctx, w.pool, kafka.Config{Brokers: w.brokers}, w.asCategory(), time.Second)
	require.ErrorIs(t, err, relay.ErrBroken, "a repair says nothing about what comes behind it")
}

// The events of a slot were lost while its relay lives on: it notices before it
// sends anything behind them.
func TestEventsLostUnderALivingRelay(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	w.add(100)
	w.addTo(64, "s1", "s1")
	r := w.start(quick)
	w.awaitRelayed()
	slot := event.SlotOf("s1", slots)
	w.exec(`delete from refold.event where slot = $1 and seq = $2`, slot, w.heads[slot])
	w.awaitStop()
	require.Contains(t, w.stops(), "the event table has no event there")
	w.addTo(64, "s2", "s3")
	w.eventually(func() bool { return r.metric(t, "refold_relay_published_events_total") == 104 }, "others flow")
}

func TestTopicMadeAnewIsRepublishedOnCommand(t *testing.T) {
	t.Parallel()
	for name, break_ := range map[string]func(w *world, admin *kadm.Client){
		"deleted": func(w *world, admin *kadm.Client) {},
		"made anew": func(w *world, admin *kadm.Client) {
			_, err := kafka.EnsureTopic(ctx, admin, w.topic, 4)
			require.NoError(w.t, err)
		},
	} {
		for _, alive := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := setup(t, devstack.FakeKafka(t))
				w.add(200)
				r := w.start(quick)
				w.awaitRelayed()
				if !alive {
					r.stop()
				}
				admin := w.admin()
				_, err := admin.DeleteTopic(ctx, w.topic)
				require.NoError(t, err)
				break_(w, admin)
				w.add(50)
				if !alive {
					w.start(quick)
				}
				w.eventually(func() bool { return strings.Count(w.alarms(), "writer repair User --republish") == 4 }, "all partitions are stopped")
				require.NoError(t, relay.Republish(ctx, w.pool, w.asCategory()))
				w.awaitRelayed()
				require.Empty(t, w.alarms())
				require.Zero(t, w.whole())
			})
		}
	}
}

func TestTruncatedTopic(t *testing.T) {
	t.Parallel()
	broker, err := devstack.StartBroker(devstack.BrokerConfig{})
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	w := setup(t, broker.Addrs())
	w.add(200)
	r := w.start(quick)
	w.awaitRelayed()
	require.NoError(t, broker.Cluster().DeleteRecords(w.topic, 1, 10))
	r.stop()
	w.start(quick)
	w.add(40)
	w.awaitRelayed() // what was compared is no loss to the relay
	require.Empty(t, w.alarms())
	w.crash()
	w.exec(`update refold.relay_partition set fence = fence + 1, expires = '-infinity'`)
	w.eventually(func() bool { return w.alarms() != "" }, "what was not compared is")
	require.Contains(t, w.alarms(), "begins at offset 10")
}

func TestTopicWithOtherPartitionsIsNamed(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	_, err := kafka.EnsureTopic(ctx, w.admin(), w.topic, 3)
	require.NoError(t, err)
	w.add(10)
	w.start(quick)
	w.eventually(func() bool { return w.alarms() != "" })
	require.Contains(t, w.alarms(), "has 3, its category has 4")
}

// offsets returns where the topic holds a slot's events from a seq on.
func (w *world) offsets(slot int, from int64) (at []int64) {
	w.t.Helper()
	client := w.client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{w.topic: {int32(slot % 4): kgo.NewOffset().AtStart()}}))
	for next, end := int64(0), w.end(slot); next < end; {
		fetches := client.PollFetches(ctx)
		require.NoError(w.t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			next = r.Offset + 1
			var e event.Event
			if kafka.Parse(r, "User", slots, 4, &e) == nil && e.Slot == slot && e.Seq >= from {
				at = append(at, r.Offset)
			}
		})
	}
	return at
}

// end returns the end of a slot's partition.
func (w *world) end(slot int) int64 {
	w.t.Helper()
	ends, err := w.admin().ListEndOffsets(ctx, w.topic)
	require.NoError(w.t, err)
	end, ok := ends.Lookup(w.topic, int32(slot%4))
	require.True(w.t, ok)
	return end.Offset
}

// A lost branch of two events was found by its first one, and the relay died before
// it compared the second. What the log has in their places is sent all the same.
func TestKeepLogDropsNothingOfTheLog(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	w.add(100)
	w.addTo(64, "s1", "s1")
	r := w.start(quick)
	w.awaitRelayed()
	r.stop()
	brokers, slot := kafka.Config{Brokers: w.brokers}, event.SlotOf("s1", slots)
	w.loseTail("s1", 2)
	cursor := w.heads[slot]
	branch := w.offsets(slot, cursor+1)
	require.Len(t, branch, 2)
	w.addTo(64, "s1", "s1", "s1") // others take their places
	stand := func(seq, offset, compared int64) {
		w.exec(`delete from refold.relay_stop`)
		w.exec(`insert into refold.relay_stop (category, generation, slot, seq, kind, topic_offset, reason)
			select category, generation, $1, $2, 'diverged', $3, 'of a test' from refold.relay_partition where partition = $4`, slot, seq, offset, slot%4)
		w.exec(`update refold.relay_partition set compared = $1 where partition = $2`, compared, slot%4)
	}
	kept := func() int64 {
		var seq int64
		require.NoError(t, w.pool.QueryRow(ctx, `select seqs[$1] from refold.relay_partition where partition = $2`, slot/4+1, slot%4).Scan(&seq))
		return seq
	}

	stand(cursor+1, branch[0], branch[1])
	require.ErrorIs(t, relay.KeepLog(ctx, w.pool, brokers, w.asCategory(), slot), relay.ErrComparing, "the end of the branch is not known")
	require.Contains(t, w.stops(), "of a test", "a repair that was refused changes nothing")

	// A stop at the second one alone, as earlier repairs have left behind.
	stand(cursor+2, branch[1], w.end(slot))
	require.NoError(t, relay.KeepLog(ctx, w.pool, brokers, w.asCategory(), slot))
	require.Equal(t, cursor, kept(), "no repair moves a cursor over what was not sent")
	w.start(quick)
	w.awaitRelayed()
	whole := func() {
		require.Empty(t, w.stops())
		report, err := relay.VerifyTopic(ctx, w.pool, brokers, w.asCategory(), 10*time.Second)
		require.NoError(t, err)
		require.EqualValues(t, 2, report.Superseded)
		require.Zero(t, report.Duplicates)
	}
	whole()

	require.NoError(t, relay.Republish(ctx, w.pool, w.asCategory()))
	w.eventually(func() bool { return w.relayed() == w.total() || w.stops() != "" })
	whole() // what was decided once does not stop the slot again
}

// An event is lost while its record is on its way: the slot stops, and the answer
// that comes afterwards holds up neither the partition's cursor nor the repair.
func TestEventLostOnItsWay(t *testing.T) {
	t.Parallel()
	broker, err := devstack.StartBroker(devstack.BrokerConfig{})
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	w := setup(t, broker.Addrs())
	w.add(100)
	w.start(quick)
	w.awaitRelayed()
	held, arrive := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(arrive) })
	t.Cleanup(release)
	broker.Cluster().ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		broker.Cluster().DropControl()
		close(held)
		broker.Cluster().SleepControl(func() { <-arrive })
		return nil, nil, false
	})
	slot := event.SlotOf("s1", slots)
	w.addTo(64, "s1")
	<-held
	w.exec(`delete from refold.event where slot = $1 and seq = $2`, slot, w.heads[slot])
	w.heads[slot]--
	w.versions["s1"]--
	w.addTo(64, "s1") // another takes its place
	w.awaitStop()
	release()
	w.eventually(func() bool {
		err := relay.KeepLog(ctx, w.pool, kafka.Config{Brokers: w.brokers}, w.asCategory(), slot)
		require.True(t, err == nil || errors.Is(err, relay.ErrComparing) || errors.Is(err, relay.ErrNotDiverged), "%v", err)
		return w.relayed() == w.total() && w.stops() == ""
	})
	report, err := relay.VerifyTopic(ctx, w.pool, kafka.Config{Brokers: w.brokers}, w.asCategory(), 10*time.Second)
	require.NoError(t, err)
	require.EqualValues(t, 1, report.Superseded)
}
