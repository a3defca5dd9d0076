package devstack_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/postgres"
)

func TestPostgresKeepsItsDataOverEveryEnd(t *testing.T) {
	t.Parallel()
	server := startPostgres(t, devstack.PostgresConfig{})
	execute(t, connect(t, server.URL("postgres")), `create table kept as select 7 as n`)
	before := incarnation(t, connect(t, server.URL("postgres")))
	stop := func(mode string) func() error { return func() error { return server.Stop(mode) } }
	for name, end := range map[string]func() error{
		"kill": server.Kill, "fast": stop("fast"), "immediate": stop("immediate"),
	} {
		port := server.Port()
		require.NoError(t, end(), name)
		require.Zero(t, server.Pid())
		require.NoError(t, server.Start(), name)
		require.Equal(t, port, server.Port())
		conn := connect(t, server.URL("postgres"))
		require.Equal(t, 7, number(t, conn, `select n from kept`), name)
		after := incarnation(t, conn)
		require.Equal(t, before.System, after.System)
		require.Equal(t, before.Timeline, after.Timeline)
		require.NotEqual(t, before.Started, after.Started, "a restart is another incarnation")
		before = after
	}
	require.Error(t, server.Stop("gently"))
	require.Error(t, server.Start(), "it is running")
}

func TestPostgresStartsAgainInTheSameFolder(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openFolder(t), "data")
	first, err := devstack.StartPostgres(t.Context(), devstack.PostgresConfig{Dir: dir, Fsync: true})
	require.NoError(t, err)
	execute(t, connect(t, first.URL("postgres")), `create table kept as select 7 as n`)
	require.NoError(t, first.Kill()) // leaves postmaster.pid and, for a moment, its children

	second := startPostgres(t, devstack.PostgresConfig{Dir: dir, Fsync: true})
	require.Equal(t, 7, number(t, connect(t, second.URL("postgres")), `select n from kept`))
	require.NoError(t, second.Close())
	require.FileExists(t, filepath.Join(dir, "PG_VERSION"), "a folder that was given is kept")
}

func TestPostgresListensOnTheLoopbackInterfaceOnly(t *testing.T) {
	t.Parallel()
	server := startPostgres(t, devstack.PostgresConfig{})
	conn := connect(t, server.URL("postgres"))
	var addresses, sockets string
	require.NoError(t, conn.QueryRow(t.Context(),
		`select current_setting('listen_addresses'), current_setting('unix_socket_directories')`).Scan(&addresses, &sockets))
	require.Equal(t, "127.0.0.1", addresses)
	require.Empty(t, sockets)
}

func TestPostgresNeverRunsAsRoot(t *testing.T) {
	t.Parallel()
	server := startPostgres(t, devstack.PostgresConfig{})
	info, err := os.Stat(server.Dir())
	require.NoError(t, err)
	require.NotZero(t, info.Sys().(*syscall.Stat_t).Uid, "the owner of the data folder, who Postgres insists to be")
}

func TestFolderThatTheServersUserCannotReachIsNamed(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root runs Postgres as somebody else")
	}
	closed := filepath.Join(openFolder(t), "closed")
	require.NoError(t, os.Mkdir(closed, 0o700))
	_, err := devstack.StartPostgres(t.Context(), devstack.PostgresConfig{Dir: filepath.Join(closed, "data")})
	require.ErrorContains(t, err, "may not enter "+closed)
}

func TestFoldersAboveTheDataAreMade(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openFolder(t), "not", "there", "data")
	server := startPostgres(t, devstack.PostgresConfig{Dir: dir})
	require.Equal(t, dir, server.Dir())
}

func TestFolderWithSomethingElseInItIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir := openFolder(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "letter.txt"), []byte("dear"), 0o600))
	_, err := devstack.StartPostgres(t.Context(), devstack.PostgresConfig{Dir: dir})
	require.Error(t, err)
	require.FileExists(t, filepath.Join(dir, "letter.txt"))
}

func TestWrongSettingIsReportedWithTheServersOwnWords(t *testing.T) {
	t.Parallel()
	_, err := devstack.StartPostgres(t.Context(), devstack.PostgresConfig{Settings: map[string]string{"no_such_setting": "1"}})
	require.ErrorContains(t, err, "no_such_setting")
}

func TestPromotedStandbyThatWasBehindHasLostTheTailAndIsAnotherIncarnation(t *testing.T) {
	t.Parallel()
	primary := startPostgres(t, devstack.PostgresConfig{})
	p := connect(t, primary.URL("postgres"))
	execute(t, p, `create table t (n int)`)
	execute(t, p, `insert into t values (1)`)
	standby, err := primary.Standby(t.Context())
	require.NoError(t, err)
	defer standby.Close()
	require.NoError(t, standby.CatchUp(t.Context()))
	require.NoError(t, standby.PauseReplay(t.Context()))
	execute(t, p, `insert into t values (2)`)
	before := incarnation(t, p)

	s := connect(t, standby.URL("postgres"))
	_, err = postgres.ReadIncarnation(t.Context(), s)
	require.True(t, postgres.IsCode(err, "55000"), "a standby has no incarnation: %v", err)
	require.Equal(t, 1, number(t, s, `select count(*) from t`))

	require.NoError(t, standby.ResumeReplay(t.Context()))
	require.NoError(t, standby.CatchUp(t.Context()))
	require.Equal(t, 2, number(t, s, `select count(*) from t`))

	require.NoError(t, standby.PauseReplay(t.Context()))
	execute(t, p, `insert into t values (3)`)
	require.NoError(t, standby.Promote(t.Context()))
	require.Equal(t, 2, number(t, s, `select count(*) from t`), "the tail is lost")
	after := incarnation(t, s)
	require.Equal(t, before.System, after.System)
	require.NotEqual(t, before.Timeline, after.Timeline)
	require.NotEqual(t, before, after)
	require.Equal(t, before, incarnation(t, p), "the old primary lives on")
}

// TestServersEndWithAKilledParent starts this test binary again, which starts a
// server and is killed.
func TestServersEndWithAKilledParent(t *testing.T) {
	t.Parallel()
	child := exec.Command(os.Args[0], "-test.run", "^TestChildThatIsKilled$", "-test.v")
	child.Env = append(os.Environ(), "DEVSTACK_CHILD=1")
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	var pid int
	var dir string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if n, _ := fmt.Sscanf(lines.Text(), "server %d %s", &pid, &dir); n == 2 {
			break
		}
	}
	require.NotZero(t, pid)
	require.NoError(t, child.Process.Kill())
	child.Wait() // killed, as it says

	require.Eventually(t, func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH }, waitLimit, pollEvery, "the server is gone")
	require.Eventually(t, func() bool { _, err := os.Stat(dir); return os.IsNotExist(err) }, waitLimit, pollEvery, "and its folder")
}

func TestChildThatIsKilled(t *testing.T) {
	if os.Getenv("DEVSTACK_CHILD") == "" {
		t.Skip("only as the child of another test")
	}
	server, err := devstack.StartPostgres(t.Context(), devstack.PostgresConfig{})
	require.NoError(t, err)
	fmt.Printf("server %d %s\n", server.Pid(), server.Dir())
	select {} // until killed
}

// openFolder returns a folder that every user may enter, which t.TempDir is not.
func openFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "devstack-test-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}
