package api_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/api"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/engine"
)

// Requests are carried out by the engine, and tested there; here nobody feeds.
func TestParkedStreamsAreListedAndAskedFor(t *testing.T) {
	t.Parallel()
	ctx, pool := context.Background(), devstack.MigratedDatabase(t)
	_, err := pool.Exec(ctx, `insert into refold.projection (name, active, last_version) values ('p', 1, 1);
		insert into refold.projection_version (projection, version, state, definition, plan, leaf) values ('p', 1, 'active', '', '', 'x');
		insert into refold.parked_stream (projection, version, category, stream, slot, error) select 'p', 1, 'User', 's' || n, 0, 'too long' from generate_series(1, 3) n;
		insert into refold.parked_event (projection, version, category, stream, slot, seq, stream_version, id, type, time, recorded, value)
			select 'p', 1, 'User', 's' || n % 3 + 1, 0, n, n, gen_random_uuid(), 'UserCreated', now(), now(), '' from generate_series(0, 5) n`)
	require.NoError(t, err)
	mux := http.NewServeMux()
	api.RegisterParked(mux, engine.NewParked(pool), slog.New(slog.DiscardHandler))
	call := func(method, path, body string) (status int, answer map[string]any, h http.Header) {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		r.Header.Set("Refold-Wait", "0s")
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &answer), w.Body.String())
		return w.Code, answer, w.Header()
	}

	status, page, _ := call("GET", "/v1/projections/p/parked?limit=2", "")
	require.Equal(t, http.StatusOK, status)
	first := page["parked"].([]any)[0].(map[string]any)
	require.Equal(t, "User/s1", first["stream"])
	require.EqualValues(t, 2, first["events"])
	require.Equal(t, "User/0/0", first["event"].(map[string]any)["position"])
	_, rest, _ := call("GET", "/v1/projections/p/parked?limit=2&cursor="+page["next"].(string), "")
	require.Len(t, rest["parked"], 1)
	require.Nil(t, rest["next"])

	status, request, h := call("POST", "/v1/projections/p/parked/User%2Fs1/retry", `{"reason": "mended"}`)
	require.Equal(t, http.StatusAccepted, status)
	require.Nil(t, request["done"])
	_, again, _ := call("POST", "/v1/projections/p/parked/User%2Fs1/retry", `{"reason": "mended, I said"}`)
	require.Equal(t, request["id"], again["id"], "what is asked for is not asked for twice")
	_, page, _ = call("GET", "/v1/projections/p/parked", "")
	require.Len(t, page["parked"].([]any)[0].(map[string]any)["requests"], 1)

	_, err = pool.Exec(ctx, `select refold.request_answer($1::text::bigint, 1, '2 applied')`, request["id"])
	require.NoError(t, err)
	status, request, _ = call("GET", h.Get("Location"), "")
	require.Equal(t, http.StatusOK, status)
	require.NotNil(t, request["done"])
	require.Equal(t, map[string]any{"1": "2 applied"}, request["outcomes"])

	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/v1/projections/unknown/parked", "", 404},
		{"GET", "/v1/projections/%00/parked", "", 400},
		{"GET", "/v1/projections/%ff/parked", "", 400},
		{"GET", "/v1/projections/p/parked?limit=0", "", 400},
		{"GET", "/v1/projections/p/parked?limit=1001", "", 400},
		{"GET", "/v1/projections/p/parked?cursor=x", "", 400},
		{"GET", "/v1/projections/p/parked?offset=1", "", 400},
		{"GET", "/v1/projections/p/requests/99", "", 404},
		{"GET", "/v1/projections/p/requests/x", "", 404},
		{"POST", "/v1/projections/unknown/parked/User%2Fs1/retry", `{"reason": "x"}`, 404},
		{"POST", "/v1/projections/p/parked/User%2Fs9/skip", `{"reason": "x"}`, 404},
		{"POST", "/v1/projections/p/parked/User/retry", `{"reason": "x"}`, 400},
		{"POST", "/v1/projections/p/parked/User%2Fs%00/retry", `{"reason": "x"}`, 400},
		{"POST", "/v1/projections/p/parked/User%2Fs%ff/retry", `{"reason": "x"}`, 400},
		{"POST", "/v1/projections/p/parked/User%2Fs1/skip", ``, 400},
		{"POST", "/v1/projections/p/parked/User%2Fs1/skip", `{"reason": " "}`, 400},
		{"POST", "/v1/projections/p/parked/User%2Fs1/skip", `{"reason": "x", "force": true}`, 400},
		{"POST", "/v1/projections/p/parked/User%2Fs1/skip", `{"reason": "` + strings.Repeat("x", 1001) + `"}`, 400},
	} {
		status, answer, _ := call(c.method, c.path, c.body)
		require.Equal(t, c.status, status, "%s %s %s: %v", c.method, c.path, c.body, answer)
	}
}
