package service

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/api"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/rebuilder"
)

// Rebuilds is the component of versions over HTTP: it lists them, takes requests
// for rebuilds and, unless it is told not to, runs them.
type Rebuilds struct {
	run         bool
	auto        bool
	memory      int64
	contracts   *avro.Contracts
	definitions []*projection.Definition
	pool        *pgxpool.Pool
	rebuilder   *rebuilder.Rebuilder
}

// RebuildFlags are the flags of programs that have the component.
type RebuildFlags struct {
	Rebuilds    string `help:"Run the rebuilds that are asked for over HTTP in this process: on or off; off leaves them to Jobs." enum:"on,off" default:"on"`
	AutoRebuild bool   `help:"Ask for a rebuild whenever a deployed definition needs one."`

	RebuildMemory size `help:"Most memory that a rebuild takes in this process, whatever was asked for; 0 for no bound." default:"0"`
}

// NewRebuilds reads contracts and definitions and returns the component. It does
// not dial.
func NewRebuilds(h *Host, flags RebuildFlags) (*Rebuilds, error) {
	c := &Rebuilds{run: flags.Rebuilds == "on", auto: flags.AutoRebuild, memory: int64(flags.RebuildMemory)}
	var err error
	if c.contracts, err = h.Settings.Contracts(); err != nil {
		return nil, Usage(err).Try("writer lint")
	}
	if c.definitions, err = h.Settings.Definitions(); err != nil {
		return nil, Usage(err).Try("projector lint")
	}
	return c, nil
}

// Name is "rebuilds".
func (c *Rebuilds) Name() string { return "rebuilds" }

// Start waits for the schema and adds the routes.
func (c *Rebuilds) Start(ctx context.Context, h *Host) (err error) {
	s := h.Settings
	if c.pool == nil {
		if c.pool, err = h.open(ctx, "rebuilds", 6, 0); err != nil {
			return err
		}
		c.rebuilder = rebuilder.New(rebuilder.Config{DatabaseURL: s.DatabaseURL, Kafka: s.Brokers("rebuild"), Prefix: s.Prefix, MemoryBytes: c.memory},
			rebuilder.Deps{Pool: c.pool, Schemas: h.Settings.Registry(c.pool), Contracts: c.contracts, Definitions: c.definitions, Logger: h.Log, Metrics: rebuilder.NewMetrics(h.Registry)})
	}
	if err := checkSchema(ctx, c.pool); err != nil {
		return err
	}
	api.RegisterRebuilds(h.Mux, c.rebuilder, h.Log)
	return nil
}

// Run runs what is asked for until ctx ends.
func (c *Rebuilds) Run(ctx context.Context) error {
	defer c.pool.Close()
	if !c.run {
		<-ctx.Done()
		return nil
	}
	if c.auto {
		for _, d := range c.definitions {
			c.rebuilder.RequestIfDue(ctx, d.Name)
		}
	}
	return c.rebuilder.Serve(ctx)
}
