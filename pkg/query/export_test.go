package query_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/readmodel"
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

// explained is the answer of explain.
type explained struct {
	Events []struct {
		Outcome, Reason string
		Changes         map[string]struct{ From, To any }
	}
	Equal          bool
	Folded, Stored map[string]any
	Differences    []string
}

func (r *replica) explain(key string) explained {
	r.t.Helper()
	return r.explainIn(items, key)
}

func (r *replica) explainIn(model, key string) (e explained) {
	r.t.Helper()
	a := r.get(model + "/" + key + "/explain")
	require.Equal(r.t, http.StatusOK, a.status, a.body)
	require.NoError(r.t, json.Unmarshal([]byte(a.body), &e))
	return e
}

func (e explained) outcomes() (list []string) {
	for _, x := range e.Events {
		list = append(list, x.Outcome)
	}
	return list
}

func TestARowIsExplained(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.set("a", row(`{"n": 1, "name": "first", "price": "1.50"}`))
	w.set("b", row(`{"n": 5}`))
	w.remove("a")
	w.set("a", row(`{"n": 2, "name": "first", "color": "RED"}`))
	w.set("a", row(`{"n": 3, "name": "first", "color": "RED"}`))
	e := r.explain("a")
	require.True(t, e.Equal, "%+v", e)
	var story []string
	for _, x := range e.Events {
		story = append(story, fmt.Sprint(x.Outcome, " ", len(x.Changes), " ", x.Changes["n"]))
	}
	require.Equal(t, []string{"applied 3 {<nil> 1}", "removed 3 {1 <nil>}", "applied 3 {<nil> 2}", "applied 1 {2 3}"}, story)

	_, err := w.pool.Exec(ctx, `update refold.rows_items_v1 set data = data || '{"n": 4}' where key = 'a'`) // somebody meddled
	require.NoError(t, err)
	e = r.explain("a")
	require.False(t, e.Equal)
	require.Equal(t, []string{"n"}, e.Differences)
	require.Equal(t, http.StatusNotFound, r.get(items+"/missing/explain").status)
}

// What somebody has decided to skip is told as such once the version has skipped
// it, and what waited behind it is applied.
func TestASkippedEventIsExplained(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.set("a", row(`{"n": 1}`))
	w.set("a", row(`{"n": 2}`))
	w.set("a", row(`{"n": 3}`))
	_, err := w.pool.Exec(ctx, `update refold.event set value = '\x00' where seq = 2`) // cannot be read
	require.NoError(t, err)
	w.meddle("a", 1)
	e := r.explain("a")
	require.Equal(t, []string{"applied", "parked", "parked"}, e.outcomes())
	require.True(t, e.Equal)

	_, err = w.pool.Exec(ctx, `insert into refold.decision (projection, category, slot, seq, id, reason) select 'items', 'Item', slot, seq, id, 'it was damaged' from refold.event where seq = 2`)
	require.NoError(t, err)
	_, err = w.pool.Exec(ctx, `insert into refold.parked_event (projection, version, category, stream, slot, seq, stream_version, id, type, time, recorded, value)
		select 'items', 1, 'Item', stream, slot, seq, version, id, type, time, recorded, value from refold.event where seq >= 2`)
	require.NoError(t, err)
	require.Equal(t, []string{"applied", "parked", "parked"}, r.explain("a").outcomes(), "decided for another version: this one has not skipped it yet")

	_, err = w.pool.Exec(ctx, `delete from refold.parked_event`)
	require.NoError(t, err)
	w.meddle("a", 3)
	e = r.explain("a")
	require.Equal(t, []string{"applied", "skipped", "applied"}, e.outcomes())
	require.Equal(t, "it was damaged", e.Events[1].Reason)
	require.True(t, e.Equal, "%+v", e)
}

// A shared row lacks the events that wait behind one of their stream that cannot be
// applied, wherever the order of the fold has them, until that one is skipped.
func TestASharedRowIsExplainedWithoutWhatWaits(t *testing.T) {
	const model = "/v1/read-models/colors"
	p := startPlatform(t, "projection: colors\ncategory: Item\nkey: color\nfields:\n  color: {key: true}\n  sum: {add: [ItemSet.n]}\n")
	p.member("host")
	eventually(t, "it serves", func() bool {
		_, err := readmodel.NewCatalogue(p.pool).Active(ctx, "colors")
		return err == nil
	})
	r := p.replica()
	add := func(key string, value []byte, at event.Time) string {
		done, err := p.store.Append(ctx, &eventstore.Request{Appends: []eventstore.Append{{Category: "Item", Stream: key, Events: []eventstore.NewEvent{{Type: "ItemSet", Value: value, Time: &at}}}}})
		require.NoError(t, err)
		return done.Token().String()
	}
	red := func(n int) []byte {
		value, err := p.encode["ItemSet"](row(fmt.Sprintf(`{"n": %d, "color": "RED"}`, n)))
		require.NoError(t, err)
		return value
	}
	now := event.TimeOf(time.Now())
	add("a", red(1), now)
	add("b", red(10), now)
	add("b", []byte("damaged"), now)
	add("b", red(100), now-1) // happened before it
	add("b", red(1000), now+1)
	token := add("a", red(2), now+2)
	parked := engine.NewParked(p.pool)
	eventually(t, "what is damaged is parked", func() bool {
		list, _, err := parked.List(ctx, "colors", nil, 10)
		return err == nil && len(list) == 1 && list[0].Events == 3
	})
	require.Equal(t, http.StatusOK, r.get(model+"/RED", "Refold-Token", token, "Refold-Wait", "30s").status)
	e := r.explainIn(model, "RED")
	require.EqualValues(t, 13, e.Stored["sum"])
	require.True(t, e.Equal, "%+v", e)
	require.Equal(t, []string{"parked", "applied", "applied", "parked", "applied"}, e.outcomes())
	require.Equal(t, "it waits behind version 2 of its stream", e.Events[0].Reason)

	_, err := parked.Request(ctx, "colors", "Item", "b", "skip", "it was damaged")
	require.NoError(t, err)
	eventually(t, "it is skipped", func() bool { return contains(r.get(model+"/RED").body, "1113") })
	e = r.explainIn(model, "RED")
	require.True(t, e.Equal, "%+v", e)
	require.Equal(t, []string{"applied", "applied", "applied", "applied", "applied"}, e.outcomes())
}

// While new fields are filled, rows that only their events make are there or not
// yet: neither is a difference, and no new field is shown.
func TestARowIsExplainedWhileFieldsAreFilled(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.set("a", row(`{"n": 1}`))
	next := w.compile(strings.Replace(definition, "  ref: ", "  tried: {count: ItemTried}\n  ref: ", 1))
	catalogue := readmodel.NewCatalogue(w.pool)
	v, err := catalogue.Active(ctx, "items")
	require.NoError(t, err)
	require.NoError(t, pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error { return readmodel.BeginCompletion(ctx, tx, v, next) }))
	w.try("a")
	w.try("b")
	for key, story := range map[string][]string{"a": {"applied", "filtered"}, "b": {"filtered"}} {
		e := r.explain(key)
		require.True(t, e.Equal, "%s, which is not filled yet: %+v", key, e)
		require.Equal(t, story, e.outcomes())
	}
	_, err = w.pool.Exec(ctx, `insert into refold.rows_items_v1 (projection_name, version, key, data) values ('items', 1, 'b', $1::text::jsonb || '{"tried": 1}')`, row(`{}`))
	require.NoError(t, err)
	_, err = w.pool.Exec(ctx, `update refold.rows_items_v1 set data = data || '{"tried": 1}' where key = 'a'`)
	require.NoError(t, err)
	for key, story := range map[string][]string{"a": {"applied", "filtered"}, "b": {"applied"}} {
		e := r.explain(key)
		require.True(t, e.Equal, "%s, which is filled: %+v", key, e)
		require.Equal(t, story, e.outcomes())
		require.NotContains(t, e.Folded, "tried")
		require.NotContains(t, e.Stored, "tried")
	}
	w.meddle("b", 7)
	require.Equal(t, []string{"n"}, r.explain("b").Differences)
}
