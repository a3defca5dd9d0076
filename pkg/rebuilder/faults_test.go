package rebuilder

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/postgres"
)

// ownPostgres makes a world on a server that no other test uses.
func ownPostgres(t *testing.T, brokers []string, definitions ...string) (*world, *devstack.Postgres) {
	t.Helper()
	ctx := context.Background()
	server, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{Fsync: true}) // a crash is to lose nothing
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	pool, err := postgres.Open(ctx, postgres.Config{URL: server.URL("postgres"), MaxConns: 16})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.NoError(t, postgres.Migrate(ctx, pool))
	return setupOn(t, pool, brokers, definitions...), server
}

// visits counts how often a rebuild came to each of its points.
type visits struct {
	mu sync.Mutex
	n  map[string]int
}

func (v *visits) visit(point string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.n[point]++
	return v.n[point]
}

// restarted runs a rebuild and calls fault the first time that it comes to each
// point; afterwards the rows are the live ones, and no partition was loaded again
// that had been loaded before.
func (w *world) restarted(name string, options Options, fault func(point string)) {
	w.t.Helper()
	v := &visits{n: make(map[string]int)}
	r := w.rebuilder()
	r.cfg.LeaseTime = 10 * time.Second
	r.stopAt = func(point string) error {
		if v.visit(point) == 1 {
			fault(point)
		}
		if partition, is := strings.CutPrefix(point, "before load "); is && v.n["after load "+partition] > 0 {
			w.t.Errorf("%s is loaded a second time", partition)
		}
		return nil
	}
	done, err := r.Run(w.ctx, name, options, nil)
	require.NoError(w.t, err)
	require.Equal(w.t, Done, done.State)
	require.True(w.t, done.Report.OK, "%+v", done.Report)
	require.Equal(w.t, done.Version, w.active(name))
	for p := range 4 {
		require.Equal(w.t, 1, v.n[fmt.Sprintf("after load User/%d", p)])
	}
	w.settle(name, 1)
	w.settle(name, done.Version)
	require.Equal(w.t, w.rows(name, 1), w.rows(name, done.Version))
}

// Postgres is restarted in each step, in three ways: the rebuild waits and goes on.
func TestPostgresIsRestartedInEachStep(t *testing.T) {
	t.Parallel()
	w, server := ownPostgres(t, devstack.FakeKafka(t), ownYAML)
	w.history(60, 4)
	w.follow()
	w.settle("own", 1)
	ways := map[string]string{"within begin": "fast", "before step load": "crash", "within load User/1": "immediate", "within primary key": "crash", "before attach": "fast",
		"within step catch up": "immediate", "before step verify": "fast", "within step promote": "crash", "before promote": "immediate", "within promote": "crash"}
	w.restarted("own", Options{Parallel: 1, Verify: VerifyFull}, func(point string) {
		switch ways[point] {
		case "":
			return
		case "crash":
			require.NoError(t, server.Kill())
		default:
			require.NoError(t, server.Stop(ways[point]))
		}
		delete(ways, point)
		require.NoError(t, server.Start())
	})
	require.Empty(t, ways, "never came there")
}

// The broker is restarted in each step that reads from it.
func TestBrokerIsRestartedInEachStep(t *testing.T) {
	t.Parallel()
	kafka := devstack.OwnKafka(t, devstack.KafkaConfig{Nodes: 1})
	w, _ := ownPostgres(t, kafka.Brokers(), ownYAML)
	w.history(60, 4)
	w.follow()
	w.settle("own", 1)
	w.restarted("own", Options{Parallel: 1}, func(point string) {
		switch point {
		case "before load User/2", "before promote":
			require.NoError(t, kafka.Kill(0))
		case "before step verify": // in the middle of catching up
			require.NoError(t, kafka.Stop(0))
		default:
			return
		}
		require.NoError(t, kafka.Start(0))
	})
}
