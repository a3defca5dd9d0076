package postgres_test

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/postgres"
)

func session(t *testing.T, cfg postgres.Config) *pgx.Conn {
	t.Helper()
	conn, err := postgres.Connect(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func migrated(t *testing.T) string {
	t.Helper()
	return devstack.MigratedDatabase(t).Config().ConnString()
}

func TestSessionsHaveTheSettingsThatRefoldReliesOn(t *testing.T) {
	t.Parallel()
	conn := session(t, postgres.Config{URL: devstack.Database(t), AppName: "tester",
		StatementTimeout: 5 * time.Second, LockTimeout: 1500 * time.Microsecond, IdleInTransactionTimeout: time.Minute})
	for name, want := range map[string]string{
		"application_name": "tester", "search_path": "", "TimeZone": "UTC", "transaction_isolation": "read committed",
		"statement_timeout": "5s", "lock_timeout": "2ms", "idle_in_transaction_session_timeout": "1min", "tcp_keepalives_idle": "15",
	} {
		var value string
		require.NoError(t, conn.QueryRow(t.Context(), `select current_setting($1)`, name).Scan(&value))
		require.Equal(t, want, value, name)
	}
}

func TestOpenDoesNotDial(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: "postgres://nobody@" + l.Addr().String() + "/none?sslmode=disable"})
	require.NoError(t, err)
	defer pool.Close()
	err = pool.Ping(t.Context())
	require.Equal(t, postgres.ClassConnection, postgres.Classify(err), "%v", err)
	require.True(t, postgres.SafeToRetry(err), "nothing was sent")
	_, err = postgres.Open(t.Context(), postgres.Config{URL: "postgres://127.0.0.1/x", MaxConns: -1})
	require.Error(t, err)
}

func TestConcurrentMigrationsOfAnEmptyDatabaseAllSucceed(t *testing.T) {
	t.Parallel()
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: devstack.Database(t)})
	require.NoError(t, err)
	defer pool.Close()
	before, err := postgres.Missing(t.Context(), pool)
	require.NoError(t, err)
	require.Greater(t, len(before), 5)

	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() { errs[i] = postgres.Migrate(t.Context(), pool) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	after, err := postgres.Missing(t.Context(), pool)
	require.NoError(t, err)
	require.Empty(t, after)
}

func TestErrorsOfTheServerHaveTheirClass(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]postgres.Class{
		"40001": postgres.ClassConflict, "40P01": postgres.ClassConflict, "55P03": postgres.ClassLockTimeout,
		"57014": postgres.ClassTimeout, "57P01": postgres.ClassShutdown, "57P03": postgres.ClassShutdown,
		"25006": postgres.ClassReadOnly, "53100": postgres.ClassResources, "53300": postgres.ClassResources,
		"42P01": postgres.ClassMissing, "23505": postgres.ClassConstraint, "22003": postgres.ClassData,
		"54000": postgres.ClassData, "08006": postgres.ClassConnection, "42601": postgres.ClassOther, "25P03": postgres.ClassShutdown,
	} {
		err := errors.Join(errors.New("appending"), &pgconn.PgError{Code: code})
		require.Equal(t, want, postgres.Classify(err), code)
		require.Equal(t, want.Transient(), postgres.RetryAfter(err) > 0, code)
		require.True(t, postgres.IsCode(err, code))
	}
	require.Equal(t, postgres.ClassNone, postgres.Classify(nil))
	_, err := os.Stat("/not/there")
	require.Equal(t, postgres.ClassOther, postgres.Classify(err), "files have errnos too")
	require.Equal(t, postgres.ClassCanceled, postgres.Classify(context.Canceled))
	require.False(t, postgres.Transient(errors.New("a bug")))
}

func TestTerminatedBackendIsTransientAndNotSafeToRetry(t *testing.T) {
	t.Parallel()
	url := devstack.Database(t)
	victim, killer := session(t, postgres.Config{URL: url}), session(t, postgres.Config{URL: url})
	backend, err := postgres.ReadBackend(t.Context(), victim)
	require.NoError(t, err)

	other := postgres.Backend{PID: backend.PID, Started: backend.Started.Add(time.Microsecond)}
	ended, err := other.Terminate(t.Context(), killer)
	require.NoError(t, err)
	require.False(t, ended, "the same pid with another start is another backend")

	ended, err = backend.Terminate(t.Context(), killer)
	require.NoError(t, err)
	require.True(t, ended)
	_, err = victim.Exec(t.Context(), `select 1`)
	require.True(t, postgres.ConnectionLost(err), "%v", err)
	require.True(t, postgres.Transient(err))
	require.False(t, postgres.SafeToRetry(err), "what it had sent may have happened")
}

func TestBlockingNamesTheBackendInTheWay(t *testing.T) {
	t.Parallel()
	url := migrated(t)
	holder, waiter, watcher := session(t, postgres.Config{URL: url}), session(t, postgres.Config{URL: url}), session(t, postgres.Config{URL: url})
	want, err := postgres.ReadBackend(t.Context(), holder)
	require.NoError(t, err)
	tx, err := holder.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `lock table refold.lease`)
	require.NoError(t, err)
	result := make(chan error, 1)
	go func() { _, err := waiter.Exec(context.Background(), `select from refold.lease`); result <- err }()
	require.Eventually(t, func() bool {
		blocking, err := postgres.Blocking(t.Context(), watcher, int32(waiter.PgConn().PID()))
		return err == nil && len(blocking) == 1 && blocking[0] == want
	}, 10*time.Second, 5*time.Millisecond)
	require.NoError(t, tx.Rollback(t.Context()))
	require.NoError(t, <-result)
}

func TestIncarnationIsThatOfOneRunOfTheServer(t *testing.T) {
	t.Parallel()
	url := devstack.Database(t)
	one, err := postgres.ReadIncarnation(t.Context(), session(t, postgres.Config{URL: url}))
	require.NoError(t, err)
	two, err := postgres.ReadIncarnation(t.Context(), session(t, postgres.Config{URL: url}))
	require.NoError(t, err)
	require.Equal(t, one, two)
	require.True(t, one == two, "comparable")
	require.NotZero(t, one.System)
	require.NotZero(t, one.Timeline)
}
