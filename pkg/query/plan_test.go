package query_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/readmodel"
)

// statements collects what is sent to the server in pipelines.
type statements struct {
	mu       sync.Mutex
	list     []*pgx.QueuedQuery
	sessions map[*pgx.Conn]bool
}

func (s *statements) TraceQueryStart(ctx context.Context, conn *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[conn] = true
	return ctx
}
func (s *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (s *statements) TraceBatchStart(ctx context.Context, conn *pgx.Conn, d pgx.TraceBatchStartData) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[conn] = true
	s.list = append(s.list, d.Batch.QueuedQueries...)
	return ctx
}
func (s *statements) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (s *statements) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// last returns the last statement that reads rows.
func (s *statements) last() *pgx.QueuedQuery {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range slices.Backward(s.list) {
		if strings.Contains(q.SQL, "refold.rows_") {
			return q
		}
	}
	return nil
}

// traced returns what a replica sends, which is started behind it.
func (w *world) traced() *statements {
	w.t.Helper()
	s := &statements{sessions: make(map[*pgx.Conn]bool)}
	cfg := w.pool.Config()
	cfg.ConnConfig.Tracer = s
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	require.NoError(w.t, err)
	w.t.Cleanup(pool.Close)
	w.pool = pool
	return s
}

// explain returns the plan of a statement.
func (w *world) explain(q *pgx.QueuedQuery) string {
	w.t.Helper()
	rows, err := w.pool.Query(ctx, "explain "+q.SQL, q.Arguments...)
	require.NoError(w.t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(w.t, err)
	return strings.Join(lines, "\n")
}

// What strict mode lets pass is served by the index that it has in mind: the very
// statement that was sent is explained.
func TestWhatStrictModeLetsPassIsServedByAnIndex(t *testing.T) {
	w := newWorld(t)
	w.plan = w.compile(definition + "  - {fields: [tags]}\n")
	w.create()
	_, err := w.pool.Exec(ctx, `insert into refold.rows_items_v1 (projection_name, version, key, data)
		select 'items', 1, 'k' || i, jsonb_build_object('name', 'n' || i, 'n', i % 1000, 'color', (array['RED', 'GREEN', 'BLUE'])[1 + i % 3],
			'tags', jsonb_build_array('t' || i % 500, 'u' || i % 700)) from generate_series(1, 20000) i`)
	require.NoError(t, err)
	_, err = w.pool.Exec(ctx, `analyze refold.rows_items_v1`)
	require.NoError(t, err)
	sent := w.traced()
	r := w.replicaAt(w.url(), readmodel.Config{CacheBytes: -1}) // strict from 10,000 rows on, as it is by default
	indexes := map[string]string{}
	for _, x := range readmodel.LeafIndexes(w.plan, readmodel.Version{Projection: "items", Number: 1, Leaf: "rows_items_v1"}) {
		indexes[x.On] = x.Name
	}
	index := func(part string) string {
		for on, name := range indexes {
			if strings.Contains(on, part) {
				return name
			}
		}
		require.Fail(t, "no index on "+part)
		return ""
	}
	for query, want := range map[string]string{
		"tags=cs.(t7)":                          index("gin"),
		"tags=cs.(t7,u7)&order=n":               index("gin"),
		"tags=cs.(t7)&n=gt.5&limit=1000":        index("gin"),
		"or=(tags.cs.(t7),name.eq.n5)&order=at": index("gin"),
		"tags=cs.(t7)&key=gt.k5&order=key.desc": index("gin"),
		"name=eq.n77":                           index("'name'"),
		"name=gte.n77&order=name&limit=5":       index("'name'"),
		"name=like.n77*&order=name&limit=5":     index("'name'"),
		"color=eq.RED&order=n.desc&limit=5":     index("'color'"),
		"color=eq.RED&n=gt.990&limit=5":         index("'color'"),
		"key=in.(k1,k2)":                        "rows_items_v1_pkey",
		"limit=20":                              "rows_items_v1_pkey",
	} {
		a := r.get(items + "?" + query)
		require.Equal(t, http.StatusOK, a.status, "%s: %s", query, a.body)
		require.NotEmpty(t, a.list(t).Rows, query)
		plan := w.explain(sent.last())
		require.Contains(t, plan, want, query)
		require.NotContains(t, plan, "Seq Scan", query)
		if next := a.list(t).Next; next != nil {
			require.Equal(t, http.StatusOK, r.get(items+"?"+query+"&cursor="+*next).status, query)
			require.NotContains(t, w.explain(sent.last()), "Seq Scan", "%s, the second page", query)
		}
	}
	for _, query := range []string{"tags=not.cs.(t7)", "or=(tags.cs.(t7),n.eq.5)", "tags=is.null"} {
		require.Contains(t, r.get(items+"?"+query).body, "no index can serve", query)
	}
}

// The server makes the plan of what is read with every answer once and keeps it:
// making it takes longer than what is planned, by key and with tokens too.
func TestWhatAllQueriesReadIsPlannedOnce(t *testing.T) {
	w := setup(t)
	token := w.set("k1", row(`{"n": 1}`))
	sent := w.traced()
	r := w.replicaAt(w.url(), readmodel.Config{CacheBytes: -1})
	const rounds = 20
	for range rounds {
		require.Equal(t, http.StatusOK, r.get(items+"/k1").status)
		require.Equal(t, http.StatusOK, r.get(items+"/k1", "Refold-Token", token.String()).status)
		require.Equal(t, http.StatusOK, r.get(items+"?limit=5").status)
	}
	var kept, made int64
	for session := range sent.sessions {
		var k, m int64
		if session.IsClosed() {
			continue
		}
		require.NoError(t, session.QueryRow(ctx, `select coalesce(sum(generic_plans), 0), coalesce(sum(custom_plans), 0) from pg_prepared_statements
			where statement like '%refold.progress%'`).Scan(&k, &m))
		kept, made = kept+k, made+m
	}
	require.GreaterOrEqual(t, kept, int64(2*rounds))
	require.LessOrEqual(t, made, int64(10), "five are made before one is kept")
}

// A table that was small when it was analyzed is not read whole where an index
// serves a list: the sessions would keep that plan while it grows.
func TestAListThatAnIndexServesNeverReadsTheTableWhole(t *testing.T) {
	w := setup(t)
	r := w.replicaAt(w.url(), noCache)
	_, err := w.pool.Exec(ctx, `insert into refold.rows_items_v1 (projection_name, version, key, data)
		select 'items', 1, 'k' || i, jsonb_build_object('name', 'n' || i, 'n', i, 'color', 'RED') from generate_series(1, 60) i`)
	require.NoError(t, err)
	_, err = w.pool.Exec(ctx, `analyze refold.rows_items_v1`)
	require.NoError(t, err)
	counted := func() (whole, indexed int) {
		require.NoError(t, w.pool.QueryRow(ctx, `select seq_scan, coalesce(idx_scan, 0) from pg_stat_user_tables where relname = 'rows_items_v1'`).Scan(&whole, &indexed))
		return whole, indexed
	}
	eventually(t, "the building of its indexes is counted", func() bool { whole, _ := counted(); return whole > 0 })
	whole, indexed := counted()
	queries := []string{"name=eq.n7", "key=in.(k1,k2)", "color=eq.RED&order=n.desc&limit=5", "name=gte.n7&order=name", "limit=5"}
	for _, query := range queries {
		require.NotEmpty(t, r.get(items+"?"+query).list(t).Rows, query)
	}
	eventually(t, "the sessions tell what they have read", func() bool {
		r.get(items + "?limit=1") // with the end of a transaction
		_, now := counted()
		return now >= indexed+len(queries) // both counts come together
	})
	now, _ := counted()
	require.Equal(t, whole, now)
	require.NotEmpty(t, r.get(items+"?n=eq.7").list(t).Rows)
	require.NotEmpty(t, r.get(items+"?limit=1&count=exact").list(t).Rows)
	eventually(t, "what no index serves is read whole", func() bool { r.get(items + "?limit=1"); now, _ := counted(); return now > whole })
}

// Without the index the refusal names it.
func TestStrictModeNamesTheIndexOfMembers(t *testing.T) {
	w := setup(t)
	r := w.replicaAt(w.url(), readmodel.Config{StrictRows: 1})
	w.fill(5)
	_, err := w.pool.Exec(ctx, `analyze refold.rows_items_v1`)
	require.NoError(t, err)
	for query, index := range map[string]string{
		"tags=cs.(a)":                  `["tags"]`,
		"tags=cs.(a)&order=at":         `["tags"]`,
		"tags=cs.(a)&at=is.null":       `["at"]`,
		"tags=is.null&at=is.null":      `["at"]`,
		"color=eq.RED&tags=cs.(a)":     "",
		"key=eq.k001&tags=is.null":     "",
		"key=eq.k001&order=at":         "",
		"tags=is.null&order=at&n=eq.1": `["n"]`,
	} {
		a := r.get(items + "?" + query)
		if index == "" {
			require.Equal(t, http.StatusOK, a.status, "%s: %s", query, a.body)
			continue
		}
		require.Equal(t, http.StatusBadRequest, a.status, "%s: %s", query, a.body)
		require.Contains(t, a.body, fmt.Sprintf(`"index":%s`, index), query)
		require.Contains(t, a.body, "/problems/no-index", query)
	}
}
