package api_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
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

// setup serves the API of the demo's contracts on a database of the test's own.
func setup(t testing.TB) *httptest.Server {
	t.Helper()
	return serve(t, api.Config{}, schemas.FS, true).server
}

// served is an API and what it stands on.
type served struct {
	server *httptest.Server
	pool   *pgxpool.Pool
	store  *eventstore.Store
}

func serve(t testing.TB, cfg api.Config, from fs.FS, aggregates bool) served {
	t.Helper()
	ctx := context.Background()
	pool := devstack.MigratedDatabase(t)
	contracts, err := avro.LoadContracts(from)
	require.NoError(t, err)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	store := eventstore.New(eventstore.Config{DatabaseURL: pool.Config().ConnString()}, log, prometheus.NewRegistry())
	var specs []eventstore.CategorySpec
	for _, c := range contracts.Categories() {
		specs = append(specs, eventstore.CategorySpec{Name: c.Name, Slots: c.Slots, Partitions: c.Partitions, Topic: "refold." + strings.ToLower(c.Name)})
	}
	require.NoError(t, store.EnsureCategories(ctx, pool, specs))
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
	a := api.New(cfg, api.Deps{Store: store, Pool: pool, Registry: reg, Contracts: contracts, SchemaIDs: ids, Logger: log})
	a.Register(mux)
	if aggregates {
		accounts := user.Define()
		aggregate.Command(accounts, "panic", func(a *user.Account, _ struct{}) error {
			a.Locked = true
			panic("a mistake")
		})
		runtime, err := aggregate.NewRuntime(aggregate.Config{}, aggregate.Deps{Store: store, Pool: pool, Schemas: reg, Contracts: contracts, SchemaIDs: ids, Logger: log}, accounts)
		require.NoError(t, err)
		require.NoError(t, a.RegisterAggregates(mux, runtime))
	}
	mux.HandleFunc("/", api.NotFound)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return served{server, pool, store}
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
