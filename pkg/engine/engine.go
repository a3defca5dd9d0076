// Package engine feeds projections: it folds the events of topics into rows,
// exactly once.
//
// Each fed version is a consumer group of its own with one worker for each
// assigned partition. A worker claims its partition in the database (raising the
// owner's epoch), reads on from the offset that stands there, and commits rows
// and progress in one pipelined transaction, whose first statement compares and
// sets the progress and raises an error in the server when somebody else has
// claimed meanwhile: then nothing behind it runs. Kafka's group only deals out
// the work; it fences nobody.
//
// Whatever goes wrong for a worker (a lost connection, another owner, a gap that
// cannot be filled) ends its feeder, which drops its caches, leaves the group and
// begins again with claims after a pause. So nothing survives in memory that the
// database does not confirm.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// Config bounds an engine. The zero value of each field takes its default.
type Config struct {
	DatabaseURL string
	Kafka       kafka.Config
	// Prefix begins the names of groups.
	Prefix string
	// Owner names this process for people.
	Owner string
	// MaxBatch is the most records in a transaction; 5,000.
	MaxBatch int
	// CacheBytes bounds the rows kept for each partition; 16 MiB.
	CacheBytes int
}

// Schemas finds schemas by id. Any error but registry.ErrUnknownSchema means
// that it could not be asked.
type Schemas interface {
	SchemaByID(ctx context.Context, id int) (*avro.Schema, error)
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
}

// Engine runs feeds. Run may be called once.
type Engine struct {
	cfg       Config
	schemas   Schemas
	events    Log
	pool      *pgxpool.Pool
	log       *slog.Logger
	metrics   *metrics
	announcer *announcer
}

// New returns an engine. It does not dial; Run does.
func New(cfg Config, pool *pgxpool.Pool, schemas Schemas, events Log, log *slog.Logger, reg prometheus.Registerer) *Engine {
	if cfg.MaxBatch == 0 {
		cfg.MaxBatch = 5000
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = 16 << 20
	}
	return &Engine{cfg: cfg, schemas: schemas, events: events, pool: pool, log: log, metrics: newMetrics(reg),
		announcer: newAnnouncer(cfg.DatabaseURL, log)}
}

// Run feeds until ctx ends, then commits what is under way and returns nil.
func (e *Engine) Run(ctx context.Context, feeds []Feed) error {
	var all sync.WaitGroup
	for _, feed := range feeds {
		all.Go(func() { e.keepFeeding(ctx, feed) })
	}
	all.Go(func() { e.announcer.run(ctx) })
	all.Wait()
	return nil
}

// keepFeeding runs one feeder after another, with pauses that grow while none
// gets anywhere.
func (e *Engine) keepFeeding(ctx context.Context, feed Feed) {
	pause := 100 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		err := newFeeder(e, feed).run(ctx)
		if ctx.Err() != nil {
			return
		}
		e.log.Warn("feeding is interrupted", "projection", feed.Version.Projection, "version", feed.Version.Number, "err", err)
		if errors.Is(err, errFenced) {
			e.metrics.fenced.Inc()
		}
		if time.Since(began) > 10*time.Second {
			pause = 100 * time.Millisecond
		}
		wait(ctx, pause)
		pause = min(2*pause, 3*time.Second)
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

var (
	errFenced = errors.New("another owner has claimed the partition")
	errGap    = errors.New("events are missing from the topic and from the event table")
)

type metrics struct {
	applied  *prometheus.CounterVec
	fenced   prometheus.Counter
	parked   *prometheus.CounterVec
	duration prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	byProjection := []string{"projection"}
	m := &metrics{
		applied: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refold_projection_applied_events_total", Help: "Events that were folded into rows and committed."}, byProjection),
		fenced:  prometheus.NewCounter(prometheus.CounterOpts{Name: "refold_projection_fenced_total", Help: "Batches refused because another owner had claimed the partition."}),
		parked:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refold_projection_parked_events_total", Help: "Events that were parked, with those that wait behind them."}, byProjection),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "refold_projection_apply_duration_seconds",
			Help: "Time from taking up a batch of records to its commit.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
	}
	reg.MustRegister(m.applied, m.fenced, m.parked, m.duration)
	return m
}

func groupName(prefix string, v readmodel.Version) string {
	return fmt.Sprintf("%s.%s.v%d", prefix, v.Projection, v.Number)
}
