package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/api"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/pkg/relay"
	"github.com/refoldhq/refold/pkg/service"
)

type serveCommand struct {
	service.Admin `embed:"" set:"admin_port=9080"`

	Addr    string `help:"Where the API is served." default:"127.0.0.1:8080"`
	Migrate string `help:"Migrate the database at the start: on or off." enum:"on,off" default:"on"`
	Relay   string `help:"Relay to Kafka in this process: on or off." enum:"on,off" default:"on"`
}

// Run serves until it is told to stop.
func (c *serveCommand) Run(ctx context.Context, s *service.Settings) error {
	return serve(ctx, s, writerConfig{admin: c.Admin, addr: c.Addr, migrate: c.Migrate == "on", relay: c.Relay == "on"}, func() {})
}

type writerConfig struct {
	admin   service.Admin
	addr    string
	migrate bool
	relay   bool
	// reads adds the read side: projections are fed and read models served.
	reads bool
}

// serve runs a writer, calling ready once it serves.
func serve(ctx context.Context, settings *service.Settings, cfg writerConfig, ready func()) error {
	contracts, err := settings.Contracts()
	if err != nil {
		return err
	}
	log, reg := settings.Logger(), service.NewRegistry("writer")
	w := &writer{cfg: cfg, settings: settings, log: log, contracts: contracts, ready: ready}
	if cfg.reads {
		if w.reads, err = newReads(settings, log, reg); err != nil {
			return err
		}
	}
	w.store = eventstore.New(eventstore.Config{DatabaseURL: settings.DatabaseURL}, log, reg)
	if cfg.relay {
		w.relay = relay.New(relay.Config{DatabaseURL: settings.DatabaseURL, Kafka: settings.Brokers("relay")}, log, reg)
		w.store.OnCommit(func(string, []int) { w.relay.Wake() })
	}
	w.store.OnCommit(func(string, []int) { w.announcements.wake() })

	health := &service.Health{}
	health.Check("writer", w.check)
	s := &service.Service{Log: log, Health: health, DrainDelay: cfg.admin.DrainDelay}
	if _, err := s.Serve("admin server", cfg.admin.AdminAddr, service.AdminHandler(health, reg)); err != nil {
		return err
	}
	s.Add("event store", w.run)
	if _, err := s.Serve("API server", cfg.addr, w); err != nil {
		return err
	}
	return s.Run(ctx)
}

// writer is the part that stands on the database. Until it is up the API
// answers 503.
type writer struct {
	cfg           writerConfig
	settings      *service.Settings
	log           *slog.Logger
	contracts     *avro.Contracts
	store         *eventstore.Store
	relay         *relay.Relay
	reads         *reads
	announcements announcer
	handler       atomic.Pointer[http.ServeMux]
	pool          atomic.Pointer[pgxpool.Pool]
	ready         func()

	mu     sync.Mutex
	reason error // why it is not up
}

func (w *writer) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if mux := w.handler.Load(); mux != nil {
		mux.ServeHTTP(rw, r)
		return
	}
	problem.New(http.StatusServiceUnavailable, "unavailable", "The writer is starting", "").Write(rw)
}

var errStarting = errors.New("starting")

// check is for /readyz.
func (w *writer) check(ctx context.Context) error {
	pool := w.pool.Load()
	if pool == nil || w.handler.Load() == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.reason
	}
	return pool.Ping(ctx)
}

func (w *writer) noteReason(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reason = err
}

// run starts up, however long the database takes to come, and then works until
// ctx ends.
func (w *writer) run(ctx context.Context) error {
	w.noteReason(errStarting)
	for {
		err := w.start(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		if !postgres.Transient(err) {
			return err
		}
		w.log.Warn("waiting for the database", "err", err)
		w.noteReason(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond): // the database says nothing when it comes up
		}
	}
	defer w.pool.Load().Close()
	w.ready()
	var all sync.WaitGroup
	relaying, stopRelay := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRelay()
	var relayErr, readsErr error
	if w.relay != nil {
		all.Go(func() { relayErr = w.relay.Run(relaying) })
	}
	all.Go(func() { w.announcements.run(relaying, w.pool.Load(), w.log) })
	if w.reads != nil {
		all.Go(func() { readsErr = w.reads.run(relaying, w.contracts, w.pool.Load()) })
	}
	err := w.store.Run(ctx) // the relay outlives it, to carry its last events
	stopRelay()
	all.Wait()
	return errors.Join(err, relayErr, readsErr)
}

// start brings the database to what the writer needs.
func (w *writer) start(ctx context.Context) error {
	pool, err := postgres.Open(ctx, postgres.Config{URL: w.settings.DatabaseURL, AppName: "refold-writer", MaxConns: 8, StatementTimeout: 10 * time.Second})
	if err != nil {
		return err
	}
	if err := w.startOn(ctx, pool); err != nil { // a pool that is kept is closed by run
		pool.Close()
		return err
	}
	return nil
}

func (w *writer) startOn(ctx context.Context, pool *pgxpool.Pool) error {
	if w.cfg.migrate {
		if err := postgres.Migrate(ctx, pool); err != nil {
			return err
		}
	} else if err := postgres.WaitForSchema(ctx, pool); err != nil {
		return err
	}
	topic := func(category string) string { return kafka.TopicName(w.settings.Prefix, category) }
	schemas := registry.New(pool)
	ids, err := schemas.RegisterContracts(ctx, w.contracts, topic)
	if err != nil {
		return err
	}
	var specs []eventstore.CategorySpec
	for _, c := range w.contracts.Categories() {
		specs = append(specs, eventstore.CategorySpec{Name: c.Name, Slots: c.Slots, Partitions: c.Partitions, Topic: topic(c.Name)})
	}
	if err := w.store.EnsureCategories(ctx, pool, specs); err != nil {
		return err
	}
	mux := http.NewServeMux()
	api.New(api.Config{}, api.Deps{Store: w.store, Pool: pool, Registry: schemas, Contracts: w.contracts, SchemaIDs: ids, Logger: w.log}).Register(mux)
	if w.reads != nil {
		w.reads.register(mux, w.contracts, pool)
	}
	mux.HandleFunc("/", api.NotFound)
	w.pool.Store(pool)
	w.handler.Store(mux)
	return nil
}

// announcer tells other processes that there are new events: one NOTIFY for
// however many commits, outside of any append.
type announcer struct{ pending atomic.Bool }

func (a *announcer) wake() { a.pending.Store(true) }

func (a *announcer) run(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !a.pending.Swap(false) {
			continue
		}
		if _, err := pool.Exec(ctx, `notify refold_log`); err != nil && ctx.Err() == nil {
			log.Debug("announcing events", "err", err) // others poll
		}
	}
}

type relayCommand struct {
	service.Admin `embed:"" set:"admin_port=9080" set:"drain_delay=0s"`
}

// Run relays until it is told to stop.
func (c *relayCommand) Run(ctx context.Context, settings *service.Settings) error {
	log, reg := settings.Logger(), service.NewRegistry("relay")
	carrier := relay.New(relay.Config{DatabaseURL: settings.DatabaseURL, Kafka: settings.Brokers("relay")}, log, reg)
	pool, err := postgres.Open(ctx, postgres.Config{URL: settings.DatabaseURL, AppName: "refold-relay", MaxConns: 2})
	if err != nil {
		return err
	}
	defer pool.Close()
	health := &service.Health{}
	health.Check("database", pool.Ping)
	s := &service.Service{Log: log, Health: health, DrainDelay: c.DrainDelay}
	if _, err := s.Serve("admin server", c.AdminAddr, service.AdminHandler(health, reg)); err != nil {
		return err
	}
	s.Add("relay", func(ctx context.Context) error {
		if err := postgres.WaitForSchema(ctx, pool); err != nil {
			return ignoreStop(ctx, err)
		}
		return carrier.Run(ctx)
	})
	return s.Run(ctx)
}

func ignoreStop(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // that is what it is for
	}
	return err
}
