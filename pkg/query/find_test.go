package query_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/readmodel"
)

// thing is a row of items as Go reads it.
type thing struct {
	Name  *string     `json:"name"`
	N     int64       `json:"n"`
	Price json.Number `json:"price"`
	At    *time.Time  `json:"at"`
	OK    bool        `json:"ok"`
	Color string      `json:"color"`
}

var (
	thingName  = readmodel.NullableOf(func(i *thing) **string { return &i.Name })
	thingN     = readmodel.FieldOf(func(i *thing) *int64 { return &i.N })
	thingAt    = readmodel.NullableOf(func(i *thing) **time.Time { return &i.At })
	thingOK    = readmodel.FieldOf(func(i *thing) *bool { return &i.OK })
	thingColor = readmodel.FieldOf(func(i *thing) *string { return &i.Color })
	thingKey   = readmodel.KeyOf[thing]()
	anything   readmodel.Filter[thing]
)

// noon is when the thing with a number was.
func noon(n int) time.Time { return time.Date(2024, 1, 1+n, 12, 0, 0, 0, time.UTC) }

func things(w *world, n int) {
	for i := range n {
		name := fmt.Sprintf(`"name %d"`, i)
		if i%5 == 0 {
			name = "null"
		}
		w.set(fmt.Sprintf("k%03d", i), row(fmt.Sprintf(`{"n": %d, "name": %s, "ok": %t, "color": %q, "at": %q}`,
			i, name, i%2 == 0, []string{"RED", "GREEN", "BLUE"}[i%3], noon(i).Format(time.RFC3339))))
	}
}

func TestRowsAreFoundAsGoValues(t *testing.T) {
	w := setup(t)
	r := w.replica()
	things(w, 30)

	var from readmodel.Answer
	one, err := readmodel.FindByID[thing](ctx, r.reader, "items", "k004", readmodel.From(&from))
	require.NoError(t, err)
	require.Equal(t, "name 4", *one.Name)
	require.Equal(t, 1, from.Version.Number)
	_, err = readmodel.FindByID[thing](ctx, r.reader, "items", "missing")
	require.ErrorIs(t, err, readmodel.ErrNoRow)
	_, err = readmodel.FindByID[thing](ctx, r.reader, "nothing", "k004")
	require.ErrorIs(t, err, readmodel.ErrUnknownProjection)
	_, err = readmodel.FindByID[struct{ N string }](ctx, r.reader, "items", "k004")
	require.ErrorContains(t, err, `reading the row "k004" of items`)

	several, err := readmodel.FindByIDs[thing](ctx, r.reader, "items", []string{"k001", "missing", "k002"})
	require.NoError(t, err)
	require.Len(t, several, 2)
	require.EqualValues(t, 2, several["k002"].N)
	_, err = readmodel.FindByIDs[thing](ctx, r.reader, "items", make([]string, readmodel.MaxValues+1))
	var wrong *readmodel.QueryError
	require.ErrorAs(t, err, &wrong)

	for name, c := range map[string]struct {
		where readmodel.Filter[thing]
		want  func(n int) bool
	}{
		"eq":      {thingColor.Eq("RED"), func(n int) bool { return n%3 == 0 }},
		"neq":     {thingColor.Neq("RED"), func(n int) bool { return n%3 != 0 }},
		"bool":    {thingOK.Eq(true), func(n int) bool { return n%2 == 0 }},
		"range":   {readmodel.AllOf(thingN.Gt(3), thingN.Lte(9)), func(n int) bool { return n > 3 && n <= 9 }},
		"outside": {readmodel.AnyOf(thingN.Lt(3), thingN.Gte(28)), func(n int) bool { return n < 3 || n >= 28 }},
		"time":    {thingAt.Gte(noon(20)), func(n int) bool { return n >= 20 }},
		"in":      {thingN.In(1, 5, 99), func(n int) bool { return n == 1 || n == 5 }},
		"null":    {thingName.IsNull(), func(n int) bool { return n%5 == 0 }},
		"like":    {thingName.Like("name 1%"), func(n int) bool { return n%5 != 0 && (n == 1 || n > 10 && n < 20) }},
		"none of": {readmodel.NoneOf(thingColor.Eq("RED"), thingN.Gt(10)), func(n int) bool { return n%3 != 0 && n <= 10 }},
		"by key":  {thingKey.In("k003", "k004"), func(n int) bool { return n == 3 || n == 4 }},
		"all":     {anything, func(int) bool { return true }},
	} {
		want := []int64{}
		for n := 29; n >= 0; n-- {
			if c.want(n) {
				want = append(want, int64(n))
			}
		}
		found, err := readmodel.FindBy(ctx, r.reader, "items", c.where, []readmodel.Order{thingN.Desc()})
		require.NoError(t, err, name)
		got := []int64{}
		for _, i := range found {
			got = append(got, i.N)
		}
		require.Equal(t, want, got, name)
		count, err := readmodel.CountBy(ctx, r.reader, "items", c.where)
		require.NoError(t, err, name)
		require.EqualValues(t, len(want), count, name)
		n := 0
		for _, err := range readmodel.All(ctx, r.reader, "items", c.where) {
			require.NoError(t, err, name)
			n++
		}
		require.Len(t, want, n, name)
	}

	for range readmodel.All(ctx, r.reader, "items", anything) {
		break // ends the export and gives its place back
	}
	var last error
	for _, err := range readmodel.All(ctx, r.reader, "nothing", anything) {
		last = err
	}
	require.ErrorIs(t, last, readmodel.ErrUnknownProjection)
}

func TestPagesOfGoValuesFollowEachOther(t *testing.T) {
	w := setup(t)
	r := w.replica()
	things(w, 30)
	q := readmodel.ListQuery{Where: thingOK.Eq(true).Condition, Order: []readmodel.Order{thingN.Asc()}, Limit: 4, Count: readmodel.CountExact}
	var all []int64
	for {
		page, err := readmodel.List[thing](ctx, r.reader, "items", q)
		require.NoError(t, err)
		require.EqualValues(t, 15, *page.Count)
		require.Len(t, page.Keys, len(page.Rows))
		for i, row := range page.Rows {
			require.Equal(t, fmt.Sprintf("k%03d", row.N), page.Keys[i])
			all = append(all, row.N)
		}
		if q.Cursor = page.Next; q.Cursor == "" {
			break
		}
	}
	require.Len(t, all, 15)
	require.IsIncreasing(t, all)
	q.Limit = readmodel.MaxLimit + 1
	_, err := readmodel.List[thing](ctx, r.reader, "items", q)
	var wrong *readmodel.QueryError
	require.ErrorAs(t, err, &wrong)
	_, err = w.pool.Exec(ctx, `insert into refold.rows_items_v1 (projection_name, version, key, data) select 'items', 1, 'x' || i, '{"n": 1}' from generate_series(1, 1001) i`)
	require.NoError(t, err)
	_, err = readmodel.FindBy(ctx, r.reader, "items", thingKey.Like("x%"), nil)
	require.ErrorIs(t, err, readmodel.ErrTooMany)
}

// Go reads through the same tokens and bounds as clients over HTTP.
func TestGoReadsContainTheirTokens(t *testing.T) {
	w := setup(t)
	r := w.replica()
	token := w.set("a", row(`{"n": 1}`))
	i, err := readmodel.FindByID[thing](ctx, r.reader, "items", "a", readmodel.Containing(token), readmodel.Waiting(20*time.Second))
	require.NoError(t, err)
	require.EqualValues(t, 1, i.N)
	ahead := token
	ahead[0].Seq++
	_, err = readmodel.FindByID[thing](ctx, r.reader, "items", "a", readmodel.Containing(ahead), readmodel.Waiting(time.Millisecond))
	require.ErrorIs(t, err, readmodel.ErrNotCaughtUp)
	_, err = readmodel.FindBy(ctx, r.reader, "items", anything, nil, readmodel.NotOlderThan(time.Nanosecond), readmodel.Waiting(time.Millisecond))
	require.ErrorIs(t, err, readmodel.ErrTooStale)
}

func TestChangesAreWatchedAsGoValues(t *testing.T) {
	w := setup(t)
	r := w.replica()
	things(w, 3)
	var from readmodel.Answer
	_, err := readmodel.FindByID[thing](ctx, r.reader, "items", "k001", readmodel.From(&from))
	require.NoError(t, err)
	watching, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	w.set("red", row(`{"n": 7, "color": "RED"}`))
	w.set("blue", row(`{"n": 8, "color": "BLUE"}`))
	w.remove("k001")
	told := map[string]readmodel.Watched[thing]{}
	done := errors.New("enough")
	for change, err := range readmodel.Watch(watching, r.feeds, "items", from.ChangeID(), thingColor.Eq("RED")) {
		if err != nil {
			require.ErrorIs(t, err, done)
			break
		}
		if told[change.Key] = change; len(told) == 3 {
			stop(done)
		}
	}
	require.Equal(t, readmodel.Upserted, told["red"].Kind)
	require.EqualValues(t, 7, told["red"].Value.N)
	require.Equal(t, readmodel.Removed, told["blue"].Kind, "the filter does not select it")
	require.Equal(t, readmodel.Removed, told["k001"].Kind)
	for _, err := range readmodel.Watch(ctx, r.feeds, "items", "nonsense", anything) {
		require.ErrorIs(t, err, readmodel.ErrChangeID)
	}
}
