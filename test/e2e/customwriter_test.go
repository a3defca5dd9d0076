package e2e_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/test/platform"
)

// The program in customwriter stands where a user's would: its commands, its
// reaction and all that a writer serves are there, on contracts from a folder as the
// chart mounts them. A rebuild reads the whole log again, and the reaction does not
// notice.
func TestACustomWriterServesItsCommandsAndReacts(t *testing.T) {
	stack := platform.New(t, devstack.Database(t), devstack.FakeKafka(t))
	stack.Schemas = filepath.Join(platform.Root(), "schemas")
	dir := t.TempDir()
	for program, source := range map[string]string{"writer": "./test/e2e/customwriter", "projector": "./projector", "rebuild": "./rebuild"} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, program), source)
		build.Dir = platform.Root()
		out, err := build.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	stack.UseBinaries(dir)
	writer := stack.Writer()
	client := platform.NewClient(t, writer.URL())
	stack.Projector()
	queries := platform.NewClient(t, stack.Queries().URL())

	send := func(name, body string) platform.Answer {
		answer, err := client.Do("POST", "/v1/commands/User/42/"+name, nil, []byte(body))
		require.NoError(t, err)
		return answer
	}
	require.Equal(t, http.StatusCreated, send("create", `{"email":"ada@example.com"}`).Status)
	require.Equal(t, http.StatusUnprocessableEntity, send("logIn", `{"succeeded":true}`).Status)
	require.Equal(t, http.StatusCreated, send("verifyEmail", `{"email":"ada@example.com"}`).Status)
	require.True(t, platform.Eventually(60*time.Second, func() bool {
		answer, err := client.Do("GET", "/v1/aggregates/User/42", nil, nil)
		var view struct{ State struct{ Active bool } }
		return err == nil && json.Unmarshal(answer.Body, &view) == nil && view.State.Active
	}), "the reaction has not activated the account")
	require.Equal(t, http.StatusCreated, send("logIn", `{"succeeded":true}`).Status)
	audit, err := client.Do("GET", "/v1/aggregates/User/42/audit", nil, nil)
	require.NoError(t, err)
	require.Contains(t, string(audit.Body), `"actor":"reaction/activate"`)

	require.True(t, platform.Eventually(60*time.Second, func() bool {
		answer, err := queries.Do("GET", "/v1/read-models/rm_users/42", nil, nil)
		return err == nil && answer.Status == http.StatusOK
	}), "there is no row to rebuild")
	calls := reactionCalls(t, writer)
	require.Contains(t, calls, `{event_type="UserEmailVerified",outcome="ok",reaction="activate"} 1`)
	stdout, stderr, code := stack.Run("rebuild", "run", "rm_users", "--source=auto", "--admin-addr=127.0.0.1:0")
	require.Zero(t, code, stdout+stderr)
	require.Equal(t, http.StatusCreated, send("changeEmail", `{"email":"b@example.com"}`).Status)
	require.Equal(t, http.StatusCreated, send("verifyEmail", `{"email":"b@example.com"}`).Status)
	require.True(t, platform.Eventually(60*time.Second, func() bool {
		return strings.Contains(reactionCalls(t, writer), `{event_type="UserEmailVerified",outcome="ok",reaction="activate"} 2`)
	}), "the reaction was called for other events than the second one")
}

// reactionCalls returns the lines of the metric that counts calls of reactions.
func reactionCalls(t *testing.T, p *platform.Program) (lines string) {
	t.Helper()
	res, err := http.Get(p.AdminURL() + "/metrics")
	require.NoError(t, err)
	defer res.Body.Close()
	all, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	for line := range strings.Lines(string(all)) {
		if strings.HasPrefix(line, "refold_reaction_calls_total") {
			lines += line
		}
	}
	return lines
}

// `writer verify` finds a snapshot that is not what its events make, and removes it.
func TestWriterVerifyComparesSnapshots(t *testing.T) {
	stack := platform.New(t, devstack.Database(t), devstack.FakeKafka(t))
	client := platform.NewClient(t, stack.Writer("--snapshot-every=2").URL())
	for _, command := range [][2]string{{"create", `{"email":"ada@example.com"}`}, {"activate", `{}`}} {
		answer, err := client.Do("POST", "/v1/commands/User/42/"+command[0], nil, []byte(command[1]))
		require.NoError(t, err)
		require.Equal(t, http.StatusCreated, answer.Status, string(answer.Body))
	}
	pool, err := pgxpool.New(context.Background(), stack.DatabaseURL)
	require.NoError(t, err)
	defer pool.Close()
	require.True(t, platform.Eventually(60*time.Second, func() bool {
		var n int
		err := pool.QueryRow(context.Background(), `select count(*) from refold.snapshot where version = 2`).Scan(&n)
		return err == nil && n == 1
	}), "no snapshot was written")
	stdout, stderr, code := stack.Run("writer", "verify", "-o", "json")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, `"snapshots":1`)
	_, err = pool.Exec(context.Background(), `update refold.snapshot set state = replace(convert_from(state, 'UTF8'), 'ada@', 'eve@')::bytea`)
	require.NoError(t, err)
	_, stderr, code = stack.Run("writer", "verify")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "the snapshot of User 42 at version 2 is")
	stdout, stderr, code = stack.Run("writer", "verify", "-o", "json")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, `"snapshots":0`)
}

// `writer verify` tells whose claims are not what their rules say, and `writer claims`
// brings them there.
func TestWriterVerifyComparesClaims(t *testing.T) {
	stack := platform.New(t, devstack.Database(t), devstack.FakeKafka(t))
	client := platform.NewClient(t, stack.Writer().URL())
	answer, err := client.Do("POST", "/v1/commands/User/42/create", nil, []byte(`{"email":"ada@example.com"}`))
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, answer.Status, string(answer.Body))
	stdout, stderr, code := stack.Run("writer", "verify", "--claims=strict", "-o", "json")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, `"claims":{"aggregates":1,"claims":1,"differ":0}`)
	pool, err := pgxpool.New(context.Background(), stack.DatabaseURL)
	require.NoError(t, err)
	defer pool.Close()
	_, err = pool.Exec(context.Background(), `update refold.claim set value = 'Ada@Example.com'`)
	require.NoError(t, err)
	stdout, stderr, code = stack.Run("writer", "verify", "-o", "json")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, `"differ":1`)
	_, stderr, code = stack.Run("writer", "verify", "--claims=strict")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "User 42 at version 1 does not hold what it should within user.email")
	_, _, code = stack.Run("writer", "claims")
	require.Equal(t, 1, code)
	stdout, stderr, code = stack.Run("writer", "claims", "--repair")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "1 were brought to their rule, 0 differ from it")
	_, stderr, code = stack.Run("writer", "verify", "--claims=strict")
	require.Zero(t, code, stderr)
}

// `projector test` tells by its exit code whether the tests beside the
// definitions pass, and shows how those differ that do not.
func TestProjectorTest(t *testing.T) {
	stack := platform.New(t, "", nil)
	stdout, stderr, code := stack.Run("projector", "test")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "tests: fine")

	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(platform.Root(), "schemas"))))
	file := filepath.Join(dir, "projections", "more.test.yaml")
	require.NoError(t, os.WriteFile(file, []byte("test: nobody is there\ngiven: [{type: UserCreated, data: {id: '1', email: a@example.com, isActive: true}}]\nexpect: {rm_users: {'2': {}}}\n"), 0o644))
	stack.Schemas = dir
	stdout, stderr, code = stack.Run("projector", "test")
	require.Equal(t, 1, code)
	require.Contains(t, stdout, "projections/more.test.yaml:1: nobody is there\n  rm_users has other rows than expected:\n    - 2\n    + 1\n")
	require.Contains(t, stderr, "1 of 9 tests failed")
	require.NoError(t, os.WriteFile(file, []byte("tests: x\n"), 0o644))
	_, stderr, code = stack.Run("projector", "test")
	require.Equal(t, 2, code)
	require.Contains(t, stderr, "more.test.yaml")
}
