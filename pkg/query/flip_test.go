package query_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
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

// A definition that changes in place, by an index or by fields, is known to those
// who query as soon as its transaction is committed.
func TestADefinitionThatChangesInPlaceIsFollowed(t *testing.T) {
	w := setup(t)
	r := w.replicaAt(w.url(), readmodel.Config{StrictRows: 1})
	w.set("a", row(`{"n": 1, "ok": true}`))
	w.set("b", row(`{"n": 2}`))
	_, err := w.pool.Exec(ctx, `analyze refold.rows_items_v1`)
	require.NoError(t, err)
	w.warm(r, items+"/a", "a", 1)
	query := items + "?ok=is.true"
	require.Contains(t, r.get(query).body, "no-index")
	require.Equal(t, http.StatusBadRequest, r.get(items+"?extra=eq.x&key=eq.a").status)
	changed := strings.Replace(definition, "  - {fields: [name]}\n", "  - {fields: [name]}\n  - {fields: [ok]}\n", 1)
	changed = strings.Replace(changed, "  ref: ", "  extra: {from: [ItemSet.name]}\n  ref: ", 1)
	plan := w.compile(changed)
	require.NoError(t, pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `update refold.projection_version set definition = $1, plan = $2`, plan.Source(), plan.Hash()); err != nil {
			return err
		}
		return readmodel.Announce(ctx, tx)
	}))
	require.Equal(t, `{"extra":null}`, r.get(items+"/b?select=extra").body)
	require.Len(t, r.get(items+"?extra=is.null&key=eq.a").list(t).Rows, 1)
	require.Len(t, r.get(query).list(t).Rows, 1)
	w.warm(r, items+"/a", "a", 1) // and answers are kept again
}
