package relay_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/relay"
)

// A relay is paused with a request on its way. Its heir takes over, compares and
// goes on; only then does the request arrive. What it brings are copies, and the
// heir, which finds them between its own records, goes on.
func TestZombiesLateRecordsAreCopies(t *testing.T) {
	t.Parallel()
	broker, err := devstack.StartBroker(devstack.BrokerConfig{})
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	w := setup(t, broker.Addrs())
	w.add(100)
	zombie := w.start(relay.Config{Owner: "zombie", Lease: 10 * time.Minute, Poll: 20 * time.Millisecond})
	w.awaitRelayed()

	held, arrive := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(arrive) })
	t.Cleanup(release)
	cluster := broker.Cluster()
	first := true
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if first {
			first = false
			close(held)
			cluster.SleepControl(func() { <-arrive })
		}
		return nil, nil, false
	})
	w.add(200)
	<-held
	w.exec(`update refold.relay_partition set expires = '-infinity'`)
	w.exec(`delete from refold.relay_member`)
	w.start(relay.Config{Owner: "heir", Lease: 2 * time.Second, Poll: 20 * time.Millisecond})
	w.eventually(func() bool { return w.relayed() == w.total() }, "the heir has sent what the zombie's request holds")
	require.Zero(t, w.whole())

	release()
	w.add(40)
	w.awaitRelayed()
	w.eventually(func() bool { return zombie.metric(t, "refold_relay_fenced_total") == 4 }, "the zombie finds that it owns nothing")
	zombie.stop()
	copies := w.whole()
	require.NotZero(t, copies)
	require.LessOrEqual(t, copies, 240)
	require.Empty(t, w.alarms())
	require.Empty(t, w.stops())
	w.eventually(func() bool {
		return w.text(`select sum(compared) from refold.relay_partition`) == fmt.Sprint(w.total()+int64(copies))
	}, "the heir knows every record")
}
