package main

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/query"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/pkg/service"
)

// reads is the read side in the writer's own process, for `writer dev`.
type reads struct {
	settings    *service.Settings
	log         *slog.Logger
	reg         prometheus.Registerer
	definitions []*projection.Definition
	watcher     *readmodel.Watcher
}

func newReads(s *service.Settings, log *slog.Logger, reg prometheus.Registerer) (*reads, error) {
	definitions, err := s.Definitions()
	return &reads{settings: s, log: log, reg: reg, definitions: definitions, watcher: readmodel.NewWatcher(s.DatabaseURL)}, err
}

// register adds the query API.
func (r *reads) register(mux *http.ServeMux, contracts *avro.Contracts, pool *pgxpool.Pool) {
	query.New(readmodel.NewReader(pool, r.watcher), readmodel.NewCatalogue(pool), readmodel.NewPlans(contracts).Plan).Register(mux)
}

// run feeds the projections until ctx ends.
func (r *reads) run(ctx context.Context, contracts *avro.Contracts, pool *pgxpool.Pool) error {
	feeds, err := engine.Setup(ctx, pool, contracts, r.definitions, nil)
	if err != nil {
		return err
	}
	e := engine.New(engine.Config{DatabaseURL: r.settings.DatabaseURL, Kafka: r.settings.Brokers("projector"), Prefix: r.settings.Prefix, Owner: r.settings.Owner()}, pool,
		registry.New(pool), eventstore.NewReader(pool), r.log, r.reg)
	var all errgroup.Group
	all.Go(func() error { return r.watcher.Run(ctx) })
	all.Go(func() error { return e.Run(ctx, feeds) })
	return all.Wait()
}
