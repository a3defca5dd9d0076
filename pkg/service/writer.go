package service

import (
	"context"
	"crypto/rand"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/api"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/relay"
)

// WriterCommand is `writer serve`: it appends, reads the log, serves schemas and
// relays. A custom writer has it as a command of its own with extensions.
type WriterCommand struct {
	Admin `embed:"" set:"admin_port=9080"`
	API   `embed:"" set:"api_port=8080"`

	Migrate string `help:"Migrate the database at the start: on or off." enum:"on,off" default:"on"`
	Relay   string `help:"Relay to Kafka in this process: on or off." enum:"on,off" default:"on"`

	CacheSize int           `help:"How many aggregates of each type stay warm." default:"16384"`
	CacheMiB  int           `name:"cache-mib" help:"Memory that the warm aggregates of each type may take, about, in MiB." default:"64"`
	MemoryMiB int           `name:"memory-mib" help:"Memory that the process may take, in MiB: the garbage collector works harder beyond it and seldom below. GOMEMLIMIT wins over it." default:"256"`
	KeepKeys  time.Duration `help:"For how long idempotency keys are remembered." default:"24h"`

	SnapshotEvery int `help:"After how many events a snapshot of an aggregate is written; 0 for none." default:"100"`

	// Aggregates are served as commands, and Reactions run on them. With --schemas
	// aggregates of categories that are not there are left out; reactions never are: if
	// one does not fit the contracts, the writer does not start. Extensions add to the
	// API whatever else there is.
	Aggregates []aggregate.Type `kong:"-"`
	Reactions  []Reaction       `kong:"-"`
	Extensions []Extension      `kong:"-"`
}

// Extension adds to the write side's API once the database is up. What it needs
// is in deps. It is called once.
type Extension func(mux *http.ServeMux, deps api.Deps) error

// Run serves until it is told to stop.
func (c *WriterCommand) Run(ctx context.Context, s *Settings) error {
	c.budget()
	h, err := NewHost(s, "writer", c.Admin)
	if err != nil {
		return err
	}
	w, err := NewWriter(h, c.Migrate == "on", c.Extensions...)
	if err != nil {
		return err
	}
	w.KeepKeys = c.KeepKeys
	h.Add(w)
	h.Add(NewAggregates(w, c.aggregateConfig(), c.Aggregates, c.Reactions))
	if c.Relay == "on" {
		h.Add(NewRelay(h, w))
	}
	if err := h.Handle(c.API); err != nil {
		return err
	}
	return h.Run(ctx)
}

// budget tells the collector how much memory there is. What waits to be appended,
// bodies and imports have bounds of their own, which lie well below the default.
func (c *WriterCommand) budget() {
	if os.Getenv("GOMEMLIMIT") == "" && c.MemoryMiB > 0 {
		debug.SetMemoryLimit(int64(c.MemoryMiB) << 20 * 9 / 10)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(300)
	}
}

func (c *WriterCommand) aggregateConfig() aggregate.Config {
	cfg := aggregate.Config{CacheSize: c.CacheSize, CacheBytes: c.CacheMiB << 20, Snapshots: aggregate.DefaultPolicy}
	if cfg.Snapshots.Events = c.SnapshotEvery; c.SnapshotEvery <= 0 {
		cfg.Snapshots = aggregate.NoSnapshots
	}
	return cfg
}

// Writer is the component that appends, reads the log and serves schemas.
type Writer struct {
	// KeepKeys is for how long idempotency keys are remembered; eventstore.KeepKeys
	// unless it is set before Run.
	KeepKeys time.Duration

	host       *Host
	migrate    bool
	extensions []Extension
	contracts  *avro.Contracts
	store      *eventstore.Store
	committed  wake
	instance   string // whose announcements these are
	pool       *pgxpool.Pool
	deps       api.Deps // since it is up
	api        *api.API
}

// NewWriter reads the contracts and returns the component. It does not dial.
func NewWriter(h *Host, migrate bool, extensions ...Extension) (*Writer, error) {
	contracts, err := h.Settings.Contracts()
	if err != nil {
		return nil, Usage(err).Try("writer lint")
	}
	w := &Writer{KeepKeys: eventstore.KeepKeys, host: h, migrate: migrate, extensions: extensions, contracts: contracts, committed: newWake(), instance: rand.Text(),
		store: eventstore.New(eventstore.Config{DatabaseURL: h.Settings.DatabaseURL}, h.Log, h.Registry)}
	w.store.OnCommit(func(string, []int) { w.committed.set() })
	return w, nil
}

// Name is "writer".
func (w *Writer) Name() string { return "writer" }

// Start brings the database to what the writer needs and adds the API.
func (w *Writer) Start(ctx context.Context, h *Host) (err error) {
	if w.pool == nil {
		if w.pool, err = h.open(ctx, "writer", 8, 10*time.Second); err != nil {
			return err
		}
		h.checkDatabase(w.pool)
	}
	if w.migrate {
		err = postgres.Migrate(ctx, w.pool)
	} else {
		err = checkSchema(ctx, w.pool)
	}
	if err != nil {
		return err
	}
	topic := func(category string) string { return kafka.TopicName(h.Settings.Prefix, category) }
	schemas := h.Settings.Registry(w.pool)
	ids, err := schemas.RegisterContracts(ctx, w.contracts, topic)
	if err != nil {
		return err
	}
	var specs []eventstore.CategorySpec
	for _, c := range w.contracts.Categories() {
		specs = append(specs, eventstore.CategorySpec{Name: c.Name, Slots: c.Slots, Partitions: c.Partitions, Topic: topic(c.Name)})
	}
	if err := w.store.EnsureCategories(ctx, w.pool, specs); err != nil {
		return err
	}
	w.deps = api.Deps{Store: w.store, Pool: w.pool, Registry: schemas, Contracts: w.contracts, SchemaIDs: ids, Logger: h.Log}
	w.api = api.New(api.Config{}, w.deps)
	w.api.Register(h.Mux)
	for _, extend := range w.extensions {
		if err := extend(h.Mux, w.deps); err != nil {
			return err
		}
	}
	return nil
}

// announcePause bounds how often other processes are told that there are new
// events: one NOTIFY for however many commits, outside of any append.
const announcePause = 5 * time.Millisecond

// Run appends until ctx ends.
func (w *Writer) Run(ctx context.Context) error {
	defer w.pool.Close()
	announcing, stop := context.WithCancel(ctx)
	var beside sync.WaitGroup
	beside.Go(func() { w.sweep(announcing) })
	beside.Go(func() {
		w.committed.each(announcing, announcePause, func() {
			if _, err := w.pool.Exec(announcing, `select pg_catalog.pg_notify('refold_log', $1)`, w.instance); err != nil && announcing.Err() == nil {
				w.host.Log.Debug("announcing events", "err", err) // others poll
			}
		})
	})
	err := w.store.Run(ctx)
	stop()
	beside.Wait()
	return err
}

// sweepPause is how long old idempotency keys may outlive their time.
const sweepPause = time.Minute

// sweep forgets old idempotency keys until ctx ends.
func (w *Writer) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepPause)
	defer tick.Stop()
	for {
		if _, err := w.store.SweepKeys(ctx, w.pool, w.KeepKeys); err != nil && ctx.Err() == nil {
			w.host.Log.Warn("sweeping idempotency keys", "err", err) // the next sweep takes them
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// RelayCommand is `writer relay`: it only relays.
type RelayCommand struct {
	Admin `embed:"" set:"admin_port=9080" set:"drain_delay=0s"`
}

// Run relays until it is told to stop.
func (c *RelayCommand) Run(ctx context.Context, s *Settings) error {
	h, err := NewHost(s, "relay", c.Admin)
	if err != nil {
		return err
	}
	h.Add(NewRelay(h, nil))
	return h.Run(ctx)
}

// Relay is the component that carries the log to Kafka.
type Relay struct {
	relay  *relay.Relay
	broker *broker
	pool   *pgxpool.Pool // nil: it works beside a writer, which has migrated
	beside bool
}

// NewRelay returns the component. A writer of the same process wakes it; without
// one it waits for the schema.
func NewRelay(h *Host, beside *Writer) *Relay {
	brokers := h.Settings.Brokers("relay")
	cfg := relay.Config{DatabaseURL: h.Settings.DatabaseURL, Kafka: brokers, Tracer: h.tracer("relay")}
	if beside != nil {
		cfg.Beside = beside.instance
	}
	r := &Relay{broker: &broker{cfg: brokers}, beside: beside != nil, relay: relay.New(cfg, h.Log, h.Registry)}
	if beside != nil {
		beside.store.OnCommit(r.relay.Committed)
	}
	return r
}

// Name is "relay".
func (r *Relay) Name() string { return "relay" }

// Start waits for the schema. Beside a writer it does not wait for Kafka, whose
// absence only delays events; the line in /readyz is a note then.
func (r *Relay) Start(ctx context.Context, h *Host) (err error) {
	if r.beside {
		if _, err := r.broker.cfg.Options(); err != nil {
			return Usage(err).Try("set KAFKA_BOOTSTRAP_SERVERS, or switch the relay off with --relay=off")
		}
		h.Health.Note("kafka", r.broker.ping)
		return nil
	}
	if r.pool == nil {
		if r.pool, err = h.open(ctx, "relay", 2, 10*time.Second); err != nil {
			return err
		}
		h.checkDatabase(r.pool)
		h.Health.Check("kafka", r.broker.ping)
	}
	if err := checkSchema(ctx, r.pool); err != nil {
		return err
	}
	return r.broker.ping(ctx)
}

// Run relays until ctx ends.
func (r *Relay) Run(ctx context.Context) error {
	defer r.broker.close()
	if r.pool != nil {
		defer r.pool.Close()
	}
	return r.relay.Run(ctx)
}
