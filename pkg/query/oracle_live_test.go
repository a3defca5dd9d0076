package query_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// state is what a row was, nil for none, from before the commit that made it until
// after the commit that ended it.
type state struct {
	row         item
	from, until time.Time // until is zero while it lasts
}

// during tells whether the state may have been seen in a span of time.
func (s *state) during(start, end time.Time) bool {
	return !s.from.After(end) && (s.until.IsZero() || !s.until.Before(start))
}

// past is what the rows of two versions were. The versions hold different rows, so
// that what comes from the wrong one is no state of the right one.
type past struct {
	mu     sync.Mutex
	rows   map[string]map[string][]state // by version and key
	latest event.Token                   // of all that was committed to both
	at     time.Time                     // by then
}

// token returns what an answer contains that holds all that was committed by then.
func (p *past) token() (text string, then time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.latest.String(), p.at
}

// states returns the states of a key in a span.
func (p *past) states(version, key string, start, end time.Time) (list []state) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.rows[version][key] {
		if s.during(start, end) {
			list = append(list, s)
		}
	}
	return list
}

// change commits new rows of a key to both versions, each in its own time, as two
// engines would.
func (w *world) change(p *past, key string, rows map[string]item) {
	slot := event.SlotOf(key, slots)
	partition := slot % partitions
	w.seqs[slot]++
	w.offsets[partition]++
	id := [16]byte(event.NewID())
	for _, i := range rand.Perm(2) {
		version := i + 1
		name, row := fmt.Sprint(version), rows[fmt.Sprint(version)]
		p.mu.Lock()
		states := p.rows[name][key]
		p.rows[name][key] = append(states, state{row: row, from: time.Now()})
		p.mu.Unlock()
		require.NoError(w.t, pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `update refold.progress set seqs[array_position(slots, $1::smallint)] = $2, next_offset = $3, last_ids[array_position(slots, $1::smallint)] = $6 where version = $4 and partition = $5`,
				slot, w.seqs[slot], w.offsets[partition], version, partition, id)
			if err == nil {
				_, err = tx.Exec(ctx, `insert into refold.event (category, slot, seq, version, id, time, recorded, stream, type, value)
					select id, $1, $2, $2, $3, now(), clock_timestamp(), $4, 'ItemTried', '' from refold.category on conflict do nothing`, slot, w.seqs[slot], id, key)
			}
			if err == nil && row == nil {
				_, err = tx.Exec(ctx, fmt.Sprintf(`delete from refold.rows_items_v%d where key = $1`, version), key)
			}
			if err == nil && row != nil {
				_, err = tx.Exec(ctx, fmt.Sprintf(`insert into refold.rows_items_v%d (projection_name, version, key, data) values ('items', %d, $1, $2::text::jsonb) on conflict (key) do update set data = excluded.data`, version, version), key, row.json())
			}
			return err
		}))
		p.mu.Lock()
		if n := len(p.rows[name][key]); n > 1 {
			p.rows[name][key][n-2].until = time.Now()
		}
		p.mu.Unlock()
		w.announce(version, partition, w.offsets[partition]-1, w.offsets[partition], key)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = time.Now()
	p.latest = event.Merge(p.latest, event.NewToken(event.Mark{Position: event.Position{Category: "Item", Slot: slot, Seq: w.seqs[slot]}, Event: event.ID(id).Sum()}))
}

// generatedQuery is a query with its meaning.
type generatedQuery struct {
	values  url.Values
	filters []filter
	order   []sorting
}

func (q *generatedQuery) selects(i item) bool {
	return i != nil && !slices.ContainsFunc(q.filters, func(f filter) bool { b := f.holds(i); return b == nil || !*b })
}

// steady tells whether no row ever changes its place.
func (q *generatedQuery) steady() bool { return q.order[0].name == "key" }

var generatedQueries = rapid.Custom(func(t *rapid.T) *generatedQuery {
	q := &generatedQuery{values: url.Values{"limit": {fmt.Sprint(rapid.IntRange(1, 6).Draw(t, "limit"))}}}
	for range rapid.IntRange(0, 1).Draw(t, "filters") {
		f := generateFilter(t, 1)
		q.filters = append(q.filters, f)
		q.values.Add("and", "("+f.text+")")
	}
	text := ""
	if text, q.order = generateOrder(t); rapid.Bool().Draw(t, "by key") {
		text, q.order = "key.desc", []sorting{{"key", true, false}}
	}
	if text != "" {
		q.values.Set("order", text)
	}
	q.values.Set("select", "key,"+strings.Join(slices.Sorted(maps.Keys(domains)), ","))
	return q
})

// seen reads a row of an answer as an item.
func seen(row map[string]any) item {
	i := item{}
	for name, v := range row {
		if v == nil {
			continue
		}
		text := fmt.Sprint(v)
		if kinds[name] == "list" {
			raw, _ := json.Marshal(v)
			text = string(raw)
		}
		i[name] = &text
	}
	return i
}

func equalItems(a, b item) bool {
	for name := range domains {
		x, y := a[name], b[name]
		if (x == nil) != (y == nil) || x != nil && compareValues(kinds[name], *x, *y) != 0 {
			return false
		}
	}
	return true
}

// walked is one row of a walk.
type walked struct {
	version string
	row     item
	by      time.Time // it was answered
}

// judgedWalk walks all pages, each at another replica, and judges what it was told
// by the states that the rows had meanwhile.
func (p *past) judgedWalk(t *testing.T, q *generatedQuery, replicas []*replica) (versions map[string]bool, pages int) {
	token, start := p.token()
	values := maps.Clone(q.values)
	var rows []walked
	versions = map[string]bool{}
	for ; ; pages++ {
		a := replicas[pages%len(replicas)].get(items+"?"+values.Encode(), "Refold-Token", token, "Refold-Wait", "30s")
		if a.status != http.StatusOK {
			t.Errorf("%v: %d %s", values, a.status, a.body)
			return versions, pages
		}
		l := a.list(t)
		version := a.header.Get("Refold-Projection-Version")
		versions[version] = true
		for _, row := range l.Rows {
			rows = append(rows, walked{version, seen(row), time.Now()})
		}
		if l.Next == nil {
			break
		}
		if len(l.Rows) == 0 {
			t.Errorf("%v: a page without rows has a next one", values)
		}
		values.Set("cursor", *l.Next)
	}
	end := time.Now()
	if len(versions) > 1 && !q.steady() {
		t.Errorf("%v: pages of several versions, though rows may change their places", q.values)
	}
	times := map[string]int{}
	for n, r := range rows {
		key := *r.row["key"]
		times[key]++
		if !slices.ContainsFunc(p.states(r.version, key, start, r.by), func(s state) bool { return s.row != nil && equalItems(s.row, r.row) }) {
			t.Errorf("%v: %v was no state of %s in version %s during the walk: %v", q.values, r.row, key, r.version, p.states(r.version, key, start, r.by))
		}
		if !q.selects(r.row) {
			t.Errorf("%v does not select %v", q.values, r.row)
		}
		if n > 0 && compareItems(q.order, rows[n-1].row, r.row) >= 0 {
			t.Errorf("%v: %s stands behind %s", q.values, key, *rows[n-1].row["key"])
		}
	}
	for n := range oracleKeys {
		key := fmt.Sprintf("k%d", n)
		if q.steady() && times[key] > 1 {
			t.Errorf("%v: %s was told %d times", q.values, key, times[key])
		}
		throughout := true
		for version := range versions {
			states := p.states(version, key, start, end)
			throughout = throughout && len(states) == 1 && q.selects(states[0].row)
		}
		if throughout && times[key] != 1 {
			t.Errorf("%v: %s existed throughout and was told %d times", q.values, key, times[key])
		}
	}
	return versions, pages
}

const (
	oracleKeys   = 25
	oracleRounds = 6
)

// While rows change and versions serve in turn, every walk of a generated query
// tells of each row that existed throughout exactly once, of nothing that no row
// was meanwhile, of everything that its token contains, and in order.
func TestGeneratedQueriesDuringWritesAndAcrossFlips(t *testing.T) {
	w := setup(t)
	w.version(2, definition)
	replicas := []*replica{w.replica(), w.replicaAt(w.url(), noCache), w.replicaAt(w.url(), readmodel.Config{})}
	p := &past{rows: map[string]map[string][]state{"1": {}, "2": {}}}
	seed := rand.Int()
	t.Logf("seed %d", seed)
	drawn := seed
	draw := func() int { drawn++; return drawn }
	change := func(n int) {
		key := fmt.Sprintf("k%d", n)
		rows := map[string]item{}
		for _, version := range []string{"1", "2"} {
			if i := generatedItems.Example(draw()); n%5 != 0 || rand.N(3) > 0 { // some keys come and go
				i["key"] = &key
				rows[version] = i
			}
		}
		w.change(p, key, rows)
	}
	for n := range oracleKeys {
		change(n)
	}
	serves, walks, several := 1, atomic.Int64{}, atomic.Int64{}
	for range oracleRounds {
		stop := make(chan struct{})
		var walking sync.WaitGroup
		for range 4 {
			q := generatedQueries.Example(draw())
			walking.Go(func() {
				for !waitOr(stop, 0) && !t.Failed() {
					versions, pages := p.judgedWalk(t, q, replicas)
					if walks.Add(1); pages > 0 && len(versions) > 1 {
						several.Add(1)
					}
				}
			})
		}
		for n := range 40 {
			change(rand.N(oracleKeys))
			if n%8 == 7 {
				serves = 3 - serves
				w.flip(serves)
			}
		}
		close(stop)
		walking.Wait()
		if t.Failed() {
			return
		}
	}
	hits, _ := replicas[0].reader.CacheStats()
	t.Logf("%d walks, %d over several versions, %d answers were kept", walks.Load(), several.Load(), hits)
	require.Positive(t, several.Load())
}
