package query_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// ownServer returns a world in a server that the test may stop.
func ownServer(t *testing.T) (*world, *devstack.Postgres) {
	t.Helper()
	server, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	pool, err := postgres.Open(ctx, postgres.Config{URL: server.URL("postgres"), MaxConns: 8})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.NoError(t, postgres.Migrate(ctx, pool))
	w := newWorldIn(t, pool)
	w.create()
	return w, server
}

// Whoever waits goes on when the server is back, with what the server that comes
// back proves, also of marks that were read before it went.
func TestQueriesThatWaitGoOnWhenTheServerIsBack(t *testing.T) {
	w, server := ownServer(t)
	r := w.replica()
	require.NotEqual(t, event.SlotOf("a", slots), event.SlotOf("c", slots))
	w.set("c", row(`{"n": 1}`))
	w.warm(r, items+"/c", "c", 1)
	for n, mode := range []string{"fast", "immediate"} {
		t.Log(mode)
		n += 2
		before := r.get(items).header.Get("Refold-Token") // of a branch that ends here
		appended, apply := w.append("a", n)
		paths := []string{items + "/a", items + "?key=eq.a", items + "/a/explain", items + "/export"}
		answers := make([]answer, len(paths))
		var asked, all sync.WaitGroup
		for i, path := range paths {
			asked.Add(1)
			all.Go(func() {
				asked.Done()
				answers[i] = r.get(path, "Refold-Token", appended.String()+","+before, "Refold-Wait", "30s")
			})
		}
		asked.Wait()
		require.NoError(t, server.Stop(mode))
		refused := r.get(items+"/a", "Refold-Token", appended.String(), "Refold-Wait", "300ms")
		require.Equal(t, http.StatusServiceUnavailable, refused.status, refused.body)
		require.Contains(t, refused.body, "/problems/unavailable", "the reason is the server and not the rows")
		require.NotEmpty(t, refused.header.Get("Retry-After"))
		require.NoError(t, server.Start())
		w.pool.Reset()
		w.set("c", row(fmt.Sprintf(`{"n": %d}`, n))) // so that the mark from before is not the last of its slot
		apply()
		all.Wait()
		for i, a := range answers {
			require.Equal(t, http.StatusOK, a.status, "%s: %s", paths[i], a.body)
			require.True(t, contains(a.body, has(n)) || contains(a.body, strings.ReplaceAll(has(n), " ", "")), "%s: %s", paths[i], a.body)
		}
	}
}

// Nobody who does not wait is kept waiting while there is no server; nobody is
// told of it for sessions that a server has left behind that is back.
func TestQueriesThatDoNotWaitAreToldAtOnceAndOnlyWhileThereIsNoServer(t *testing.T) {
	w, server := ownServer(t)
	r := w.replicaAt(w.url(), noCache)
	w.set("a", row(`{"n": 1}`))
	paths := []string{items + "/a", items, items + "/a/explain", items + "/export"}
	// Several sessions are idle when the server goes: as many lists wait for a lock.
	lock, err := w.pool.Begin(ctx)
	require.NoError(t, err)
	_, err = lock.Exec(ctx, `lock table refold.rows_items_v1 in access exclusive mode`)
	require.NoError(t, err)
	var all sync.WaitGroup
	const sessions = 4
	for i := range sessions {
		all.Go(func() { r.get(fmt.Sprintf("%s?limit=%d", items, 1+i)) })
	}
	eventually(t, "lists wait", func() bool {
		var n int
		require.NoError(t, w.pool.QueryRow(ctx, `select count(*) from pg_stat_activity where wait_event_type = 'Lock'`).Scan(&n))
		return n == sessions
	})
	require.NoError(t, lock.Rollback(ctx))
	all.Wait()
	require.NoError(t, server.Stop("fast"))
	for _, path := range paths {
		began := time.Now()
		a := r.get(path, "Refold-Wait", "30s")
		require.Equal(t, http.StatusServiceUnavailable, a.status, "%s: %s", path, a.body)
		require.Contains(t, a.body, "/problems/unavailable", path)
		require.NotEmpty(t, a.header.Get("Retry-After"))
		require.Less(t, time.Since(began), 20*time.Second, path)
	}
	require.NoError(t, server.Start())
	for _, path := range paths {
		a := r.get(path)
		require.Equal(t, http.StatusOK, a.status, "%s: %s", path, a.body)
	}
}

// Whoever meets sessions that stand but bring no answer, as behind a router that
// has forgotten them, is told that the database does not answer, within a bounded
// time and not that the query were too expensive. So are those who come behind.
func TestAHalfOpenDatabaseIsNotTakenForAnExpensiveQuery(t *testing.T) {
	w := setup(t)
	server := w.pool.Config().ConnConfig
	proxy := devstack.StartProxy(t, fmt.Sprintf("%s:%d", server.Host, server.Port))
	direct := w.url()
	pool, err := postgres.Open(ctx, postgres.Config{URL: proxy.URL(direct), MaxConns: 4})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	w.set("a", row(`{"n": 1}`))
	w.pool = pool
	cfg := readmodel.Config{CacheBytes: -1, StatementTimeout: time.Second}
	// One has sessions, one has none yet, and one cannot listen either.
	warm, cold, deaf := w.replicaAt(direct, cfg), w.replicaAt(direct, cfg), w.replicaAt(proxy.URL(direct), cfg)
	paths := []string{items + "/a", items + "?n=eq.1", items + "?order=n&count=exact", items + "/a/explain", items + "/export", items + "/changes", "/v1/read-models"}
	for _, r := range []*replica{warm, deaf} {
		for _, path := range paths[:5] {
			require.Equal(t, http.StatusOK, r.get(path).status, path)
		}
	}
	proxy.Blackhole()
	defer proxy.Heal()
	for name, r := range map[string]*replica{"warm": warm, "cold": cold, "deaf": deaf} {
		began := time.Now()
		var all sync.WaitGroup
		for i := range 3 * len(paths) {
			path := paths[i%len(paths)]
			all.Go(func() {
				a := r.get(path)
				if a.status != http.StatusServiceUnavailable || !contains(a.body, "/problems/unavailable") && !contains(a.body, "/problems/busy") || a.header.Get("Retry-After") == "" {
					t.Errorf("%s, %s: %d %s", name, path, a.status, a.body)
				}
			})
		}
		all.Wait()
		require.Less(t, time.Since(began), 30*time.Second, name)
		t.Log(name, time.Since(began))
	}
}

// append commits an event to the log alone. What it returns commits its row and
// the progress, as the engine does later.
func (w *world) append(key string, n int) (token event.Token, apply func()) {
	w.t.Helper()
	data := row(fmt.Sprintf(`{"n": %d}`, n))
	value, err := w.encode["ItemSet"](data)
	require.NoError(w.t, err)
	slot, id := event.SlotOf(key, slots), event.NewID()
	seq := w.seqs[slot] + 1
	_, err = w.pool.Exec(ctx, `insert into refold.event (category, slot, seq, version, id, time, recorded, stream, type, value)
		select id, $1, $2, $2, $5, now(), clock_timestamp(), $3, 'ItemSet', $4 from refold.category`, slot, seq, key, value, [16]byte(id))
	require.NoError(w.t, err)
	token = event.NewToken(event.Mark{Position: event.Position{Category: "Item", Slot: slot, Seq: seq}, Written: true, Event: id.Sum()})
	return token, func() { w.commitAs(id, 1, key, "ItemSet", data, upsert("rows_items_v1", 1, key, data), true) }
}
