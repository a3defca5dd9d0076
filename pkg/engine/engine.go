// Package engine feeds projections: it folds the events of topics into rows,
// exactly once.
//
// Each fed version is a consumer group of its own (feeder) with one worker for
// each assigned partition. A worker claims its partition in the database (raising
// the owner's epoch), reads on from the offset that stands there, and commits rows
// and progress in one pipelined transaction, whose first statement compares and
// sets the progress and raises an error in the server when somebody else has
// claimed meanwhile: then nothing behind it runs. Kafka's group only deals out
// the work; it fences nobody.
//
// Whatever goes wrong for a worker ends its claim and nothing else: it drops what
// it has in memory, claims again after a pause, and has the client fetch from the
// offset that the database names. The other partitions do not notice. So nothing
// survives in memory that the database does not confirm.
//
// A slot whose missing events are nowhere to be had, or whose events do not follow
// on what was applied, stops alone; a stream whose event cannot be applied is
// parked alone. What was asked for parked streams is carried out by the worker
// that owns their partition, between its batches.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/registry"
)

// Config bounds an engine. The zero value of each field takes its default.
type Config struct {
	DatabaseURL string
	Kafka       kafka.Config
	// Prefix begins the names of groups.
	Prefix string
	// Owner names this process for people.
	Owner string
	// MaxBatch is the most events in a transaction; 5,000.
	MaxBatch int
	// CacheBytes bounds the rows that are kept in memory, of all partitions
	// together; 96 MiB.
	CacheBytes int64
	// QueueBytes bounds the records that wait for their workers, of all partitions
	// together, in so far as each partition may have a mebibyte; 48 MiB.
	QueueBytes int64
	// MaxParked is the most streams that a partition parks within a minute. Beyond
	// it, something is wrong with more than streams, and the partition stops; 50.
	MaxParked int
	// Tracer is told of each transaction with events that are traced; nil tells nobody.
	Tracer trace.Tracer
}

func (c *Config) defaults() {
	if c.MaxBatch == 0 {
		c.MaxBatch = 5000
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = 96 << 20
	}
	if c.QueueBytes == 0 {
		c.QueueBytes = 48 << 20
	}
	if c.MaxParked == 0 {
		c.MaxParked = 50
	}
}

// Log reads events that a topic lacks.
type Log interface {
	SlotEvents(ctx context.Context, category eventstore.Category, slot int, after int64, limit int) ([]event.Event, error)
}

// Feed is one version and the plan that it was built by.
type Feed struct {
	Version    readmodel.Version
	Plan       *projection.Plan
	Categories []eventstore.Category
	// Served is the plan that queries go by while fields that only Plan has are being
	// filled into the rows, else nil.
	Served *projection.Plan
}

// Engine runs feeds. Run or Follow may be called once.
type Engine struct {
	cfg       Config
	schemas   registry.Schemas
	events    Log
	pool      *pgxpool.Pool
	log       *slog.Logger
	metrics   *metrics
	announcer *announcer
	cache     *rowCache
	faults    faults

	connecting atomic.Int64 // workers that are about to have a session

	mu      sync.Mutex // guards workers
	workers map[*worker]bool
}

// New returns an engine. It does not dial; Run and Follow do.
func New(cfg Config, pool *pgxpool.Pool, schemas registry.Schemas, events Log, log *slog.Logger, reg prometheus.Registerer) *Engine {
	cfg.defaults()
	return &Engine{cfg: cfg, schemas: schemas, events: events, pool: pool, log: log, metrics: newMetrics(reg),
		announcer: newAnnouncer(cfg.DatabaseURL, log), cache: newRowCache(cfg.CacheBytes), workers: make(map[*worker]bool)}
}

// Run feeds until ctx ends, then commits what is under way and returns nil.
func (e *Engine) Run(ctx context.Context, feeds []Feed) error {
	var all sync.WaitGroup
	for _, feed := range feeds {
		all.Go(func() { e.keepFeeding(ctx, feed) })
	}
	e.background(ctx, &all)
	all.Wait()
	return nil
}

// background starts what all feeds share.
func (e *Engine) background(ctx context.Context, all *sync.WaitGroup) {
	all.Go(func() { e.announcer.run(ctx) })
	all.Go(func() { e.watchRequests(ctx) })
	all.Go(func() { e.watchLag(ctx) })
}

// keepFeeding runs one feeder after another until ctx ends. A feeder ends only
// where no client can be made or the client is closed: its workers mend the rest.
func (e *Engine) keepFeeding(ctx context.Context, feed Feed) {
	pause := backoff{least: 100 * time.Millisecond, most: 3 * time.Second}
	for ctx.Err() == nil {
		began := time.Now()
		err := newFeeder(e, feed).run(ctx)
		if ctx.Err() != nil {
			return
		}
		e.log.Warn("feeding is interrupted", "projection", feed.Version.Projection, "version", feed.Version.Number, "err", err)
		if time.Since(began) > 10*time.Second {
			pause.reset()
		}
		wait(ctx, pause.next())
	}
}

func (e *Engine) register(w *worker) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.workers[w] = true
}

func (e *Engine) unregister(w *worker) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.workers, w)
}

// each calls f with every worker. f must not block.
func (e *Engine) each(f func(*worker)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for w := range e.workers {
		f(w)
	}
}

// queueLimit is how many bytes of records may wait for one worker.
func (e *Engine) queueLimit() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return min(8<<20, max(1<<20, e.cfg.QueueBytes/int64(max(1, len(e.workers)))))
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// backoff gives pauses that double.
type backoff struct{ least, most, now time.Duration }

func (b *backoff) next() time.Duration {
	b.now = min(max(2*b.now, b.least), b.most)
	return b.now
}

func (b *backoff) reset() { b.now = 0 }

var errFenced = errors.New("another owner has claimed the partition")

// standing is why a partition cannot go on until somebody mends it: it is an
// alarm, tried again with growing pauses.
type standing struct{ why string }

func (s *standing) Error() string { return s.why }

// GroupName is the name of the group that feeds a version.
func GroupName(prefix string, v readmodel.Version) string {
	return fmt.Sprintf("%s.%s.v%d", prefix, v.Projection, v.Number)
}
