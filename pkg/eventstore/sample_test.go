package eventstore_test

import (
	"fmt"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/registry"
)

// A sample of the log has about as many events as were asked for: no event twice, and
// the first and the last ones of a slot among them however few they are.
func TestASampleOfTheLogIsSpreadOverASlot(t *testing.T) {
	t.Parallel()
	store, pool := setup(t)
	const n, slots = 200, 64 + 16
	appended := to("a", eventstore.None, n) // their values are of no schema, so that all of them fail
	for i := range appended.Events {
		appended.Events[i].Type = fmt.Sprintf("Event%03d", i)
	}
	_, err := store.Append(ctx, request(appended))
	require.NoError(t, err)
	none, err := avro.LoadContracts(fstest.MapFS{})
	require.NoError(t, err)

	for sample, want := range map[int]int{0: n, 1: 2 * 32, slots * 32 * 3: 3 * 32, slots * n: 6 * 32, slots * 32 * 7: n} {
		lines, err := eventstore.CheckHistory(ctx, pool, registry.New(pool), none, sample)
		require.NoError(t, err)
		require.Len(t, lines, want, sample)
		seen := make(map[string]bool)
		for _, line := range lines {
			require.Equal(t, [2]int64{1, 1}, [2]int64{line.Events, line.Failed}, line.Position)
			seen[line.Type] = true
		}
		require.True(t, seen["Event000"] && seen["Event199"], sample)
		if want > 2*32 {
			require.True(t, seen["Event100"], "nothing of the middle is read of %d", sample)
		}
	}
}
