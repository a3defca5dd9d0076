package query_test

import (
	"fmt"
	"maps"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// setupPair is setup on a primary and its standby. The function that it returns
// marks a moment, and what that one returns fails over to how things were then.
func setupPair(t *testing.T) (w *world, mark func() (failOver func())) {
	t.Helper()
	primary, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, primary.Close()) })
	standby, err := primary.Standby(ctx)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, standby.Close()) })
	pool, err := postgres.Open(ctx, postgres.Config{URL: fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?target_session_attrs=read-write", primary.Port(), standby.Port()), MaxConns: 8})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.NoError(t, postgres.Migrate(ctx, pool))
	w = newWorldIn(t, pool)
	w.create()
	return w, func() func() {
		seqs, offsets := maps.Clone(w.seqs), maps.Clone(w.offsets)
		require.NoError(t, standby.CatchUp(ctx))
		require.NoError(t, standby.PauseReplay(ctx))
		return func() {
			require.NoError(t, primary.Stop("immediate"))
			require.NoError(t, standby.Promote(ctx))
			pool.Reset()
			w.seqs, w.offsets = seqs, offsets
		}
	}
}

// A standby is promoted that has not replayed the last events. What answers have
// said and appends have promised of these is never answered as a success any more,
// although other events come to stand at their seqs; everything that was there
// before is.
func TestAFailoverThatLosesTheTail(t *testing.T) {
	w, failOver := setupPair(t)
	r := w.replica()
	token := func(path string) string {
		a := r.get(path)
		require.Equal(t, http.StatusOK, a.status, a.body)
		return a.header.Get("Refold-Token")
	}
	ask := func(path, token string) answer {
		return r.get(path, "Refold-Token", token, "Refold-Wait", "300ms")
	}
	lost := func(what, path, token string) {
		t.Helper()
		a := ask(path, token)
		require.Equal(t, http.StatusServiceUnavailable, a.status, "%s: %s", what, a.body)
		require.Contains(t, a.body, "/problems/not-caught-up", what)
	}

	const byKey, list = items + "/a", items + "?key=in.(a,b)"
	before := w.set("a", row(`{"n": 1}`)).String()
	w.set("b", row(`{"n": 1}`))
	readBefore, listBefore := token(byKey), token(list)
	lose := failOver()

	appended := w.set("a", row(`{"n": 2}`)).String()
	w.warm(r, byKey, "a", 2)
	w.warm(r, list, "a", 2)
	read, listed := token(byKey), token(list)
	a := ask(byKey, appended)
	require.Equal(t, http.StatusOK, a.status, a.body)
	f := &follower{t: t, path: items + "/changes", rows: map[string]map[string]any{}}
	f.follow(r, func() bool { return f.lastID != "" })
	lose()

	began := time.Now()
	eventually(t, "what was kept falls", func() bool { a := r.get(byKey); return a.status == http.StatusOK && contains(a.body, has(1)) })
	require.Less(t, time.Since(began), readmodel.MaxUnseen+10*time.Second) // 10 s for a slow machine
	for what, tokens := range map[string][2]string{"the append's": {byKey, appended}, "the row's": {byKey, read}, "the list's": {list, listed}} {
		lost(what+" token, ahead of the log", tokens[0], tokens[1])
	}
	for what, tokens := range map[string][2]string{"an append": {byKey, before}, "a row": {byKey, readBefore}, "a list": {list, listBefore}} {
		require.Equal(t, http.StatusOK, ask(tokens[0], tokens[1]).status, "the token of %s from before", what)
	}

	w.set("a", row(`{"n": 3}`)) // stands where the lost one stood
	lost("the append's token, at another event", byKey, appended)
	lost("the row's token, at another event", byKey, read)
	fresh := w.set("a", row(`{"n": 4}`)).String()
	w.warm(r, byKey, "a", 4)
	w.warm(r, list, "a", 4)
	for what, tokens := range map[string][2]string{"the append's": {byKey, appended}, "the row's": {byKey, read}, "the list's": {list, listed},
		"the lost and a new": {byKey, appended + "," + fresh}, "a kept list's": {list, appended}} {
		lost(what+" token, behind the log", tokens[0], tokens[1])
	}
	require.Contains(t, ask(byKey, appended).body, "failover")
	for what, tokens := range map[string][2]string{"an append from before": {byKey, before}, "a row from before": {byKey, readBefore}, "a list from before": {list, listBefore}, "now": {byKey, fresh}} {
		a := ask(tokens[0], tokens[1])
		require.Equal(t, http.StatusOK, a.status, "the token of %s: %s", what, a.body)
		require.Contains(t, a.body, has(4), what)
		again, _ := r.reader.CacheStats()
		require.Equal(t, http.StatusOK, ask(tokens[0], a.header.Get("Refold-Token")).status)
		require.Equal(t, http.StatusOK, ask(tokens[0], tokens[1]).status)
		hits, _ := r.reader.CacheStats()
		require.EqualValues(t, 2, hits-again, "what was proven once is answered from what is kept: %s", what)
	}

	f.follow(r, func() bool { return len(f.versions) > 0 }) // any row may differ
	later := &follower{t: t, path: items + "/changes", rows: map[string]map[string]any{}, lastID: f.lastID}
	w.set("b", row(`{"n": 5}`))
	later.follow(r, func() bool { return later.rows["b"] != nil })
	require.Empty(t, later.versions, "once")

	// A version that has come along the lost tail, out of a topic that still has it.
	stray := w.set("a", row(`{"n": 6}`))
	_, err := w.pool.Exec(ctx, `update refold.progress set last_ids[array_position(slots, $1::smallint)] = $2 where $1 = any(slots)`, stray[0].Slot, [16]byte(event.NewID()))
	require.NoError(t, err)
	lost("the token of what the version has not applied", byKey, stray.String())
	lost("the token of what it has applied, on a version that strays since", byKey, w.forged(stray, fresh))
}

// Followers who were told of what a failover has lost, of events and of requests
// about parked streams, go on behind it: they are told that any row may differ, and
// of all that comes in the place of what was lost. Some listen throughout, some
// come back at once, some when other events stand there.
func TestFollowersOfALostTailGoOn(t *testing.T) {
	w, mark := setupPair(t)
	r := w.replica()
	w.set("a", row(`{"n": 1}`))
	w.set("b", row(`{"n": 1}`))
	lose := mark()
	w.set("a", row(`{"n": 2}`))
	w.set("a", row(`{"n": 3}`))
	w.answer("b", 2)
	_, err := w.pool.Exec(ctx, `insert into refold.row_request (projection, category, slot, stream, action, reason) values ('items', 'Item', 0, 'other', 'retry', 'open')`)
	require.NoError(t, err) // so all before it are known to be done
	follow := func(lastID string) *follower {
		return &follower{t: t, path: items + "/changes", rows: map[string]map[string]any{}, lastID: lastID}
	}
	id := ""
	eventually(t, "an id says that the request was carried out", func() bool {
		f := follow("")
		f.follow(r, func() bool { return f.lastID != "" })
		id = f.lastID
		f = follow(id)
		w.set("c", row(`{"n": 1}`))
		f.follow(r, func() bool {
			if f.rows["c"] != nil && f.rows["d"] == nil { // what came of requests is told before d
				w.set("d", row(`{"n": 1}`))
			}
			return f.rows["d"] != nil
		})
		return f.rows["b"] == nil
	})
	through := follow("")
	listening, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		through.follow(r, func() bool {
			if through.lastID != "" {
				select {
				case <-listening:
				default:
					close(listening)
				}
			}
			return len(through.versions) > 0 && through.is("a", 4) && through.is("b", 5)
		})
	}()
	<-listening
	lose()

	back := follow(id)
	eventually(t, "the database is there", func() bool { return r.get(items+"/b").status == http.StatusOK })
	back.follow(r, func() bool { return len(back.versions) > 0 })
	late := follow(id)
	w.set("a", row(`{"n": 4}`)) // at the place of what was lost
	w.answer("b", 5)            // by the id of a request that was lost
	for _, f := range []*follower{back, late} {
		f.follow(r, func() bool { return len(f.versions) > 0 && f.is("b", 5) && (f.is("a", 4) || f == late) })
		require.Equal(t, []int{1}, f.versions)
	}
	<-ended
	require.Equal(t, []int{1}, through.versions)
}

// is tells whether the last that was told of a row is a number.
func (f *follower) is(key string, n int) bool {
	return f.rows[key] != nil && f.rows[key]["n"] == float64(n)
}

// forged returns the token of an append as somebody has it who has not read yet:
// nothing is proven of it.
func (w *world) forged(stray event.Token, text string) string {
	w.t.Helper()
	t, err := event.ParseToken(text)
	require.NoError(w.t, err)
	var id [16]byte
	require.NoError(w.t, w.pool.QueryRow(ctx, `select id from refold.event where slot = $1 and seq = $2`, stray[0].Slot, t[0].Seq-1).Scan(&id))
	t[0].Seq, t[0].Event = t[0].Seq-1, event.ID(id).Sum()
	return t.String()
}
