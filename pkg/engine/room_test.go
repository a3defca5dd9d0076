package engine_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/postgres"
)

// Workers leave the last sessions to others, say so, and go on when there are more.
func TestWorkersLeaveTheLastSessionsToOthers(t *testing.T) {
	t.Parallel()
	server, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{Settings: map[string]string{"max_connections": "40"}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	pool, err := postgres.Open(ctx, postgres.Config{URL: server.URL("postgres"), MaxConns: 16})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.NoError(t, postgres.Migrate(ctx, pool))
	w := setupIn(t, pool, definition)
	w.produce(w.event(inPartition(0), "1"), w.event(inPartition(1), "1"))
	var others []*pgx.Conn
	for {
		now, err := postgres.ReadRoom(ctx, pool)
		require.NoError(t, err)
		if now.Left() <= 0 {
			break
		}
		conn, err := pgx.Connect(ctx, server.URL("postgres"))
		require.NoError(t, err)
		others = append(others, conn)
		t.Cleanup(func() { conn.Close(ctx) })
	}
	e := w.newEngine()
	w.startEngine(e)
	require.Eventually(t, func() bool { return e.Standing() != nil }, patience, 20*time.Millisecond)
	require.ErrorContains(t, e.Standing(), "no session left")
	require.ErrorContains(t, e.Standing(), "rebuild retire")
	w.await("it is written down", `select count(*) from refold.progress where alarm like '%no session left%'`, 2)
	w.await("no worker has a session", `select count(*) from pg_stat_activity where application_name = 'refold-projector'`, 0)
	for _, conn := range others {
		require.NoError(t, conn.Close(ctx))
	}
	w.check(2)
	require.Eventually(t, func() bool { return e.Standing() == nil }, patience, 20*time.Millisecond)
}
