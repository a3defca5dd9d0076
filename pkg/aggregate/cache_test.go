package aggregate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Many callers of few aggregates in a cache that is too small for them: nobody
// shares one, what is kept is the newest, and no more is kept than was asked for.
func TestOneCallerAtATimeHasAnAggregate(t *testing.T) {
	t.Parallel()
	type counter struct{ n int }
	const size, ids = 32, 200
	c := newCache[counter](size)
	var counts [ids]int // each is changed by whoever has the aggregate
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 3000 {
				id := rand.IntN(ids)
				s, err := c.acquire(context.Background(), fmt.Sprint(id))
				if err != nil {
					t.Error(err)
					return
				}
				if s.live == nil {
					s.live = &counter{n: counts[id]}
				}
				if s.live.n != counts[id] {
					t.Errorf("aggregate %d is at %d, its cached state at %d", id, counts[id], s.live.n)
				}
				counts[id]++
				if s.live.n++; rand.IntN(4) == 0 {
					s.live = nil // something went wrong
				}
				c.release(s)
				switch rand.IntN(100) {
				case 0:
					c.forget(fmt.Sprint(rand.IntN(ids)))
				case 1:
					c.clear()
				}
			}
		})
	}
	all.Wait()
	kept := 0
	for i := range c.shards {
		kept += len(c.shards[i].slots)
		require.Equal(t, c.shards[i].used.Len(), len(c.shards[i].slots))
	}
	require.LessOrEqual(t, kept, size+len(c.shards)*8) // what was in use when others came stays until the next one
	c.clear()
	for i := range c.shards {
		require.Empty(t, c.shards[i].slots)
	}
}
