package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/test/platform"
)

// deposit is one event of the oracle, in the words of the newest version.
type deposit struct {
	stream, first, last string
	cents               int64
}

// Three generations of an event lie in one log: two were appended by writers of
// their time, the third by commands. Aggregates, live rows, rebuilt rows, reads of
// the log, explanations and a reaction all see the newest version; the bytes stay
// as they were written.
func TestThreeGenerationsOfAnEventInOneLog(t *testing.T) {
	stack := platform.New(t, devstack.Database(t), devstack.FakeKafka(t))
	var deposits []deposit
	for i := range 40 {
		deposits = append(deposits, deposit{fmt.Sprintf("w%d", i%7), "Ada", []string{"Byron", "Lovelace", "King"}[i%3], int64(25 * (i + 1))})
	}
	stack.Schemas = generation(t, "Deposited.v1", "Thanked.v1")
	appendDeposits(t, stack, deposits[:10], func(d deposit) (string, string) {
		return "Deposited", fmt.Sprintf(`{"owner":"%s %s","amount":%g}`, d.first, d.last, float64(d.cents)/100)
	})
	stack.Schemas = generation(t, "Deposited.v1", "Deposited.v2", "Thanked.v1")
	appendDeposits(t, stack, deposits[10:20], func(d deposit) (string, string) {
		return "Deposited", fmt.Sprintf(`{"owner":"%s %s","amount":%g}`, d.first, d.last, float64(d.cents)/100)
	})
	stored := values(t, stack)
	require.Len(t, stored, 20)

	// Contracts that need upcasters, without them:
	stack.Schemas = filepath.Join(platform.Root(), "test/e2e/ledger/contracts")
	stdout, stderr, code := stack.Run("writer", "lint")
	require.Equal(t, 1, code, stdout+stderr)
	for _, part := range []string{"MoneyDeposited.v3.avsc", "version 2", "field first", "string", "upcaster from version 2 to 3"} {
		require.Contains(t, stderr, part)
	}

	stack.Schemas = ""
	useLedger(t, stack)
	writer := platform.NewClient(t, stack.Writer().URL())
	stack.Projector()
	queries := platform.NewClient(t, stack.Queries().URL())
	for _, d := range deposits[20:] {
		a, err := writer.Do(http.MethodPost, "/v1/commands/Wallet/"+d.stream+"/deposit", nil, fmt.Appendf(nil, `{"first":%q,"last":%q,"cents":%d}`, d.first, d.last, d.cents))
		require.NoError(t, err)
		require.Equal(t, http.StatusCreated, a.Status, string(a.Body))
	}

	cents, counts, owner, families := map[string]int64{}, map[string]int{}, map[string]string{}, map[string]int64{}
	for _, d := range deposits {
		cents[d.stream] += d.cents
		counts[d.stream]++
		owner[d.stream] = d.last
		families[d.last] += d.cents
	}
	type wallet struct {
		Owner, Unit     string
		Cents           int64
		Thanked         int
		Deposits        int
		First, Currency string
	}
	settled := func() bool { // the reaction's events are there too
		for stream := range cents {
			var view struct{ State wallet }
			if writer.Get("/v1/aggregates/Wallet/"+stream, nil, &view); view.State.Thanked != counts[stream] {
				return false
			}
		}
		return true
	}
	require.True(t, platform.Eventually(60*time.Second, settled), "the reaction has not seen all deposits")
	for stream := range cents {
		var view struct{ State wallet }
		writer.Get("/v1/aggregates/Wallet/"+stream, nil, &view)
		require.Equal(t, wallet{Owner: "Ada " + owner[stream], Unit: "EUR", Cents: cents[stream], Thanked: counts[stream]}, view.State, stream)
	}

	rows := func() map[string]map[string]any {
		all := make(map[string]map[string]any)
		for _, name := range []string{"balances", "families"} {
			var page struct{ Rows []map[string]any }
			queries.Get("/v1/read-models/"+name+"?limit=100", nil, &page)
			for _, row := range page.Rows {
				key := fmt.Sprint(name, "/", row["last"])
				if name == "balances" {
					key = fmt.Sprint(name, "/", row["cents"])
				}
				all[key] = row
			}
		}
		return all
	}
	want := make(map[string]map[string]any)
	for stream := range cents {
		want[fmt.Sprint("balances/", cents[stream])] = map[string]any{"owner": owner[stream], "unit": "EUR", "cents": float64(cents[stream]), "deposits": float64(counts[stream]), "thanked": owner[stream]}
	}
	for last := range families {
		want["families/"+last] = map[string]any{"last": last, "cents": float64(families[last]), "type": "MoneyDeposited"}
	}
	require.True(t, platform.Eventually(60*time.Second, func() bool { return fmt.Sprint(rows()) == fmt.Sprint(want) }), "want %v\ngot  %v", want, rows())

	for _, source := range []string{"topic", "eventstore"} {
		for _, name := range []string{"balances", "families"} {
			rebuild(t, queries, name, source)
		}
		require.Equal(t, fmt.Sprint(want), fmt.Sprint(rows()), "rebuilt from "+source)
	}

	requireRebuiltByAJob(t, stack, queries, deposits)

	var page struct {
		Events []struct {
			Type          string
			SchemaVersion int
			Data          map[string]any
		}
	}
	writer.Get("/v1/streams/Wallet/w0/events?limit=3", nil, &page)
	for i, version := range []int{1, 1, 2} {
		require.Equal(t, "MoneyDeposited", page.Events[i].Type)
		require.Equal(t, version, page.Events[i].SchemaVersion)
		require.Equal(t, fmt.Sprint(map[string]any{"first": "Ada", "last": deposits[7*i].last, "cents": deposits[7*i].cents, "unit": "EUR"}), fmt.Sprint(page.Events[i].Data))
	}
	a, err := queries.Do(http.MethodGet, "/v1/read-models/balances/w0/explain", nil, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, a.Status, string(a.Body))
	require.Contains(t, string(a.Body), `"cents"`)

	a, err = writer.Do(http.MethodPost, "/v1/streams/Wallet/w0/events", nil, []byte(`{"events":[{"type":"Deposited","data":{"owner":"A B","amount":1}}]}`))
	require.NoError(t, err)
	require.Equal(t, http.StatusUnprocessableEntity, a.Status)
	require.Contains(t, string(a.Body), "MoneyDeposited")

	stdout, stderr, code = stack.Run("writer", "lint", "--history", "--sample=0", "-o", "json")
	require.Zero(t, code, stdout+stderr)
	var lint struct {
		History []struct {
			Type                          string
			SchemaVersion, Events, Failed int
		}
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &lint))
	require.Equal(t, "[{Deposited 1 10 0} {Deposited 2 10 0} {MoneyDeposited 3 20 0} {Thanked 1 40 0}]", fmt.Sprint(lint.History))
	old := platform.New(t, stack.DatabaseURL, stack.Brokers) // refold's own programs, with contracts that lack what the log holds
	old.Schemas = generation(t, "Deposited.v1", "Thanked.v1")
	stdout, stderr, code = old.Run("writer", "lint", "--history")
	require.Equal(t, 1, code, stdout+stderr)
	require.Contains(t, stderr, "20 events of the log cannot be read")
	require.Regexp(t, `Wallet +MoneyDeposited +other +20 +20 +Wallet/\d+/\d+ the contracts have no event type MoneyDeposited`, stdout)

	now := values(t, stack)
	for id, value := range stored {
		require.Equal(t, value, now[id], "stored bytes are never rewritten")
	}
}

// generation copies some of the ledger's schemas into a folder of contracts.
func generation(t *testing.T, schemas ...string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "events/Wallet"), 0o755))
	for _, name := range schemas {
		raw, err := os.ReadFile(filepath.Join(platform.Root(), "test/e2e/ledger/contracts/events/Wallet", name+".avsc"))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "events/Wallet", name+".avsc"), raw, 0o644))
	}
	return dir
}

// appendDeposits has a writer of the stack's present contracts append them.
func appendDeposits(t *testing.T, stack *platform.Stack, deposits []deposit, event func(deposit) (typ, data string)) {
	t.Helper()
	writer := stack.Writer()
	client := platform.NewClient(t, writer.URL())
	for _, d := range deposits {
		typ, data := event(d)
		a, err := client.Do(http.MethodPost, "/v1/streams/Wallet/"+d.stream+"/events", nil, fmt.Appendf(nil, `{"events":[{"type":%q,"data":%s}]}`, typ, data))
		require.NoError(t, err)
		require.Equal(t, http.StatusCreated, a.Status, string(a.Body))
	}
	code, _ := writer.Stop()
	require.Zero(t, code)
}

// useLedger has the stack run the ledger's own programs.
func useLedger(t *testing.T, stack *platform.Stack) {
	t.Helper()
	dir := t.TempDir()
	for program, source := range map[string]string{"writer": "writing", "projector": "projecting", "rebuild": "rebuilding"} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, program), "./test/e2e/ledger/"+source)
		build.Dir = platform.Root()
		out, err := build.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	stack.UseBinaries(dir)
}

// requireRebuiltByAJob rebuilds what a function folds from events of three versions
// by the ledger's own `rebuild`, which knows the function and the upcasters.
func requireRebuiltByAJob(t *testing.T, stack *platform.Stack, queries *platform.Client, deposits []deposit) {
	t.Helper()
	type purse struct {
		Coins   []int64
		Largest int64
	}
	want := make(map[string]purse)
	for _, d := range deposits {
		p := want[d.stream]
		if d.cents < 100 {
			p.Coins = append(p.Coins, d.cents)
		}
		p.Largest = max(p.Largest, d.cents)
		want[d.stream] = p
	}
	requireRows := func(version string) {
		t.Helper()
		for stream, p := range want {
			a, err := queries.Do(http.MethodGet, "/v1/read-models/purses/"+stream, nil, nil)
			require.NoError(t, err)
			require.Equal(t, version, a.Header.Get("Refold-Projection-Version"))
			var got purse
			require.NoError(t, json.Unmarshal(a.Body, &got))
			require.Equal(t, p, got, stream)
		}
	}
	requireRows("1")
	for _, source := range []string{"topic", "eventstore"} {
		for _, name := range []string{"purses", "balances"} {
			stdout, stderr, code := stack.Run("rebuild", "run", name, "--source="+source, "--verify=full", "--admin-addr=127.0.0.1:0", "-o", "json")
			require.Zero(t, code, stdout+stderr)
		}
	}
	requireRows("3")
	stdout, stderr, code := stack.Run("rebuild", "verify", "purses", "-o", "json")
	require.Zero(t, code, stdout+stderr)
	stdout, stderr, code = stack.Run("rebuild", "status", "-o", "json", "balances")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, `"name":"balances"`)
}

// values returns the stored value of every event.
func values(t *testing.T, stack *platform.Stack) map[string]string {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, stack.DatabaseURL)
	require.NoError(t, err)
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, `select id::text, encode(value, 'hex') from refold.event`)
	require.NoError(t, err)
	stored := make(map[string]string)
	var id, value string
	_, err = pgx.ForEachRow(rows, []any{&id, &value}, func() error {
		stored[id] = value
		return nil
	})
	require.NoError(t, err)
	return stored
}

// rebuild rebuilds a projection over HTTP and waits until it serves.
func rebuild(t *testing.T, queries *platform.Client, name, source string) {
	t.Helper()
	a, err := queries.Do(http.MethodPost, "/v1/projections/"+name+"/rebuilds", nil, fmt.Appendf(nil, `{"source":%q}`, source))
	require.NoError(t, err)
	require.Equal(t, http.StatusAccepted, a.Status, string(a.Body))
	var started struct{ ID any }
	require.NoError(t, json.Unmarshal(a.Body, &started))
	var now struct{ State, Step, Error string }
	require.True(t, platform.Eventually(90*time.Second, func() bool {
		queries.Get("/v1/rebuilds/"+fmt.Sprint(started.ID), nil, &now)
		return now.State == "done" || now.State == "failed"
	}), "%+v", now)
	require.Equal(t, "done", now.State, "%+v", now)
}
