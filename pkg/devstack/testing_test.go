package devstack_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/postgres"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, devstack.IgnoreServers()) }

func TestDatabasesOfTestsAreMigratedAndApart(t *testing.T) {
	t.Parallel()
	a, b := devstack.MigratedDatabase(t), devstack.MigratedDatabase(t)
	_, err := a.Exec(t.Context(), `insert into refold.category (name, slots, partitions, topic) values ('User', 64, 8, 'refold.user')`)
	require.NoError(t, err)
	var n int
	require.NoError(t, b.QueryRow(t.Context(), `select count(*) from refold.category`).Scan(&n))
	require.Zero(t, n)
	missing, err := postgres.Missing(t.Context(), b)
	require.NoError(t, err)
	require.Empty(t, missing)
}

func TestDatabaseIsGoneAfterItsTest(t *testing.T) {
	t.Parallel()
	var url string
	t.Run("inner", func(t *testing.T) {
		url = devstack.Database(t)
		conn := connect(t, url)
		require.Zero(t, number(t, conn, `select count(*) from pg_namespace where nspname = 'refold'`), "it is empty")
	})
	_, err := postgres.Connect(t.Context(), postgres.Config{URL: url})
	require.True(t, postgres.IsCode(err, "3D000"), "invalid_catalog_name: %v", err)
}
