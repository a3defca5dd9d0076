package relay_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/relay"
)

// limit sets the largest batch that the topic takes.
func (w *world) limit(bytes string) {
	w.t.Helper()
	responses, err := w.admin().AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &bytes}}, w.topic)
	require.NoError(w.t, err)
	require.NoError(w.t, responses[0].Err)
}

// A topic's limit has shrunk below one event: its slot stops with the event named,
// all others flow, and nothing of the slot is read before the event once it goes on.
func TestRefusedRecordStopsItsSlotAlone(t *testing.T) {
	t.Parallel()
	for name, brokers := range map[string]func(testing.TB) []string{"kfake": devstack.FakeKafka, "real": devstack.RealKafka} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setup(t, brokers(t))
			w.add(40)
			r := w.start(relay.Config{})
			w.awaitRelayed()
			r.stop()
			w.limit("3000")
			w.addTo(64, "s1", "s2", "s1")
			w.addIncompressible("s1", 5000)
			w.add(400) // s1's slot has more behind it
			slot := event.SlotOf("s1", slots)
			bad := w.text(`select seq::text from refold.event where octet_length(value) > 5000`)

			r = w.start(relay.Config{RetryRefused: 200 * time.Millisecond, Lease: 2 * time.Second})
			others := func() bool {
				return w.text(`select count(*) from refold.relay_partition r, unnest(r.slots, r.seqs) u (slot, seq) where u.slot <> $1
					and u.seq < coalesce((select max(seq) from refold.event e where e.slot = u.slot), 0)`, slot) == "0"
			}
			w.eventually(others, "other slots flow")
			w.eventually(func() bool { return w.stops() != "" })
			require.Contains(t, w.stops(), "refused: the broker refuses event "+w.text(`select id::text from refold.event where octet_length(value) > 5000`))
			require.Contains(t, w.text(`select slot || '/' || seq from refold.relay_stop`), bad)
			w.eventually(func() bool { return r.metric(t, "refold_relay_stopped_slots") == 1 })
			troubles, err := relay.Troubles(ctx, w.pool)
			require.NoError(t, err)
			require.Len(t, troubles, 1)
			require.Equal(t, slot, *troubles[0].Slot)
			require.Empty(t, w.read().problems, "nothing of the slot is in the topic behind it")

			r.stop()
			r = w.start(relay.Config{RetryRefused: 200 * time.Millisecond, Lease: 2 * time.Second})
			w.add(40)
			w.eventually(others, "a restart keeps the slot stopped and the others flowing")
			w.eventually(func() bool { return r.metric(t, "refold_relay_stopped_slots") == 1 })

			w.limit("1048588")
			w.awaitRelayed()
			w.eventually(func() bool { return w.stops() == "" }, "the cause is gone")
			require.Zero(t, w.whole())
		})
	}
}

// addIncompressible appends an event with a value of random bytes.
func (w *world) addIncompressible(stream string, size int) {
	w.t.Helper()
	w.addTo(64, stream)
	slot := event.SlotOf(stream, slots)
	w.exec(`update refold.event set value = (select '\x0000000001'::bytea || string_agg(decode(md5(random()::text), 'hex'), '') from generate_series(1, $3 / 16 + 1))
		where slot = $1 and seq = $2`, slot, w.heads[slot], size)
}

// A batch that is refused for a reason that passes is sent again, halved.
func TestRefusedBatchesAreHalved(t *testing.T) {
	t.Parallel()
	broker, err := devstack.StartBroker(devstack.BrokerConfig{})
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	w := setup(t, broker.Addrs())
	w.add(2000)
	broker.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.InvalidRecord, Count: 6})
	w.start(relay.Config{RetryRefused: 100 * time.Millisecond})
	w.awaitRelayed()
	require.Zero(t, w.whole())
}

// Whatever a broker answers, first occurrences stay in order, and what it took
// without saying so is not sent twice.
func TestAnswersOfEveryKindKeepTheOrder(t *testing.T) {
	t.Parallel()
	for _, answer := range []*kerr.Error{kerr.NotLeaderForPartition, kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend, kerr.RequestTimedOut, kerr.OutOfOrderSequenceNumber,
		kerr.UnknownProducerID, kerr.InvalidProducerEpoch, kerr.CorruptMessage, kerr.KafkaStorageError, kerr.UnknownServerError, kerr.UnknownTopicOrPartition} {
		t.Run(answer.Message, func(t *testing.T) {
			t.Parallel()
			broker, err := devstack.StartBroker(devstack.BrokerConfig{})
			require.NoError(t, err)
			t.Cleanup(broker.Close)
			w := setup(t, broker.Addrs())
			w.add(500)
			broker.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: answer, Count: 3})
			w.start(relay.Config{BatchBytes: 10_000})
			w.awaitRelayed()
			require.Zero(t, w.whole())
		})
	}
}

// What keeps a partition from being sent to is named in its row.
func TestLastingTroubleIsNamed(t *testing.T) {
	t.Parallel()
	broker, err := devstack.StartBroker(devstack.BrokerConfig{})
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	w := setup(t, broker.Addrs())
	fault := broker.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.TopicAuthorizationFailed, Count: -1})
	w.add(100)
	w.start(relay.Config{Lease: 2 * time.Second})
	w.eventually(func() bool { return w.alarms() != "" })
	require.Contains(t, w.alarms(), "TOPIC_AUTHORIZATION_FAILED")
	fault.Remove()
	w.awaitRelayed()
	w.eventually(func() bool { return w.alarms() == "" })
	require.Zero(t, w.whole())
}
