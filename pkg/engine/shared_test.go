package engine_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/event"
)

const shared = `projection: addresses
category: User
key: email
fields:
  email:  {key: true}
  events: {count: UserCreated}
  last:   {from: [UserCreated.id]}
`

// Both partitions write the same rows, in batches that meet them in different
// orders: nothing is lost, no deadlock stays, and the last value is that of the
// greatest stamp whoever committed last.
func TestSharedRowsWrittenFromTwoPartitionsAtOnce(t *testing.T) {
	t.Parallel()
	w := setupWith(t, shared)
	w.start(func(c *engine.Config) { c.MaxBatch = 10 })
	n := 0
	for round := range 20 {
		var events []*event.Event
		for i := range 30 {
			key := (i*7 + round) % 11
			events = append(events, w.event(inPartition(0), fmt.Sprint(key)), w.event(inPartition(1), fmt.Sprint(10-key)))
		}
		w.produce(events...)
		n += len(events)
	}
	w.await("applied", applied, int64(n))
	w.await("every event is in the rows once", counted, int64(n))
	w.await("counts add up", unaccounted, 0)
	report, err := engine.Verify(ctx, w.pool, w.registry, w.feed)
	require.NoError(t, err)
	require.EqualValues(t, 11, report.Rows)
}

// A session that ends while a batch of shared rows is on its way leaves it done or
// undone as a whole.
func TestSharedRowsSurviveLostSessions(t *testing.T) {
	t.Parallel()
	w := setupWith(t, shared)
	w.start(func(c *engine.Config) { c.MaxBatch = 5 })
	for range 10 {
		var events []*event.Event
		for i := range 40 {
			events = append(events, w.event(inPartition(i%2), fmt.Sprint(i%3)))
		}
		w.produce(events...)
		_, err := w.pool.Exec(ctx, `select pg_terminate_backend(owner_pid) from refold.progress where owner_pid is not null`)
		require.NoError(t, err)
	}
	w.check(400)
}
