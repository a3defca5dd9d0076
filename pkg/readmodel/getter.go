package readmodel

import (
	"context"
	"runtime"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/event"
)

// getter reads rows by key: one statement, one snapshot, for all who ask while
// others are being served. Under load that makes the statement's fixed costs
// those of dozens of rows; an idle getter serves a single key at once. A row is
// read after it was asked for: nobody joins a statement that has begun.
type getter struct {
	pool     *pgxpool.Pool // of sessions that look rows up, see [postgres.ByKey]
	validity *validity
	version  Version
	sql      string

	mu      sync.Mutex
	queue   []*get
	joined  map[string]*get // by key: queued, and without marks of their own
	running int
}

// get is one key that somebody waits for. What it holds is complete once done is
// closed.
type get struct {
	key    string
	marks  []event.Mark
	done   chan struct{}
	row    []byte // nil: no such row
	of     *snapshot
	err    error
	shared bool
}

const (
	maxGets    = 512             // keys in a statement
	getTimeout = 5 * time.Second // with the wait for a connection
)

var maxStatements = max(2, runtime.GOMAXPROCS(0)) // at a time, for each version

func newGetter(pool *pgxpool.Pool, validity *validity, v Version, row string) *getter {
	return &getter{pool: pool, validity: validity, version: v, sql: snapshotSQL + marksSQL + ` union all select 'r', null, null, null, key, ` + row + `, null from ` + v.Table() + ` where key = any($6)`,
		joined: make(map[string]*get)}
}

// get reads one row. Marks are those about which the log is asked, see
// [validity.doubtful].
func (g *getter) get(ctx context.Context, key string, marks []event.Mark) (*get, error) {
	c := g.enqueue(key, marks)
	select {
	case <-c.done:
		return c, c.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (g *getter) enqueue(key string, marks []event.Mark) *get {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.joined[key]; c != nil && len(marks) == 0 {
		return c
	}
	c := &get{key: key, marks: marks, done: make(chan struct{})}
	if len(marks) == 0 {
		c.shared = true
		g.joined[key] = c
	}
	g.queue = append(g.queue, c)
	if g.running < maxStatements {
		g.running++
		go g.serve()
	}
	return c
}

// serve reads until nothing is queued.
func (g *getter) serve() {
	for {
		batch := g.take()
		if len(batch) == 0 {
			return
		}
		g.answer(batch)
	}
}

func (g *getter) take() []*get {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := min(len(g.queue), maxGets)
	if n == 0 {
		g.running--
		return nil
	}
	batch := g.queue[:n:n]
	g.queue = g.queue[n:]
	for _, c := range batch {
		if c.shared {
			delete(g.joined, c.key)
		}
	}
	return batch
}

func (g *getter) answer(batch []*get) {
	keys := make([]string, 0, len(batch))
	var marks []event.Mark
	for _, c := range batch {
		keys, marks = append(keys, c.key), append(marks, c.marks...)
	}
	rows, of, err := g.read(context.Background(), keys, marks)
	for _, c := range batch {
		c.row, c.of, c.err = rows[c.key], of, err
		close(c.done)
	}
}

// read reads several rows in one snapshot.
func (g *getter) read(ctx context.Context, keys []string, marks []event.Mark) (map[string][]byte, *snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	categories, slots, seqs := markColumns(marks)
	s := g.validity.begin()
	found := make(map[string][]byte, len(keys))
	rows, err := g.pool.Query(ctx, g.sql, g.version.Projection, g.version.Number, categories, slots, seqs, keys)
	if err != nil {
		return nil, nil, err
	}
	return found, s, s.scan(rows, func(key string, data []byte) { found[key] = data })
}
