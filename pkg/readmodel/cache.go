package readmodel

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/refoldhq/refold/pkg/event"
)

// cache keeps answers by version and query, within a budget of bytes. What it
// keeps is judged by [validity] when it is asked for, and by the progress that it
// was read at when the client sends a token.
type cache struct {
	validity *validity
	watcher  *Watcher
	entries  *otter.Cache[cacheKey, *entry] // nil: nothing is kept

	hits, misses atomic.Uint64
}

// cacheKey is a row's key, or the normal form of a list query, of a version.
type cacheKey struct {
	leaf  string // names of leaves are never used twice
	list  bool
	query string
}

// entry is a kept answer. It never changes.
type entry struct {
	row   []byte // of a query by key, nil: no such row
	token string // of that row, when one stream feeds it
	page  *Page  // of a list
	keys  []uint32
	of    *snapshot
}

// entryOverhead estimates what an entry takes besides its rows, in bytes; its
// share in the progress that many entries have in common included.
const entryOverhead = 400

func (k cacheKey) weigh(e *entry) uint32 {
	n := entryOverhead + len(k.query) + len(e.row) + len(e.token) + 4*len(e.keys)
	if e.page != nil {
		n += e.page.size()
	}
	return uint32(min(n, 1<<31))
}

func newCache(validity *validity, watcher *Watcher, budget int, ttl time.Duration) (*cache, error) {
	c := &cache{validity: validity, watcher: watcher}
	if budget <= 0 {
		return c, nil
	}
	entries, err := otter.New(&otter.Options[cacheKey, *entry]{MaximumWeight: uint64(budget), Weigher: cacheKey.weigh,
		ExpiryCalculator: otter.ExpiryWriting[cacheKey, *entry](ttl)})
	if err != nil {
		return nil, fmt.Errorf("making the cache of answers: %w", err)
	}
	c.entries = entries
	return c, nil
}

// find returns an answer that may still be given and contains the token.
func (c *cache) find(m *Model, k cacheKey, token event.Token) *entry {
	e := c.look(m, k, token)
	if e != nil {
		c.hits.Add(1)
	} else {
		c.misses.Add(1)
	}
	return e
}

func (c *cache) look(m *Model, k cacheKey, token event.Token) *entry {
	if c.entries == nil {
		return nil
	}
	e, ok := c.entries.GetIfPresent(k)
	if !ok || !c.holds(m, e) {
		return nil
	}
	if !e.of.progress.Covers(token) {
		return nil
	}
	for i := range token {
		mark := &token[i]
		// Whether an event was parked is known of a snapshot in which none was.
		if mark.Written && !e.of.clean || !c.validity.known(k.leaf, e.of, mark) {
			return nil
		}
	}
	return e
}

// keep stores an answer, unless it is invalid already or older than what is kept.
func (c *cache) keep(m *Model, k cacheKey, e *entry) {
	if c.entries == nil || !c.holds(m, e) {
		return
	}
	c.entries.Compute(k, func(before *entry, found bool) (*entry, otter.ComputeOp) {
		if found && c.holds(m, before) && !e.of.follows(before.of) {
			return before, otter.CancelOp
		}
		return e, otter.WriteOp
	})
}

// holds tells whether an answer may still be given.
func (c *cache) holds(m *Model, e *entry) bool {
	branch := c.validity.branch.Load() // another one's invalidations are not heard
	return branch != 0 && branch == e.of.progress.branch && c.validity.reliable(time.Now()) && c.validity.rows(m.stamps, e.of.begun, e.keys...)
}
