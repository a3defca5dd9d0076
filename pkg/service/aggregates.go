package service

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/reaction"
)

// Reaction makes a consumer that runs commands when events arrive, once the
// aggregates are there.
type Reaction func(*aggregate.Runtime) (*reaction.Consumer, error)

// Aggregates is the component of commands and reactions. Without any aggregate
// it serves audit and causation still.
type Aggregates struct {
	writer    *Writer
	cfg       aggregate.Config
	types     []aggregate.Type
	reactions []Reaction
	runtime   *aggregate.Runtime
	consumers []*reaction.Consumer
}

// NewAggregates returns the component, which stands behind its writer.
func NewAggregates(w *Writer, cfg aggregate.Config, types []aggregate.Type, reactions []Reaction) *Aggregates {
	return &Aggregates{writer: w, cfg: cfg, types: types, reactions: reactions}
}

// Name is "aggregates".
func (a *Aggregates) Name() string { return "aggregates" }

// Start checks the aggregates against the contracts and adds the routes.
func (a *Aggregates) Start(ctx context.Context, h *Host) error {
	if a.runtime == nil { // it is called again when the database is away
		if err := a.make(h); err != nil {
			return err
		}
	}
	for _, c := range a.consumers { // before anybody can send a command
		if err := c.Begin(ctx); err != nil {
			return err
		}
	}
	if err := a.writer.api.RegisterAggregates(h.Mux, a.runtime); err != nil {
		return err
	}
	reaction.Register(h.Mux, a.writer.deps.Pool)
	return nil
}

// make makes the runtime and the consumers.
func (a *Aggregates) make(h *Host) error {
	deps := a.writer.deps
	runtime, err := aggregate.NewRuntime(a.cfg, aggregate.Deps{Store: deps.Store, Pool: deps.Pool, Schemas: deps.Registry, Contracts: deps.Contracts,
		SchemaIDs: deps.SchemaIDs, Logger: h.Log, Metrics: h.Registry}, a.present(h)...)
	if err != nil {
		return Usage(err).Try("writer lint")
	}
	for _, react := range a.reactions { // also with --schemas: one that is left out once takes the events until then for history
		consumer, err := react(runtime)
		if consumer != nil {
			err = errors.Join(consumer.Check(), err) // the consumer names itself
		}
		if err != nil {
			return Usage(fmt.Errorf("making the reactions: %w", err)).Because("the contracts, which may be those of --schemas, are not those that the program was made for").
				Try("give it contracts that have the reaction's category and event types")
		}
		a.consumers = append(a.consumers, consumer)
	}
	a.runtime = runtime
	return nil
}

// present leaves out aggregates whose category other contracts do not have:
// those of --schemas take the place of what is compiled in.
func (a *Aggregates) present(h *Host) []aggregate.Type {
	if h.Settings.Schemas == "" {
		return a.types
	}
	var list []aggregate.Type
	for _, t := range a.types {
		if _, ok := a.writer.contracts.Category(t.Category()); ok {
			list = append(list, t)
			continue
		}
		h.Log.Info("the contracts do not have the category of an aggregate", "category", t.Category())
	}
	return list
}

// Run writes snapshots and reacts until ctx ends.
func (a *Aggregates) Run(ctx context.Context) error {
	var all errgroup.Group
	for _, c := range a.consumers {
		all.Go(func() error { return c.Run(ctx) })
	}
	all.Go(func() error { return a.runtime.Run(ctx) })
	return all.Wait()
}
