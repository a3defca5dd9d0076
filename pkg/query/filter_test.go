package query_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/readmodel"
)

func TestAWrongQueryIsRefusedWithItsPlace(t *testing.T) {
	w := setup(t)
	r := w.replica()
	deep := strings.Repeat("and(", 9) + "n.eq.1" + strings.Repeat(")", 9)
	for _, c := range []struct{ query, pointer string }{
		{"nothing=eq.1", "/nothing"},
		{"n=1", "/n"},
		{"n=almost.1", "/n"},
		{"n=eq.1.0", "/n"},
		{"n=eq.1e3", "/n"},
		{"n=eq.", "/n"},
		{"n=eq.NaN", "/n"},
		{"n=in.(1,x)", "/n"},
		{"n=in.1,2", "/n"},
		{"n=in.(1,2", "/n"},
		{"n=eq." + strings.Repeat("9", 35), "/n"},
		{"f=eq.1e401", "/f"},
		{"f=eq.Infinity", "/f"},
		{"price=eq.1.234", "/price"},
		{"at=gt.yesterday", "/at"},
		{"at=gt.2024-01-01", "/at"},
		{"ok=eq.yes", "/ok"},
		{"ok=is.maybe", "/ok"},
		{"n=is.true", "/n"},
		{"n=like.1*", "/n"},
		{"name=like.a%5C", "/name"},
		{"name=eq.%00", "/name"},
		{"name=eq.%ff", "/name"},
		{"name=cs.(a)", "/name"},
		{"ref=eq.1", "/ref"},
		{"name->x=eq.1", "/name"},
		{"or=n.eq.1", "/or"},
		{"or=(n.eq.1", "/or"},
		{"or=(n.eq.1))", "/or"},
		{"or=(n.eq.\"1)", "/or"},
		{"or=()", "/or"},
		{"and=(" + deep + ")", "/and"},
		{"not=eq.1", "/not"},
		{"order=nothing", "/order"},
		{"order=n.up", "/order"},
		{"order=n,n", "/order"},
		{"order=", "/order"},
		{"select=nothing", "/select"},
		{"select=n,n", "/select"},
		{"limit=0", "/limit"},
		{"limit=-1", "/limit"},
		{"limit=1001", "/limit"},
		{"limit=1&limit=2", "/limit"},
		{"count=most", "/count"},
		{"a%2Fb~c=eq.1", "/a~1b~0c"},
	} {
		a := r.get(items + "?" + c.query)
		require.Equal(t, http.StatusBadRequest, a.status, "%s: %s", c.query, a.body)
		require.Contains(t, a.body, fmt.Sprintf(`"pointer":%q`, c.pointer), c.query)
	}
	require.Equal(t, http.StatusBadRequest, r.get(items+"?%zz").status)
	require.Equal(t, http.StatusNotAcceptable, r.get(items, "Accept", "text/html").status)
}

// hostile are texts that would do harm if they became SQL.
var hostile = []string{`'; drop table refold.event; --`, `" or 1=1`, `$1`, `\`, `a\'b`, `%s`, `{"a": 1}`, "new\nline", "\u2028", `a,b)`, `(`, `''`, `/* */`, `key`, `data`, "\x7f"}

func TestHostileNamesAndValuesStayValues(t *testing.T) {
	w := setup(t)
	r := w.replica()
	for i, text := range hostile {
		w.set(fmt.Sprintf("h%d", i), row(fmt.Sprintf(`{"name": %s}`, quoteJSON(text))))
	}
	for i, text := range hostile {
		found := r.get(items + "?select=key&name=eq." + url.QueryEscape(text)).list(t)
		require.Len(t, found.Rows, 1, "%q", text)
		require.Equal(t, fmt.Sprintf("h%d", i), found.Rows[0]["key"])
		found = r.get(items + "?select=key&or=" + url.QueryEscape("(name.eq."+quoteValue(text)+",name.in.("+quoteValue(text)+"))")).list(t)
		require.Len(t, found.Rows, 1, "%q", text)
		for _, query := range []string{url.QueryEscape(text) + "=eq.1", "name=" + url.QueryEscape(text) + ".1", "order=" + url.QueryEscape(text), "select=" + url.QueryEscape("n,"+text),
			"limit=" + url.QueryEscape(text), "or=" + url.QueryEscape("("+text+".eq.1)"), "n=eq." + url.QueryEscape(text), "count=" + url.QueryEscape(text)} {
			a := r.get(items + "?" + query)
			if text == "key" || text == "data" && a.status == http.StatusOK {
				continue
			}
			require.Equal(t, http.StatusBadRequest, a.status, "%s: %s", query, a.body)
		}
		require.Equal(t, http.StatusNotFound, r.get("/v1/read-models/"+url.PathEscape(text)).status, text)
	}
}

func quoteJSON(s string) string {
	raw, _ := json.Marshal(s)
	return string(raw)
}

func TestALargeReadModelRefusesWhatNoIndexServes(t *testing.T) {
	w := setup(t)
	r := w.replicaAt(w.pool.Config().ConnString(), readmodel.Config{StrictRows: 100})
	_, err := w.pool.Exec(ctx, `insert into refold.rows_items_v1 (projection_name, version, key, data)
		select 'items', 1, 'k' || i, jsonb_build_object('name', 'n' || i, 'n', i % 10, 'color', 'RED', 'at', '2024-01-01T00:00:00Z') from generate_series(1, 500) i`)
	require.NoError(t, err)
	_, err = w.pool.Exec(ctx, `analyze refold.rows_items_v1`)
	require.NoError(t, err)
	for query, index := range map[string]string{ // "": served
		"":                                      "",
		"key=in.(k1,k2)&order=at":               "",
		"color=eq.RED":                          "",
		"color=eq.RED&order=n":                  "",
		"color=eq.RED&order=n.desc":             "",
		"color=in.(RED,BLUE)&order=n":           "",
		"order=color.desc,n.desc":               "",
		"name=like.n1*":                         "",
		"name=gt.n1&order=name":                 "",
		"or=(name.eq.n1,color.eq.RED)&order=at": "",
		"order=color.desc,n":                    `["color","n"]`,
		"color=eq.RED&order=at":                 `["color","at"]`,
		"at=gt.2024-01-01T00:00:00Z":            `["at"]`,
		"n=eq.1&ok=is.true&order=at.desc":       `["n","ok"]`,
		"order=at":                              `["at"]`,
		"name=ilike.n1*":                        `none`,
		"name=neq.n1":                           `none`,
		"or=(name.eq.n1,n.eq.1)":                `none`,
		"not.and=(name.eq.n1)":                  `none`,
	} {
		a := r.get(items + "?" + query)
		switch index {
		case "":
			require.Equal(t, http.StatusOK, a.status, "%s: %s", query, a.body)
		case "none":
			require.Equal(t, http.StatusBadRequest, a.status, "%s: %s", query, a.body)
			require.Contains(t, a.body, "no index can serve", query)
		default:
			require.Equal(t, http.StatusBadRequest, a.status, "%s: %s", query, a.body)
			require.Contains(t, a.body, `"index":`+index, query)
		}
	}
	require.Greater(t, *r.get(items + "?count=planned&color=eq.RED").list(t).Count, int64(400))
}

func TestAQueryThatTakesTooLongSaysSo(t *testing.T) {
	w := setup(t)
	r := w.replicaAt(w.pool.Config().ConnString(), readmodel.Config{StatementTimeout: 500 * time.Millisecond})
	w.fill(3)
	tx, err := w.pool.Begin(ctx)
	require.NoError(t, err)
	defer tx.Rollback(ctx)
	_, err = tx.Exec(ctx, `lock table refold.rows_items_v1`)
	require.NoError(t, err)
	for _, path := range []string{items, items + "/k000"} {
		a := r.get(path)
		require.Equal(t, http.StatusServiceUnavailable, a.status, a.body)
		require.Contains(t, a.body, "query-timeout")
	}
}

func TestManyRowsAtOnce(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.fill(5)
	keys := []string{"missing"}
	for i := range 999 {
		keys = append(keys, fmt.Sprintf("k%03d", i))
	}
	body := fmt.Sprintf(`{"key": "in.(%s)", "select": "key,n", "order": "key.desc", "limit": 1000, "and": ["(n.gte.0)", "(n.lte.9)"]}`, strings.Join(keys, ","))
	post := func(body, media string) answer {
		req, err := http.NewRequest(http.MethodPost, r.url+items+"/query", strings.NewReader(body))
		require.NoError(t, err)
		return r.do(req, "Content-Type", media)
	}
	found := post(body, "application/json").list(t)
	require.Len(t, found.Rows, 5)
	require.Equal(t, "k004", found.Rows[0]["key"])
	require.Equal(t, http.StatusUnsupportedMediaType, post(body, "text/plain").status)
	require.Equal(t, http.StatusBadRequest, post(strings.Replace(body, "(missing", "(more,missing", 1), "application/json").status)
	for _, bad := range []string{``, `[]`, `{"n": 5}`, `{"n": "eq.1", "n": "eq.2"}`, `{"n": "eq.1"} x`, `{"limit": 1.5}`} {
		require.Equal(t, http.StatusBadRequest, post(bad, "application/json").status, bad)
	}
	require.Equal(t, http.StatusRequestEntityTooLarge, post(`{"n": "`+strings.Repeat("x", 1<<20)+`"}`, "application/json").status)
}
