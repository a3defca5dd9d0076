package relay_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/relay"
)

// Each test runs the relay as it is and with a bug planted, and the check that
// passes for the one must fail for the other.

// A broker takes nothing; the relay ends; the broker recovers. Whoever has moved
// cursors without acknowledgement has lost events.
func TestCursorsWaitForAcknowledgements(t *testing.T) {
	t.Parallel()
	lost := func(bugs ...relay.Fault) bool {
		broker, err := devstack.StartBroker(devstack.BrokerConfig{})
		require.NoError(t, err)
		t.Cleanup(broker.Close)
		w := setup(t, broker.Addrs())
		fault := broker.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
		w.add(200)
		r := w.start(quick, bugs...)
		ctx := t.Context()
		require.NoError(t, fault.Wait(ctx, 10))
		if len(bugs) > 0 {
			w.awaitRelayed()
		}
		require.Equal(t, len(bugs) > 0, w.relayed() > 0)
		r.stop()
		fault.Remove()
		r = w.start(quick)
		w.awaitRelayed()
		r.stop()
		return len(w.read().seqs) == 0 || len(w.read().problems) > 0
	}
	require.False(t, lost())
	require.True(t, lost(relay.CursorEarly), "the check sees what it guards against")
}

// The broker refuses one record: nothing of its slot may be read behind it.
func TestNothingPassesARefusedRecord(t *testing.T) {
	t.Parallel()
	passed := func(bugs ...relay.Fault) bool {
		w := setup(t, devstack.FakeKafka(t))
		w.add(40)
		r := w.start(quick)
		w.awaitRelayed()
		r.stop()
		w.limit("3000")
		w.addIncompressible("s1", 5000)
		w.add(200)
		r = w.start(relay.Config{RetryRefused: time.Hour}, bugs...)
		w.eventually(func() bool { return w.stops() != "" || w.relayed() == w.total() })
		w.eventually(func() bool { return w.relayed() > w.total()-60 })
		r.stop()
		return len(w.read().problems) > 0
	}
	require.False(t, passed())
	require.True(t, passed(relay.PassRefused))
}

// A relay that was thought dead lives on beside its successor: without the fence
// both carry everything from then on.
func TestZombieIsFenced(t *testing.T) {
	t.Parallel()
	copies := func(bugs ...relay.Fault) int {
		w := setup(t, devstack.FakeKafka(t))
		w.add(100)
		zombie := w.start(relay.Config{Owner: "zombie", Lease: 10 * time.Minute, Poll: 20 * time.Millisecond}, bugs...)
		w.awaitRelayed()
		zombie.Wake()
		w.exec(`update refold.relay_partition set expires = '-infinity'`)
		w.exec(`delete from refold.relay_member`) // it has not been heard of
		heir := w.start(relay.Config{Owner: "heir", Lease: 20 * time.Second, Poll: 20 * time.Millisecond}, bugs...)
		w.eventually(func() bool { return w.text(`select count(*) from refold.relay_partition where owner = 'heir'`) == "4" })
		for range 50 {
			w.add(40)
			w.eventually(func() bool { return w.relayed() >= w.total() })
		}
		heir.stop()
		zombie.stop()
		state := w.read()
		require.Empty(t, state.problems, "copies, and no disorder")
		require.Equal(t, w.heads, state.seqs)
		return state.duplicates
	}
	require.LessOrEqual(t, copies(), 200, "what the zombie had in flight, and until its next cursor")
	require.Greater(t, copies(relay.NoFence), 500)
}

// After a crash between acknowledgement and cursor the heir reads what the topic
// holds; without that it sends it again.
func TestTakeoverCompares(t *testing.T) {
	t.Parallel()
	copies := func(bugs ...relay.Fault) int {
		w := setup(t, devstack.FakeKafka(t))
		w.add(200)
		r := w.start(quick)
		w.awaitRelayed()
		r.stop()
		w.crash()
		r = w.start(quick, bugs...)
		w.awaitRelayed()
		r.stop()
		return w.whole()
	}
	require.Zero(t, copies())
	require.Equal(t, 200, copies(relay.NoCompare))
}
