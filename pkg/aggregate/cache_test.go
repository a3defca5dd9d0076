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
	c := newCache[counter](size, 1<<30)
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
				if rand.IntN(50) == 0 {
					c.forget(fmt.Sprint(rand.IntN(ids)))
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
}

// What is kept takes no more bytes than were given, whether aggregates grow, shrink,
// or are larger than all there is.
func TestTheCacheIsBoundedByBytesToo(t *testing.T) {
	t.Parallel()
	const room = 16 * 1000
	c := newCache[int](1<<20, room)
	use := func(id, bytes int) (warm bool) {
		s, err := c.acquire(context.Background(), fmt.Sprint(id))
		require.NoError(t, err)
		warm = s.live != nil
		s.live, s.bytes = new(int), bytes
		c.release(s)
		return warm
	}
	for range 20_000 {
		use(rand.IntN(500), rand.IntN(300))
	}
	for i := range c.shards {
		s, taken := &c.shards[i], 0
		for _, e := range s.slots {
			taken += e.bytes
		}
		require.Equal(t, taken, s.bytes)
		require.LessOrEqual(t, taken, room/len(c.shards))
		require.NotEmpty(t, s.slots)
	}
	use(1000, 10)
	require.True(t, use(1000, 2000), "it was small")
	require.False(t, use(1000, 10), "it has outgrown its shard")
	require.True(t, use(1000, 10))

	beside := 1001
	for c.shard(fmt.Sprint(beside)) != c.shard("1000") {
		beside++
	}
	require.False(t, use(beside, 2000))
	require.True(t, use(1000, 10), "one that had no room has pushed it out")
}
