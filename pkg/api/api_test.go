package api_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/api"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/schemas"
	"github.com/refoldhq/refold/schemas/user"
)

// setup serves the API on a database of the test's own.
func setup(t testing.TB) *httptest.Server {
	t.Helper()
	ctx := context.Background()
	pool := devstack.MigratedDatabase(t)
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	store := eventstore.New(eventstore.Config{DatabaseURL: pool.Config().ConnString()}, log, prometheus.NewRegistry())
	require.NoError(t, store.EnsureCategories(ctx, pool, []eventstore.CategorySpec{{Name: "User", Slots: 64, Partitions: 8, Topic: "refold.user"}}))
	running, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		store.Run(running)
		close(done)
	}()
	t.Cleanup(func() { stop(); <-done })
	reg := registry.New(pool)
	ids, err := reg.RegisterContracts(ctx, contracts, func(category string) string { return "refold." + strings.ToLower(category) })
	require.NoError(t, err)
	mux := http.NewServeMux()
	served := api.New(api.Config{}, api.Deps{Store: store, Pool: pool, Registry: reg, Contracts: contracts, SchemaIDs: ids, Logger: log})
	served.Register(mux)
	accounts := user.Define()
	aggregate.Command(accounts, "panic", func(a *user.Account, _ struct{}) error {
		a.Locked = true
		panic("a mistake")
	})
	runtime, err := aggregate.NewRuntime(aggregate.Config{}, aggregate.Deps{Store: store, Pool: pool, Schemas: reg, Contracts: contracts, SchemaIDs: ids, Logger: log}, accounts)
	require.NoError(t, err)
	require.NoError(t, served.RegisterAggregates(mux, runtime))
	mux.HandleFunc("/", api.NotFound)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server
}

type answer struct {
	status int
	header http.Header
	body   map[string]any
	raw    string
}

func send(t testing.TB, server *httptest.Server, method, path string, header map[string]string, body string) answer {
	t.Helper()
	req, err := http.NewRequest(method, server.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	res, err := server.Client().Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	a := answer{status: res.StatusCode, header: res.Header, raw: string(raw)}
	json.Unmarshal(raw, &a.body) // not every answer is an object
	return a
}

const stream = "/v1/streams/User/42/events"

func created(more string) string {
	return `{` + more + `"events": [{"type": "UserCreated", "data": {"id": "42", "email": "a@b.c", "isActive": true}}]}`
}

func TestBadInputIsRefusedWithItsPlace(t *testing.T) {
	t.Parallel()
	server := setup(t)
	event := func(e string) string { return `{"events": [` + e + `]}` }
	deep := strings.Repeat("[", 40) + strings.Repeat("]", 40)
	for name, c := range map[string]struct {
		path, body string
		header     map[string]string
		status     int
		slug       string
		pointer    string
	}{
		"no JSON":               {stream, `{`, nil, 400, "bad-request", ""},
		"trailing data":         {stream, created("") + "x", nil, 400, "bad-request", ""},
		"duplicate key":         {stream, `{"events": [], "events": []}`, nil, 400, "bad-request", "/events"},
		"key in another case":   {stream, `{"Events": []}`, nil, 400, "bad-request", "/Events"},
		"unknown member":        {stream, created(`"foo": 1,`), nil, 400, "bad-request", "/foo"},
		"deep nesting":          {stream, event(`{"type": "UserCreated", "data": ` + deep + `}`), nil, 400, "bad-request", ""},
		"invalid UTF-8":         {stream, event("{\"type\": \"\xff\", \"data\": {}}"), nil, 400, "bad-request", "/events/0/type"},
		"lone surrogate":        {stream, event(`{"type": "\ud800", "data": {}}`), nil, 400, "bad-request", "/events/0/type"},
		"NUL":                   {stream, event(`{"type": "UserCreated", "data": {"id": "a\u0000"}}`), nil, 400, "bad-request", "/events/0/data/id"},
		"many digits":           {stream, `{"expectedVersion": 1` + strings.Repeat("0", 40) + `}`, nil, 400, "bad-request", "/expectedVersion"},
		"no events":             {stream, `{"events": []}`, nil, 400, "bad-request", "/events"},
		"too many events":       {stream, event(strings.Repeat(`{"type":"UserLoggedIn","data":{}},`, 1000) + `{"type":"UserLoggedIn","data":{}}`), nil, 400, "bad-request", "/events/1000"},
		"negative version":      {stream, created(`"expectedVersion": -1,`), nil, 400, "bad-request", "/expectedVersion"},
		"unknown word":          {stream, created(`"expectedVersion": "some",`), nil, 400, "bad-request", "/expectedVersion"},
		"contradiction":         {stream, created(`"expectedVersion": 3,`), map[string]string{"If-Match": `"4"`}, 400, "bad-request", "/expectedVersion"},
		"malformed id":          {stream, event(`{"type": "UserLoggedIn", "data": {}, "id": "x"}`), nil, 400, "bad-request", "/events/0/id"},
		"unknown category":      {"/v1/streams/Nope/42/events", created(""), nil, 404, "unknown-category", ""},
		"bad stream id":         {"/v1/streams/User/a%20b/events", created(""), nil, 400, "bad-request", ""},
		"unknown event type":    {stream, event(`{"type": "Nope", "data": {}}`), nil, 422, "unknown-event-type", ""},
		"unknown field":         {stream, event(`{"type": "UserLoggedIn", "data": {"x": 1}}`), nil, 422, "invalid-event-data", "/events/0/data/x"},
		"missing field":         {stream, event(`{"type": "UserEmailChanged", "data": {}}`), nil, 422, "invalid-event-data", "/events/0/data"},
		"wrong type":            {stream, event(`{"type": "UserEmailChanged", "data": {"newEmail": 1}}`), nil, 422, "invalid-event-data", "/events/0/data/newEmail"},
		"data before type":      {stream, event(`{"data": {"newEmail": 1}, "type": "UserEmailChanged"}`), nil, 422, "invalid-event-data", "/events/0/data/newEmail"},
		"time digits":           {stream, event(`{"type": "UserLoggedIn", "data": {}, "time": "2023-11-08T16:12:44.1234567Z"}`), nil, 422, "invalid-event-data", "/events/0/time"},
		"wrong version":         {stream, created(`"expectedVersion": 7,`), nil, 409, "version-conflict", ""},
		"too large":             {stream, created(`"x": "` + strings.Repeat("x", 1<<20) + `",`), nil, 413, "too-large", ""},
		"content type":          {stream, created(""), map[string]string{"Content-Type": "text/plain"}, 415, "unsupported-media-type", ""},
		"content encoding":      {stream, created(""), map[string]string{"Content-Encoding": "br"}, 415, "unsupported-media-type", ""},
		"accept":                {stream, created(""), map[string]string{"Accept": "text/html"}, 406, "not-acceptable", ""},
		"empty key":             {stream, created(""), map[string]string{"Idempotency-Key": ""}, 400, "bad-request", ""},
		"stream twice":          {"/v1/append", `{"appends": [` + strings.Repeat(`{"category": "User", "stream": "a", "events": [{"type": "UserLoggedIn", "data": {}}]},`, 2) + `]}`, nil, 400, "bad-request", "/appends/1"},
		"key outside of import": {"/v1/append", `{"idempotencyKey": "x"}`, nil, 400, "bad-request", "/idempotencyKey"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := send(t, server, http.MethodPost, c.path, c.header, c.body)
			require.Equal(t, c.status, a.status, a.raw)
			require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
			require.Equal(t, "/problems/"+c.slug, a.body["type"], a.raw)
			if c.pointer != "" {
				require.Equal(t, c.pointer, a.body["pointer"], a.raw)
			}
		})
	}
}

func TestOtherRefusals(t *testing.T) {
	t.Parallel()
	server := setup(t)
	for path, status := range map[string]int{"/v1/streams/User/none/events": 404, "/v1/streams/User/none": 404, "/v1/streams/User/none/events?limit=1001": 400, "/v1/streams/User/none/events?foo=1": 400,
		"/v1/events/x": 400, "/v1/events/01900000-0000-7000-8000-000000000001": 404, "/v1/categories/User/slots/64/events": 404, "/v1/categories/User/slots/0/events?after=-1": 400, "/nothing": 404} {
		require.Equal(t, status, send(t, server, http.MethodGet, path, nil, "").status, path)
	}
	a := send(t, server, http.MethodDelete, "/v1/categories", nil, "")
	require.Equal(t, 405, a.status)
	require.Equal(t, "GET", a.header.Get("Allow"))
	require.Equal(t, "3.1.0", send(t, server, http.MethodGet, "/openapi.json", nil, "").body["openapi"])
}

func TestAppendReplayAndRead(t *testing.T) {
	t.Parallel()
	server := setup(t)
	header := map[string]string{"Idempotency-Key": "k1"}
	first := send(t, server, http.MethodPost, stream, header, created(`"expectedVersion": "none", "metadata": {"actor": "me"},`))
	require.Equal(t, 201, first.status, first.raw)
	again := send(t, server, http.MethodPost, stream, header, created(`"expectedVersion": "none", "metadata": {"actor": "me"},`))
	require.Equal(t, 200, again.status)
	require.Equal(t, "true", again.header.Get("Idempotent-Replayed"))
	require.Equal(t, first.body["events"], again.body["events"])
	require.Equal(t, first.body["token"], again.body["token"])
	require.Equal(t, 422, send(t, server, http.MethodPost, stream, header, created("")).status)
	require.Equal(t, 409, send(t, server, http.MethodPost, stream, map[string]string{"If-Match": `"7"`}, created("")).status)
	require.Equal(t, 201, send(t, server, http.MethodPost, stream, map[string]string{"If-Match": `"1"`}, created("")).status)

	page := send(t, server, http.MethodGet, stream+"?limit=1", nil, "")
	require.EqualValues(t, 1, page.body["next"])
	event := page.body["events"].([]any)[0].(map[string]any)
	require.Equal(t, map[string]any{"id": "42", "email": "a@b.c", "isActive": true, "name": ""}, event["data"])
	require.Equal(t, map[string]any{"actor": "me"}, event["metadata"])
	one := send(t, server, http.MethodGet, "/v1/events/"+event["id"].(string), nil, "")
	require.Equal(t, event["position"], one.body["position"])
}

func TestGzipIsReadUpToTheLimit(t *testing.T) {
	t.Parallel()
	server := setup(t)
	pack := func(s string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write([]byte(s))
		z.Close()
		return b.String()
	}
	header := map[string]string{"Content-Encoding": "gzip"}
	require.Equal(t, 201, send(t, server, http.MethodPost, stream, header, pack(created(""))).status)
	require.Equal(t, 413, send(t, server, http.MethodPost, stream, header, pack(strings.Repeat(" ", 2<<20))).status)
}

func TestImportAnswersEachLineInOrder(t *testing.T) {
	t.Parallel()
	server := setup(t)
	var lines strings.Builder
	for i := range 500 {
		fmt.Fprintf(&lines, `{"appends": [{"category": "User", "stream": "s%d", "expectedVersion": %d, "events": [{"type": "UserLoggedIn", "data": {}}]}]}`+"\n", i%10, i/10)
	}
	lines.WriteString("\nnonsense\n" + `{"appends": [{"category": "User", "stream": "s1", "expectedVersion": "none", "events": [{"type": "UserLoggedIn", "data": {}}]}]}` + "\n")
	lines.WriteString(strings.Repeat("x", 2<<20) + "\n")
	lines.WriteString(`{"appends": [{"category": "User", "stream": "s1", "events": [{"type": "UserLoggedIn", "data": {}}]}, {"category": "User", "stream": "s2", "events": [{"type": "UserLoggedIn", "data": {}}]}]}`)
	a := send(t, server, http.MethodPost, "/v1/append", map[string]string{"Content-Type": "application/x-ndjson"}, lines.String())
	answers := strings.Split(strings.TrimSpace(a.raw), "\n")
	require.Len(t, answers, 505)
	for i, want := range append(make([]int, 500), 400, 409, 413, 201) {
		if want == 0 {
			want = 201
		}
		var line struct{ Line, Status int }
		require.NoError(t, json.Unmarshal([]byte(answers[i]), &line))
		require.Equal(t, i+1, line.Line)
		require.Equal(t, want, line.Status, answers[i])
	}
	var last struct {
		Lines int
		Token string
	}
	require.NoError(t, json.Unmarshal([]byte(answers[504]), &last))
	require.Equal(t, 504, last.Lines)
	require.NotEmpty(t, last.Token)
}

func FuzzAppend(f *testing.F) {
	server := setup(f)
	f.Add(created(""))
	f.Add(`{"events": [{"data": {}, "type": "UserLoggedIn", "id": "01900000-0000-7000-8000-000000000001", "time": "2020-01-01T00:00:00Z"}], "claims": [{"namespace": "a", "value": "b"}]}`)
	f.Fuzz(func(t *testing.T, body string) {
		if a := send(t, server, http.MethodPost, stream, nil, body); a.status >= 500 {
			t.Fatalf("status %d for %q: %s", a.status, body, a.raw)
		}
	})
}
