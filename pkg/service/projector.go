package service

import (
	"context"
	"math"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/api"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/query"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// ProjectorCommand is `projector run`: it feeds projections. A custom projector
// has it as a command of its own.
type ProjectorCommand struct {
	Admin `embed:"" set:"admin_port=9081" set:"drain_delay=0s"`

	Names     []string `arg:"" optional:"" help:"Projections to feed."`
	MaxParked int      `help:"Most streams that a partition parks within a minute; beyond it the partition stops instead." default:"50"`
}

// Run feeds projections until it is told to stop.
func (c *ProjectorCommand) Run(ctx context.Context, s *Settings) error {
	h, err := NewHost(s, "projector", c.Admin)
	if err != nil {
		return err
	}
	f, err := NewFeeding(h, c.Names)
	if err != nil {
		return err
	}
	f.MaxParked = c.MaxParked
	if debug.SetMemoryLimit(-1) == math.MaxInt64 { // GOMEMLIMIT says otherwise where it is set
		debug.SetMemoryLimit(heapLimit)
	}
	h.Add(f)
	return h.Run(ctx)
}

// heapLimit is from where the collector works harder, so that what the engine
// budgets (cached rows, waiting records) and what is garbage between two
// collections stay below 512 MiB together.
const heapLimit = 400 << 20

// Feeding is the component that feeds projections from the topics.
type Feeding struct {
	// MaxParked is the most streams that a partition parks within a minute; 0 takes
	// the engine's default.
	MaxParked int

	host        *Host
	names       []string
	contracts   *avro.Contracts
	definitions []*projection.Definition
	broker      *broker
	pool        *pgxpool.Pool
	engine      *engine.Engine
	deployment  *engine.Deployment
}

// NewFeeding reads contracts and definitions and returns the component, for all
// projections without names. It does not dial.
func NewFeeding(h *Host, names []string) (*Feeding, error) {
	contracts, err := h.Settings.Contracts()
	if err != nil {
		return nil, Usage(err).Try("writer lint")
	}
	definitions, err := h.Settings.Definitions()
	if err != nil {
		return nil, Usage(err).Try("projector lint")
	}
	return &Feeding{host: h, names: names, contracts: contracts, definitions: definitions, broker: &broker{cfg: h.Settings.Brokers("projector")}}, nil
}

// Name is "projections".
func (f *Feeding) Name() string { return "projections" }

// Start waits for the schema, Kafka and the categories, and makes version 1 of
// what has none.
func (f *Feeding) Start(ctx context.Context, h *Host) (err error) {
	s := h.Settings
	if f.pool == nil {
		if f.pool, err = h.open(ctx, "projector", 4, 30*time.Second); err != nil {
			return err
		}
		h.checkDatabase(f.pool)
		h.Health.Check("kafka", f.broker.ping)
		f.engine = engine.New(engine.Config{DatabaseURL: s.DatabaseURL, Kafka: f.broker.cfg, Prefix: s.Prefix, Owner: s.Owner(), MaxParked: f.MaxParked, Tracer: h.tracer("engine")}, f.pool,
			h.Settings.Registry(f.pool), eventstore.NewReader(f.pool), h.Log, h.Registry)
		h.Health.Note("partitions", func(context.Context) error { return f.engine.Standing() }) // a new process would stand too
	}
	if err := checkSchema(ctx, f.pool); err != nil {
		return err
	}
	if f.deployment, err = engine.NewDeployment(f.pool, f.contracts, f.definitions, f.names, h.Log); err != nil {
		return err
	}
	if _, err := f.deployment.Feeds(ctx); err != nil {
		return err
	}
	return f.broker.ping(ctx)
}

// Run feeds until ctx ends.
func (f *Feeding) Run(ctx context.Context) error {
	defer f.pool.Close()
	defer f.broker.close()
	return f.engine.Follow(ctx, f.deployment.Feeds)
}

// QueryCommand is `projector serve`: it serves read models.
type QueryCommand struct {
	Admin `embed:"" set:"admin_port=9082"`
	API   `embed:"" set:"api_port=8081"`

	RebuildFlags `embed:""`
	QueryFlags   `embed:""`
}

// QueryFlags bound what queries may take.
type QueryFlags struct {
	CacheMiB     int           `name:"cache-mib" help:"Memory for kept answers, in MiB; 0 keeps none." default:"64"`
	CacheTTL     time.Duration `name:"cache-ttl" help:"The longest that an answer is kept." default:"1m"`
	QueryTimeout time.Duration `help:"The longest that a statement of a query may take." default:"5s"`
	StrictRows   int64         `help:"Rows of a read model above which a query that no index serves is refused; -1 never does." default:"10000"`
	CursorKey    string        `help:"Key that signs cursors, the same on all replicas; empty for one that is kept in the database."`
}

func (f QueryFlags) config() readmodel.Config {
	cfg := readmodel.Config{StatementTimeout: f.QueryTimeout, CacheBytes: f.CacheMiB << 20, CacheTTL: f.CacheTTL, StrictRows: f.StrictRows, CursorKey: []byte(f.CursorKey)}
	if f.CacheMiB == 0 {
		cfg.CacheBytes = -1
	}
	return cfg
}

// Run serves read models until it is told to stop.
func (c *QueryCommand) Run(ctx context.Context, s *Settings) error {
	h, err := NewHost(s, "queries", c.Admin)
	if err != nil {
		return err
	}
	q, err := NewQueries(h)
	if err != nil {
		return err
	}
	q.Config = c.config()
	rebuilds, err := NewRebuilds(h, c.RebuildFlags)
	if err != nil {
		return err
	}
	h.Add(q)
	h.Add(rebuilds)
	h.Mux.HandleFunc("GET /openapi.json", api.Document)
	if err := h.Handle(c.API); err != nil {
		return err
	}
	return h.Run(ctx)
}

// Queries is the component that serves read models.
type Queries struct {
	// Config bounds queries; its zero value takes the defaults.
	Config readmodel.Config

	contracts   *avro.Contracts
	definitions []*projection.Definition
	watcher     *readmodel.Watcher
	pool        *pgxpool.Pool
	reader      *readmodel.Reader
	feeds       *readmodel.Feeds
}

// NewQueries reads the contracts and returns the component. It does not dial.
func NewQueries(h *Host) (*Queries, error) {
	contracts, err := h.Settings.Contracts()
	if err != nil {
		return nil, Usage(err).Try("writer lint")
	}
	return &Queries{contracts: contracts, definitions: h.Settings.projections, watcher: readmodel.NewWatcher(h.Settings.DatabaseURL, h.Log)}, nil
}

// Name is "queries".
func (q *Queries) Name() string { return "queries" }

// Start waits for the schema and adds the query API.
func (q *Queries) Start(ctx context.Context, h *Host) (err error) {
	if q.pool == nil {
		if q.pool, err = h.open(ctx, "queries", 16, 5*time.Second); err != nil {
			return err
		}
		h.checkDatabase(q.pool)
	}
	if err := checkSchema(ctx, q.pool); err != nil {
		return err
	}
	plans := readmodel.NewPlans(q.contracts, q.definitions...)
	if q.reader, err = readmodel.NewReader(ctx, q.Config, q.pool, plans, q.watcher); err != nil {
		return err
	}
	events, schemas := eventstore.NewReader(q.pool), h.Settings.Registry(q.pool)
	q.feeds = readmodel.NewFeeds(q.reader, q.pool, events, schemas, h.Log)
	query.New(query.Deps{Reader: q.reader, Catalogue: readmodel.NewCatalogue(q.pool), Plans: plans, Feeds: q.feeds,
		Explainer: readmodel.NewExplainer(q.reader, q.feeds, events, schemas), Log: h.Log, Metrics: h.Registry}).Register(h.Mux)
	api.RegisterParked(h.Mux, engine.NewParked(q.pool), h.Log)
	return nil
}

// Run watches progress for those who wait, until ctx ends.
func (q *Queries) Run(ctx context.Context) error {
	defer q.pool.Close()
	defer q.reader.Close()
	defer q.feeds.Close()
	return q.watcher.Run(ctx)
}
