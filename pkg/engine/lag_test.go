package engine_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
)

func TestLagIsMeasuredAndTheMemberlessGroupToldOffsets(t *testing.T) {
	t.Parallel()
	w := setup(t)
	a, b := inPartition(0), inPartition(1)
	w.produce(w.event(a, "1"), w.event(b, "1"))
	w.start()
	w.check(2)
	w.awaitMetric("refold_projection_lag_events", 0)
	tx, err := w.pool.Begin(ctx)
	require.NoError(t, err)
	defer tx.Rollback(ctx)
	_, err = tx.Exec(ctx, `select from refold.progress where partition = 0 for update`)
	require.NoError(t, err)
	w.produce(w.event(a, "2"), w.event(a, "3"), w.event(a, "4"), w.event(b, "2"))
	w.awaitMetric("refold_projection_lag_events", 3)
	require.NoError(t, tx.Rollback(ctx))
	w.check(6)
	w.awaitMetric("refold_projection_lag_events", 0)
	w.awaitMetric("refold_projection_lag_seconds", 0)

	admin := kadm.NewClient(w.client)
	for _, group := range []string{"refold.logins", "refold.logins.v1"} {
		require.Eventually(t, func() bool {
			offsets, err := admin.FetchOffsets(ctx, group)
			return err == nil && offsets["refold.user"][0].At == 4 && offsets["refold.user"][1].At == 2
		}, patience, 50*time.Millisecond, group)
	}
	described, err := admin.DescribeGroups(ctx, "refold.logins")
	require.NoError(t, err)
	require.Empty(t, described["refold.logins"].Members)
}
