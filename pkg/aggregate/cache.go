package aggregate

import (
	"container/list"
	"context"
	"hash/maphash"
	"sync"
)

// cache keeps aggregates warm and gives each to one caller at a time: callers of
// one aggregate would only make one another lose races. It holds a bounded number
// of aggregates and of their bytes, besides those in use, and drops those that were
// used longest ago.
type cache[A any] struct {
	seed   maphash.Seed
	shards [16]shard[A]
}

type shard[A any] struct {
	mu    sync.Mutex // guards all below, and the slots' users and place
	slots map[string]*slot[A]
	used  *list.List // of *slot[A]: all that have something to keep, the one used last in front
	max   int

	bytes, maxBytes int // of all in used
}

// slot is one aggregate. Whoever has taken lock may use live, held and bytes.
type slot[A any] struct {
	id    string
	lock  chan struct{} // holds an element while somebody has the slot
	live  *A            // nil: to be loaded
	held  held          // what live holds
	bytes int           // that live takes, about
	users int           // callers that have it or wait for it
	place *list.Element // in used; nil when there was nothing to keep yet
	taken int           // bytes that are counted for it while it has a place
}

func newCache[A any](size, bytes int) *cache[A] {
	c := &cache[A]{seed: maphash.MakeSeed()}
	for i := range c.shards {
		c.shards[i] = shard[A]{slots: make(map[string]*slot[A]), used: list.New(), max: max(1, size/len(c.shards)), maxBytes: bytes / len(c.shards)}
	}
	return c
}

func (c *cache[A]) shard(id string) *shard[A] {
	return &c.shards[maphash.String(c.seed, id)%uint64(len(c.shards))]
}

// acquire waits until nobody else has the aggregate.
func (c *cache[A]) acquire(ctx context.Context, id string) (*slot[A], error) {
	s := c.shard(id)
	s.mu.Lock()
	e := s.slots[id]
	if e == nil {
		e = &slot[A]{id: id, lock: make(chan struct{}, 1)} // one: it is a mutex that can be waited for with a context
		s.slots[id] = e
	}
	e.users++
	s.mu.Unlock()
	select {
	case e.lock <- struct{}{}:
		return e, nil
	default:
	}
	select {
	case e.lock <- struct{}{}:
		return e, nil
	case <-ctx.Done():
		s.leave(e)
		return nil, context.Cause(ctx)
	}
}

// release gives the aggregate to the next caller.
func (c *cache[A]) release(e *slot[A]) {
	<-e.lock
	c.shard(e.id).leave(e)
}

// leave counts a user off. The last one, whom no other can disturb any more, finds
// out whether there is something to keep.
func (s *shard[A]) leave(e *slot[A]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.users--; e.users > 0 {
		return
	}
	if e.live == nil || e.bytes > s.maxBytes { // one that is larger than all room must not push out the others first
		s.drop(e)
		return
	}
	if e.place == nil {
		e.place = s.used.PushFront(e)
	}
	s.used.MoveToFront(e.place)
	s.bytes += e.bytes - e.taken
	e.taken = e.bytes
	s.evict()
}

// evict drops what was used longest ago. Aggregates in use stay, so that nobody
// else makes a second slot for them.
func (s *shard[A]) evict() {
	for at := s.used.Back(); at != nil && (s.used.Len() > s.max || s.bytes > s.maxBytes); {
		before := at.Prev()
		if e := at.Value.(*slot[A]); e.users == 0 {
			s.drop(e)
		}
		at = before
	}
}

func (s *shard[A]) drop(e *slot[A]) {
	if e.place != nil {
		s.used.Remove(e.place)
		s.bytes -= e.taken
		e.place, e.taken = nil, 0
	}
	delete(s.slots, e.id)
}

// forget drops an aggregate that somebody else has changed, unless it is in use:
// its user finds out by its version.
func (c *cache[A]) forget(id string) {
	s := c.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.slots[id]; e != nil && e.users == 0 {
		s.drop(e)
	}
}
