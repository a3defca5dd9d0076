package engine

import (
	"sync"

	"github.com/refoldhq/refold/pkg/projection"
)

// rowCache keeps rows of one stream as they stand in their tables, those of all
// partitions within one budget. The row that was used least recently goes first,
// whosever it is. Rows that a batch has changed are the batch's until it is
// committed, so nothing that is only here is ever lost.
//
// Whoever takes a row out of it may change it: only the worker of the partition
// does, and when its commit fails it drops all its rows.
type rowCache struct {
	limit int64

	mu    sync.Mutex
	bytes int64
	ends  cached // ends.next is the row used last, ends.prev the one used longest ago
}

// cached is a row in the ring of all rows.
type cached struct {
	prev, next *cached
	owner      *cachePart
	key        string
	row        *projection.Row
	size       int64
}

// cachePart is the rows of one partition, valid exactly as long as a claim is.
type cachePart struct {
	cache *rowCache
	rows  map[string]*cached
}

func newRowCache(limit int64) *rowCache {
	c := &rowCache{limit: limit}
	c.ends.prev, c.ends.next = &c.ends, &c.ends
	return c
}

func (c *rowCache) part() *cachePart { return &cachePart{cache: c, rows: make(map[string]*cached)} }

// cachedBytes is what a row costs here besides itself and its key.
const cachedBytes = 160

// lookUp gives states the rows that are here and returns the keys of the others.
func (p *cachePart) lookUp(states []*rowState) (missing []string) {
	p.cache.mu.Lock()
	defer p.cache.mu.Unlock()
	for _, s := range states {
		if r := p.rows[s.key]; r != nil {
			s.row = r.row
			r.unlink()
			p.cache.front(r)
		} else {
			missing = append(missing, s.key)
		}
	}
	return missing
}

// keep takes rows in as they were committed, and lets others go.
func (p *cachePart) keep(states []*rowState) {
	c := p.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range states {
		r := p.rows[s.key]
		if r == nil {
			r = &cached{owner: p, key: s.key}
			p.rows[s.key] = r
		} else {
			r.unlink()
			c.bytes -= r.size
		}
		r.row, r.size = s.row, int64(s.row.Size()+len(s.key)+cachedBytes)
		c.bytes += r.size
		c.front(r)
	}
	for c.bytes > c.limit && c.ends.prev != &c.ends {
		c.remove(c.ends.prev)
	}
}

// drop forgets all rows of the partition.
func (p *cachePart) drop() {
	p.cache.mu.Lock()
	defer p.cache.mu.Unlock()
	for _, r := range p.rows {
		r.unlink()
		p.cache.bytes -= r.size
	}
	p.rows = make(map[string]*cached) // a map gives no memory back
}

func (c *rowCache) remove(r *cached) {
	r.unlink()
	delete(r.owner.rows, r.key)
	c.bytes -= r.size
}

func (c *rowCache) front(r *cached) {
	r.prev, r.next = &c.ends, c.ends.next
	r.prev.next, r.next.prev = r, r
}

func (r *cached) unlink() {
	r.prev.next, r.next.prev = r.next, r.prev
	r.prev, r.next = nil, nil
}
