package query_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// What a version has answered when it served before may be kept still, and be
// older than what the version in between has shown.
func TestAVersionThatServesAgainShowsNothingThatItHasKept(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.set("a", row(`{"n": 1, "color": "RED"}`))
	w.set("k001", row(`{"n": 5}`))
	list := items + "?key=in.(a)"
	w.warm(r, list, "a", 1)
	w.warm(r, items+"/a", "a", 1)
	r.get(list)
	w.version(2, definition)
	w.flipped(2, r)
	w.meddle("a", 2) // what invalidates the kept answer has not come yet
	w.flipped(1, r)
	w.warm(r, items+"/k001", "k001", 5) // answers are kept again
	require.Contains(t, r.get(items+"/a").body, has(2))
	require.Contains(t, r.get(list).body, has(2))
}

// The same when the replica hears of no flip and comes upon them by itself.
func TestFlipsThatNobodyHearsOf(t *testing.T) {
	w := setup(t)
	server := w.pool.Config().ConnConfig
	proxy := devstack.StartProxy(t, fmt.Sprintf("%s:%d", server.Host, server.Port))
	r := w.replicaAt(proxy.URL(w.pool.Config().ConnString()), readmodel.Config{})
	w.set("a", row(`{"n": 1}`))
	w.warm(r, items+"/a", "a", 1)
	w.version(2, definition)
	serves := func(key string) string {
		a := r.get(items + "/" + key)
		require.Equal(t, http.StatusNotFound, a.status)
		return a.header.Get("Refold-Projection-Version")
	}
	proxy.Hold(devstack.ToClient)
	defer proxy.Release(devstack.ToClient)
	w.flip(2)
	require.Equal(t, "2", serves("x"))
	w.meddle("a", 2)
	w.flip(1)
	require.Equal(t, "1", serves("y"))
	require.Contains(t, r.get(items+"/a").body, has(2))
}
