package query_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAnExportIsOneSnapshotFromWhichTheFeedGoesOn(t *testing.T) {
	w := setup(t)
	r := w.replica()
	_, err := w.pool.Exec(ctx, `insert into refold.rows_items_v1 (projection_name, version, key, data) select 'items', 1, 'k' || i, jsonb_build_object('n', i, 'color', 'RED') from generate_series(1, 2500) i`)
	require.NoError(t, err)
	w.set("blue", row(`{"n": 1, "color": "BLUE"}`))
	a := r.get(items + "/export?color=eq.RED&select=n")
	require.Equal(t, http.StatusOK, a.status, a.body)
	lines := strings.Split(a.body, "\n")
	require.Len(t, lines, 2501)
	require.JSONEq(t, `{"key": "k1", "row": {"n": 1}}`, lines[0])
	var last struct {
		Rows           int
		Token, Changes string
	}
	require.NoError(t, json.Unmarshal([]byte(lines[2500]), &last))
	require.Equal(t, 2500, last.Rows)
	require.Equal(t, a.header.Get("Refold-Token"), last.Token)

	w.set("later", row(`{"n": 2}`))
	f := &follower{t: t, path: items + "/changes", rows: map[string]map[string]any{}, lastID: last.Changes}
	f.follow(r, func() bool { return f.rows["later"] != nil })
	require.Len(t, f.rows, 1)
	for _, query := range []string{"limit=1", "order=n", "nothing=eq.1", "select=nothing"} {
		require.Equal(t, http.StatusBadRequest, r.get(items+"/export?"+query).status, query)
	}
}

func TestARowIsExplained(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.set("a", row(`{"n": 1, "name": "first", "price": "1.50"}`))
	w.set("b", row(`{"n": 5}`))
	w.remove("a")
	w.set("a", row(`{"n": 2, "name": "first", "color": "RED"}`))
	w.set("a", row(`{"n": 3, "name": "first", "color": "RED"}`))
	var e struct {
		Events []struct {
			Outcome string
			Changes map[string]struct{ From, To any }
		}
		Equal          bool
		Folded, Stored map[string]any
		Differences    []string
	}
	a := r.get(items + "/a/explain")
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.NoError(t, json.Unmarshal([]byte(a.body), &e))
	require.True(t, e.Equal, a.body)
	var story []string
	for _, x := range e.Events {
		story = append(story, fmt.Sprint(x.Outcome, " ", len(x.Changes), " ", x.Changes["n"]))
	}
	require.Equal(t, []string{"applied 3 {<nil> 1}", "removed 3 {1 <nil>}", "applied 3 {<nil> 2}", "applied 1 {2 3}"}, story)

	_, err := w.pool.Exec(ctx, `update refold.rows_items_v1 set data = data || '{"n": 4}' where key = 'a'`) // somebody meddled
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(r.get(items+"/a/explain").body), &e))
	require.False(t, e.Equal)
	require.Equal(t, []string{"n"}, e.Differences)
	require.Equal(t, http.StatusNotFound, r.get(items+"/missing/explain").status)
}
