package service

import (
	"context"
	"sync"

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
	types     []aggregate.Type
	reactions []Reaction
	runtime   *aggregate.Runtime
	consumers []*reaction.Consumer
}

// NewAggregates returns the component, which stands behind its writer.
func NewAggregates(w *Writer, types []aggregate.Type, reactions []Reaction) *Aggregates {
	return &Aggregates{writer: w, types: types, reactions: reactions}
}

// Name is "aggregates".
func (a *Aggregates) Name() string { return "aggregates" }

// Start checks the aggregates against the contracts and adds the routes.
func (a *Aggregates) Start(_ context.Context, h *Host) (err error) {
	deps := a.writer.deps
	a.runtime, err = aggregate.NewRuntime(aggregate.Config{}, aggregate.Deps{Store: deps.Store, Pool: deps.Pool, Schemas: deps.Registry, Contracts: deps.Contracts,
		SchemaIDs: deps.SchemaIDs, Logger: h.Log, Metrics: h.Registry}, a.present(h)...)
	if err != nil {
		return Usage(err).Try("writer lint")
	}
	if h.Settings.Schemas == "" { // reactions belong to the contracts that are compiled in, as aggregates do
		for _, make := range a.reactions {
			consumer, err := make(a.runtime)
			if err != nil {
				return Usage(err)
			}
			a.consumers = append(a.consumers, consumer)
		}
	}
	return a.writer.api.RegisterAggregates(h.Mux, a.runtime)
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
	var all sync.WaitGroup
	for _, c := range a.consumers {
		all.Go(func() { c.Run(ctx) })
	}
	err := a.runtime.Run(ctx)
	all.Wait()
	return err
}
