// Projector is refold's read side: it feeds projections from the topics and
// serves read models.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/api"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/query"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/pkg/service"
	"github.com/refoldhq/refold/schemas"
)

// cli is the command line.
type cli struct {
	service.Settings

	Run    runCommand    `cmd:"" help:"Feed projections: the named ones, all without a name."`
	Serve  serveCommand  `cmd:"" help:"Serve read models."`
	Verify verifyCommand `cmd:"" help:"Fold the log from the event table and compare every row."`
	Lint   lintCommand   `cmd:"" help:"Compile the definitions of a folder."`
}

func main() {
	service.Program{Name: "projector", Description: "refold's read side: it feeds projections from the topics and serves read models.",
		Contracts: schemas.FS}.Main(&cli{})
}

func open(ctx context.Context, s *service.Settings, conns int) (*pgxpool.Pool, error) {
	return postgres.Open(ctx, postgres.Config{URL: s.DatabaseURL, AppName: "refold-projector", MaxConns: conns, StatementTimeout: 30 * time.Second})
}

type runCommand struct {
	service.Admin `embed:"" set:"admin_port=9081" set:"drain_delay=0s"`

	Names []string `arg:"" optional:"" help:"Projections to feed."`
}

// Run feeds projections until it is told to stop.
func (r *runCommand) Run(ctx context.Context, settings *service.Settings) error {
	contracts, err := settings.Contracts()
	if err != nil {
		return err
	}
	definitions, err := settings.Definitions()
	if err != nil {
		return err
	}
	pool, err := open(ctx, settings, 4)
	if err != nil {
		return err
	}
	defer pool.Close()
	log, reg, health := settings.Logger(), service.NewRegistry("projector"), &service.Health{}
	health.Check("database", pool.Ping)
	s := &service.Service{Log: log, Health: health, DrainDelay: r.DrainDelay}
	if _, err := s.Serve("admin server", r.AdminAddr, service.AdminHandler(health, reg)); err != nil {
		return err
	}
	e := engine.New(engine.Config{DatabaseURL: settings.DatabaseURL, Kafka: settings.Brokers("projector"), Prefix: settings.Prefix, Owner: settings.Owner()}, pool, registry.New(pool), eventstore.NewReader(pool), log, reg)
	s.Add("engine", func(ctx context.Context) error { return feed(ctx, e, pool, log, contracts, definitions, r.Names) })
	return s.Run(ctx)
}

// feed waits for the database and the categories, and then feeds.
func feed(ctx context.Context, e *engine.Engine, pool *pgxpool.Pool, log *slog.Logger, contracts *avro.Contracts, definitions []*projection.Definition, names []string) error {
	if err := postgres.WaitForSchema(ctx, pool); err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // asked to stop while waiting
		}
		return err
	}
	for {
		feeds, err := engine.Setup(ctx, pool, contracts, definitions, names)
		if err == nil {
			return e.Run(ctx, feeds)
		}
		if !errors.Is(err, engine.ErrNoCategory) && !postgres.Transient(err) && ctx.Err() == nil {
			return err
		}
		log.Info("waiting to feed", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond): // nothing tells when a category is made
		}
	}
}

type serveCommand struct {
	service.Admin `embed:"" set:"admin_port=9082"`

	Addr string `help:"Where read models are served." default:"127.0.0.1:8081"`
}

// Run serves read models until it is told to stop.
func (r *serveCommand) Run(ctx context.Context, settings *service.Settings) error {
	contracts, err := settings.Contracts()
	if err != nil {
		return err
	}
	pool, err := postgres.Open(ctx, postgres.Config{URL: settings.DatabaseURL, AppName: "refold-queries", MaxConns: 16, StatementTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	defer pool.Close()
	log, reg, health := settings.Logger(), service.NewRegistry("queries"), &service.Health{}
	health.Check("database", pool.Ping)
	s := &service.Service{Log: log, Health: health, DrainDelay: r.DrainDelay}
	if _, err := s.Serve("admin server", r.AdminAddr, service.AdminHandler(health, reg)); err != nil {
		return err
	}
	watcher := readmodel.NewWatcher(settings.DatabaseURL)
	s.Add("progress watcher", watcher.Run)
	mux := http.NewServeMux()
	query.New(readmodel.NewReader(pool, watcher), readmodel.NewCatalogue(pool), readmodel.NewPlans(contracts).Plan).Register(mux)
	mux.HandleFunc("/", api.NotFound)
	if _, err := s.Serve("API server", r.Addr, mux); err != nil {
		return err
	}
	return s.Run(ctx)
}

type verifyCommand struct {
	Name string `arg:"" help:"Projection to verify."`
}

// Run verifies the active version of a projection.
func (r *verifyCommand) Run(ctx context.Context, settings *service.Settings) error {
	contracts, err := settings.Contracts()
	if err != nil {
		return err
	}
	pool, err := open(ctx, settings, 4)
	if err != nil {
		return err
	}
	defer pool.Close()
	feeds, err := engine.Setup(ctx, pool, contracts, nil, []string{r.Name})
	if err != nil {
		return err
	}
	if len(feeds) == 0 {
		return fmt.Errorf("%w: %s", readmodel.ErrUnknownProjection, r.Name)
	}
	for _, f := range feeds {
		report, err := engine.Verify(ctx, pool, registry.New(pool), f)
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
			return err
		}
	}
	return nil
}

type lintCommand struct{}

// Run compiles the definitions without any server.
func (r *lintCommand) Run(settings *service.Settings) error {
	contracts, err := settings.Contracts()
	if err != nil {
		return err
	}
	definitions, err := settings.Definitions()
	if err != nil {
		return err
	}
	var failures []error
	for _, d := range definitions {
		_, err := projection.Compile(d, contracts)
		failures = append(failures, err)
	}
	if err := errors.Join(failures...); err != nil {
		return err
	}
	fmt.Printf("%d projections: fine\n", len(definitions))
	return nil
}
