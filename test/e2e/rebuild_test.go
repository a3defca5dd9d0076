package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/test/platform"
)

// The histories' rows, rebuilt by the program from topic and event store, killed
// in between, are those that were made live, byte for byte; and they serve.
func TestRebuiltHistories(t *testing.T) {
	for _, h := range histories {
		t.Run(h.name, func(t *testing.T) {
			stack := newStack(t)
			writer := platform.NewClient(t, stack.Writer().URL())
			stack.Projector()
			queries := platform.NewClient(t, stack.Queries("--rebuilds=off").URL())
			changes := readHistory(t, h.name)
			token := importHistory(t, writer, changes)
			want := oracle(t, changes)
			requireRows(t, want, queries, token)
			for name := range keyFields {
				out, errs, code := stack.Run("rebuild", "run", name, "--verify=deterministic", "--parallel=2", "--admin-addr=127.0.0.1:0")
				require.Zero(t, code, "%s%s", out, errs)
				out, errs, code = stack.Run("rebuild", "run", name, "--source=eventstore", "--verify=full", "--parallel=8", "--memory=64MiB", "--admin-addr=127.0.0.1:0")
				require.Zero(t, code, "%s%s", out, errs)
				require.Equal(t, leafRows(t, stack, name, 1), leafRows(t, stack, name, 2), name)
				require.Equal(t, leafRows(t, stack, name, 1), leafRows(t, stack, name, 3), name)
				out, errs, code = stack.Run("rebuild", "verify", name)
				require.Zero(t, code, "%s%s", out, errs)
			}
			requireRows(t, want, queries, token)
			requireVerified(t, stack)
		})
	}
}

// leafRows returns every column of a version's rows, as text.
func leafRows(t *testing.T, stack *platform.Stack, name string, version int) map[string]string {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, stack.DatabaseURL)
	require.NoError(t, err)
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, `select key, data::text || coalesce(state::text, '') from refold.projections where projection_name = $1 and version = $2`, name, version)
	require.NoError(t, err)
	stored := make(map[string]string)
	var key, text string
	_, err = pgx.ForEachRow(rows, []any{&key, &text}, func() error {
		stored[key] = text
		return nil
	})
	require.NoError(t, err)
	require.NotEmpty(t, stored)
	return stored
}

// What is asked for over HTTP is run by the program that serves reads; another
// one is a conflict; it can be promoted, rolled back and retired; errors have
// their classes.
func TestRebuildOverHTTP(t *testing.T) {
	stack := platform.New(t, "", nil)
	stack.Schemas = contracts()
	dev := platform.NewClient(t, stack.Dev().URL())
	changes := readHistory(t, "river")[:300]
	token := importHistory(t, dev, changes)
	requireRows(t, oracle(t, changes), dev, token)
	post := func(path, body string, status int) map[string]any {
		t.Helper()
		a, err := dev.Do(http.MethodPost, path, nil, []byte(body))
		require.NoError(t, err)
		require.Equal(t, status, a.Status, "POST %s: %s", path, a.Body)
		var answer map[string]any
		require.NoError(t, json.Unmarshal(a.Body, &answer))
		return answer
	}
	id := fmt.Sprint(post("/v1/projections/files/rebuilds", `{"promote":"manual"}`, 202)["id"])
	var now struct{ State, Step, Error string }
	require.True(t, platform.Eventually(60*time.Second, func() bool {
		dev.Get("/v1/rebuilds/"+id, nil, &now)
		return now.State == "waiting"
	}), "%+v", now)
	problem := post("/v1/projections/files/rebuilds", `{}`, 409)
	require.Equal(t, "/problems/rebuild-under-way", problem["type"])
	post("/v1/rebuilds/"+id+"/pause", "", 409)
	require.Equal(t, "done", post("/v1/rebuilds/"+id+"/promote", "", 200)["state"])
	requireRows(t, oracle(t, changes), dev, token)
	require.EqualValues(t, 1, post("/v1/projections/files/rollback", "", 200)["active"])
	requireRows(t, oracle(t, changes), dev, token)
	post("/v1/projections/files/retire", `{"version":1}`, 409)
	require.Equal(t, []any{2.0}, post("/v1/projections/files/retire", `{}`, 200)["retired"])
	for path, c := range map[string]struct {
		body   string
		status int
	}{
		"/v1/projections/nothing/rebuilds": {`{}`, 404}, "/v1/rebuilds/99999/cancel": {"", 404}, "/v1/rebuilds/x/cancel": {"", 404},
		"/v1/projections/days/rebuilds": {`{"promote":"maybe"}`, 400}, "/v1/projections/authors/rebuilds": {`{"unknown":1}`, 400},
		"/v1/projections/days/rollback": {"", 409}, "/v1/projections/nothing/rollback": {"", 409}, "/v1/projections/nothing/retire": {"", 404},
	} {
		post(path, c.body, c.status)
	}
	var list []struct {
		Name     string
		Versions []struct {
			Version int
			State   string
			Rows    int
			Lag     struct{ Events int }
		}
	}
	dev.Get("/v1/projections", nil, &list)
	require.Len(t, list, 3)
	for _, p := range list {
		if p.Name == "files" {
			require.Len(t, p.Versions, 1, "what is retired is gone")
			require.Equal(t, "active", p.Versions[0].State)
		}
	}
}

// A rebuild that is killed with kill -9 is resumed by the next run.
func TestKilledRebuildIsResumed(t *testing.T) {
	stack := newStack(t)
	writer := platform.NewClient(t, stack.Writer().URL())
	stack.Projector()
	queries := platform.NewClient(t, stack.Queries("--rebuilds=off").URL())
	changes := readHistory(t, "tailscale")
	token := importHistory(t, writer, changes)
	requireRows(t, oracle(t, changes), queries, token)
	killed := stack.Rebuild("run", "files", "--parallel=1", "--rate=4000")
	require.True(t, platform.Eventually(60*time.Second, func() bool {
		return strings.Contains(killed.Log(), `"step":"load"`) && strings.Contains(killed.Log(), "load") && loaded(t, stack) > 0
	}), killed.Log())
	killed.Kill()
	began := time.Now()
	out, errs, code := stack.Run("rebuild", "run", "files", "--parallel=1", "--admin-addr=127.0.0.1:0")
	require.Zero(t, code, "%s%s", out, errs)
	require.Less(t, time.Since(began), 60*time.Second)
	require.Equal(t, leafRows(t, stack, "files", 1), leafRows(t, stack, "files", 2))
}

// loaded returns how many partitions are loaded.
func loaded(t *testing.T, stack *platform.Stack) (n int) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, stack.DatabaseURL)
	require.NoError(t, err)
	defer conn.Close(ctx)
	require.NoError(t, conn.QueryRow(ctx, `select count(*) from refold.rebuild_partition where loaded is not null`).Scan(&n))
	return n
}
