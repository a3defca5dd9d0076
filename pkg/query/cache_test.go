package query_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// meddle changes a row behind everybody's back: who answers the old one has kept it.
func (w *world) meddle(key string, n int) {
	w.t.Helper()
	_, err := w.pool.Exec(ctx, fmt.Sprintf(`update refold.rows_items_v1 set data = data || '{"n": %d}' where key = $1`, n), key)
	require.NoError(w.t, err)
}

func has(n int) string { return fmt.Sprintf(`"n": %d,`, n) }

// warm asks until the answer is kept.
func (w *world) warm(r *replica, path, key string, n int) {
	w.t.Helper()
	eventually(w.t, "the replica listens", func() bool { return r.get(path).header.Get("Refold-Staleness") != "" })
	partition := event.SlotOf(key, slots) % partitions
	eventually(w.t, "the answer is kept", func() bool {
		w.announce(1, partition, w.offsets[partition], w.offsets[partition], key)
		w.meddle(key, n)
		r.get(path)
		w.meddle(key, -1)
		kept := contains(r.get(path).body, has(n))
		w.meddle(key, n)
		return kept && contains(r.get(path).body, has(n))
	})
}

func contains(s, part string) bool { return strings.Contains(s, part) }

func TestAKeptAnswerFallsWithItsRow(t *testing.T) {
	w := setup(t)
	replicas := []*replica{w.replica(), w.replica()}
	w.set("a", row(`{"n": 1, "color": "RED"}`))
	w.set("b", row(`{"n": 1}`))
	list, byKey := items+"?color=eq.RED", items+"?key=in.(b)"
	for _, r := range replicas {
		w.warm(r, items+"/a", "a", 1)
		w.warm(r, list, "a", 1)
		w.warm(r, byKey, "b", 1)
	}
	w.set("a", row(`{"n": 2, "color": "RED"}`))
	for i, r := range replicas {
		eventually(t, fmt.Sprintf("replica %d hears of it", i), func() bool { return contains(r.get(items+"/a").body, has(2)) })
		eventually(t, fmt.Sprintf("replica %d hears of it for lists", i), func() bool { return contains(r.get(list).body, has(2)) })
	}
	eventually(t, "a list of other keys is kept", func() bool {
		w.meddle("b", 1)
		replicas[1].get(byKey)
		w.meddle("b", 9)
		w.set("a", row(`{"n": 2, "color": "RED"}`))
		heard := replicas[1].get(items+"/a", "Refold-Max-Staleness", "10s").status == http.StatusOK
		return heard && contains(replicas[1].get(byKey).body, has(1))
	})
	missing := items + "/later"
	require.Equal(t, http.StatusNotFound, replicas[0].get(missing).status)
	token := w.set("later", row(`{"n": 1}`))
	require.Equal(t, http.StatusOK, replicas[0].get(missing, "Refold-Token", token.String(), "Refold-Wait", "20s").status, "that there is no row is kept only as long")
	aged := replicas[0].get(items+"/a", "Refold-Max-Staleness", "1ms", "Refold-Wait", "20s")
	require.Contains(t, []int{http.StatusOK, http.StatusServiceUnavailable}, aged.status)
	require.Equal(t, http.StatusOK, replicas[0].get(items+"/a", "Refold-Max-Staleness", "5s", "Refold-Wait", "20s").status)
}

func TestAnAnnouncementThatNeverCameIsFound(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.set("a", row(`{"n": 1}`))
	w.warm(r, items+"/a", "a", 1)
	two := row(`{"n": 2}`)
	w.setIn("rows_items_v1", 1, "a", &two, false) // the engine died after its commit
	began := time.Now()
	eventually(t, "the replica looks by itself", func() bool { return contains(r.get(items+"/a").body, has(2)) })
	require.Less(t, time.Since(began), readmodel.MaxUnseen+10*time.Second, "1 s on an idle machine")
}

func TestNothingKeptOutlivesTheSessionThatInvalidatesIt(t *testing.T) {
	w := setup(t)
	server := w.pool.Config().ConnConfig
	proxy := devstack.StartProxy(t, fmt.Sprintf("%s:%d", server.Host, server.Port))
	r := w.replicaAt(proxy.URL(w.pool.Config().ConnString()), readmodel.Config{})
	n := 1
	for name, fault := range map[string]func(){
		"cut":       func() { proxy.Refuse(); proxy.Cut() },
		"half-open": proxy.Blackhole,
		"held":      func() { proxy.Hold(devstack.ToClient) },
	} {
		w.set("a", row(fmt.Sprintf(`{"n": %d}`, n)))
		w.warm(r, items+"/a", "a", n)
		fault()
		n++
		token := w.set("a", row(fmt.Sprintf(`{"n": %d}`, n)))
		began := time.Now()
		require.Contains(t, r.get(items+"/a", "Refold-Token", token.String()).body, has(n), "%s: a token is never answered with less", name)
		eventually(t, name, func() bool { return contains(r.get(items+"/a").body, has(n)) })
		require.Less(t, time.Since(began), readmodel.MaxUnseen+5*time.Second, name) // 5 s for a slow machine
		n++
		token = w.set("a", row(fmt.Sprintf(`{"n": %d}`, n))) // waiting goes on without notifications
		require.Contains(t, r.get(items+"/a", "Refold-Token", token.String(), "Refold-Wait", "10s").body, has(n), name)
		proxy.Heal()
		if name == "held" {
			proxy.Release(devstack.ToClient)
		}
	}
}
