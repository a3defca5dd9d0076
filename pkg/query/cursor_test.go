package query_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// version makes version n of the projection, ready, with the rows and the
// progress of version 1.
func (w *world) version(n int, definition string) {
	w.t.Helper()
	plan := w.compile(definition)
	leaf := fmt.Sprintf("rows_items_v%d", n)
	require.NoError(w.t, pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		for _, sql := range []string{
			`create table refold.` + leaf + ` (like refold.projections including defaults, primary key (key))`,
			fmt.Sprintf(`insert into refold.%s (projection_name, version, key, data) select 'items', %d, key, data from refold.rows_items_v1`, leaf, n),
			fmt.Sprintf(`alter table refold.projection_items attach partition refold.%s for values in (%d)`, leaf, n),
			fmt.Sprintf(`insert into refold.progress (projection, version, category, generation, partition, next_offset, slots, seqs, last_ids)
				select projection, %d, category, generation, partition, next_offset, slots, seqs, last_ids from refold.progress where version = 1`, n),
		} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `insert into refold.projection_version (projection, version, state, definition, plan, leaf) values ('items', $1, 'ready', $2, $3, $4)`, n, plan.Source(), plan.Hash(), leaf)
		return err
	}))
}

// flip makes another version the active one, as a promotion does.
func (w *world) flip(to int) {
	w.t.Helper()
	_, err := w.pool.Exec(ctx, `update refold.projection_version set state = case when version = $1 then 'active' else 'ready' end where state <> 'retired'`, to)
	require.NoError(w.t, err)
	_, err = w.pool.Exec(ctx, `notify refold_catalogue`)
	require.NoError(w.t, err)
}

// flipped makes another version the active one and waits until a replica has heard
// of it: until then it may give answers that it has kept.
func (w *world) flipped(to int, r *replica) {
	w.t.Helper()
	w.flip(to)
	eventually(w.t, "the replica hears of the flip", func() bool {
		return r.get(items+"/k001").header.Get("Refold-Projection-Version") == strconv.Itoa(to)
	})
}

// retire takes a version away as a retirement does.
func (w *world) retire(n int) {
	w.t.Helper()
	_, err := w.pool.Exec(ctx, `update refold.projection_version set state = 'retired' where version = $1`, n)
	require.NoError(w.t, err)
	_, err = w.pool.Exec(ctx, fmt.Sprintf(`drop table refold.rows_items_v%d`, n))
	require.NoError(w.t, err)
}

const items = "/v1/read-models/items"

func (w *world) fill(n int) {
	for i := range n {
		w.set(fmt.Sprintf("k%03d", i), row(fmt.Sprintf(`{"n": %d, "color": "RED"}`, i%7)))
	}
}

func TestACursorIsBoundToItsQuery(t *testing.T) {
	w := setup(t)
	r, other := w.replica(), w.replica()
	w.fill(10)
	first := r.get(items + "?limit=3&order=n.desc").list(t)
	require.NotNil(t, first.Next)
	next := url.QueryEscape(*first.Next)
	require.Len(t, r.get(items+"?limit=7&order=n.desc&cursor="+next).list(t).Rows, 7, "another limit")
	require.Len(t, other.get(items+"?limit=2&select=key&order=n.desc&count=exact&cursor="+next).list(t).Rows, 2, "another replica, other fields")
	for what, query := range map[string]string{
		"another order":  "order=n.asc&cursor=" + next,
		"another filter": "order=n.desc&n=gt.1&cursor=" + next,
		"one byte":       "order=n.desc&cursor=" + flipped(*first.Next),
		"cut":            "order=n.desc&cursor=" + next[:len(next)-4],
		"invented":       "order=n.desc&cursor=AAAA",
		"empty":          "order=n.desc&cursor=",
		"twice":          "order=n.desc&cursor=" + next + "&cursor=" + next,
	} {
		a := r.get(items + "?" + query)
		require.Equal(t, http.StatusBadRequest, a.status, "%s: %s", what, a.body)
		require.Contains(t, a.body, `"pointer":"/cursor"`, what)
	}
}

func flipped(cursor string) string {
	b := []byte(cursor)
	b[len(b)/2] ^= 1
	return url.QueryEscape(string(b))
}

func TestAWalkDuringWritesReturnsWhatExistedThroughoutOnce(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.fill(120)
	stop := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default: // rows come and go between those that are counted
				w.set(fmt.Sprintf("x%03d", i%50), row(`{"n": 3, "color": "RED"}`))
				w.remove(fmt.Sprintf("x%03d", (i+25)%50))
			}
		}
	})
	for _, order := range []string{"key", "key.desc", "color,n", "n.desc", "name.nullsfirst,n"} {
		keys, _ := r.walk(items, url.Values{"select": {"key"}, "order": {order}, "limit": {"9"}})
		keys = slices.DeleteFunc(keys, func(k string) bool { return strings.HasPrefix(k, "x") })
		slices.Sort(keys)
		require.Len(t, keys, 120, order)
		require.Len(t, slices.Compact(keys), 120, order)
	}
	close(stop)
	writing.Wait()
}

func TestACursorGoesOnWithThePromotedVersionOrKeepsItsOwn(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.fill(20)
	byKey := *r.get(items + "?limit=5&select=key").list(t).Next
	byN := *r.get(items + "?limit=5&select=key&order=n").list(t).Next
	w.version(2, definition)
	w.version(3, strings.Replace(definition, "  f:     {from: [ItemSet]}\n", "", 1))
	page := func(query, cursor string) (version string, a answer) {
		a = r.get(items + "?" + query + "&cursor=" + url.QueryEscape(cursor))
		return a.header.Get("Refold-Projection-Version"), a
	}

	w.flipped(2, r)
	version, a := page("select=key", byKey)
	require.Equal(t, "2", version, "the same definition, and keys never change")
	require.Equal(t, "k005", a.list(t).Rows[0]["key"])
	version, _ = page("order=n&select=key", byN)
	require.Equal(t, "1", version, "n may change: the walk stays where it began")

	w.flipped(3, r)
	version, _ = page("select=key", byKey)
	require.Equal(t, "1", version, "another definition")

	w.flipped(1, r)
	version, _ = page("order=n&select=key", byN)
	require.Equal(t, "1", version, "rolled back")

	w.flipped(2, r)
	w.retire(1)
	_, a = page("order=n&select=key", byN)
	require.Equal(t, http.StatusGone, a.status, a.body)
	version, a = page("select=key", byKey)
	require.Equal(t, "2", version, a.body)
	require.Equal(t, "2", r.get(items+"/k001").header.Get("Refold-Projection-Version"), "42P01 means: look again")
}
