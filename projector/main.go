// Projector is refold's read side: it feeds projections from the topics and
// serves read models.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/term"

	"github.com/refoldhq/refold/pkg/api"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/query"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/pkg/service"
	"github.com/refoldhq/refold/schemas"
)

// cli is the command line. Every flag has an environment variable of its name.
type cli struct {
	LogLevel    slog.Level `help:"Least level that is logged." default:"info" env:"REFOLD_LOG_LEVEL"`
	DatabaseURL string     `help:"Postgres to work on; PG* variables where it is empty." env:"DATABASE_URL"`
	Prefix      string     `help:"First part of the names of topics and groups." default:"refold" env:"REFOLD_PREFIX"`
	Schemas     string     `help:"Folder of contracts; those compiled in where it is empty." env:"REFOLD_SCHEMAS" type:"existingdir"`

	Run    runCommand    `cmd:"" help:"Feed projections: the named ones, all without a name."`
	Serve  serveCommand  `cmd:"" help:"Serve read models."`
	Verify verifyCommand `cmd:"" help:"Fold the log from the event table and compare every row."`
	Lint   lintCommand   `cmd:"" help:"Compile the definitions of a folder."`
}

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	var c cli
	parser, err := kong.New(&c, kong.Name("projector"), kong.Description("refold's read side."))
	if err != nil {
		panic(err) // the struct above is wrong
	}
	command, err := parser.Parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "projector:", err)
		os.Exit(exitUsage)
	}
	command.BindTo(context.Background(), (*context.Context)(nil))
	if err := command.Run(&c); err != nil {
		fmt.Fprintln(os.Stderr, "projector:", err)
		os.Exit(exitFailed)
	}
}

func (c *cli) logger() *slog.Logger {
	return service.NewLogger(c.LogLevel, !term.IsTerminal(int(os.Stderr.Fd())))
}

func (c *cli) load() (*avro.Contracts, []*projection.Definition, error) {
	var fsys fs.FS = schemas.FS
	if c.Schemas != "" {
		fsys = os.DirFS(c.Schemas)
	}
	contracts, err := avro.LoadContracts(fsys)
	if err != nil {
		return nil, nil, err
	}
	definitions, err := projection.LoadDefinitions(fsys)
	return contracts, definitions, err
}

func (c *cli) open(ctx context.Context, conns int) (*pgxpool.Pool, error) {
	return postgres.Open(ctx, postgres.Config{URL: c.DatabaseURL, AppName: "refold-projector", MaxConns: conns, StatementTimeout: 30 * time.Second})
}

type runCommand struct {
	Names      []string      `arg:"" optional:"" help:"Projections to feed."`
	AdminAddr  string        `help:"Where health, metrics and profiles are served." default:"127.0.0.1:9081" env:"REFOLD_ADMIN_ADDR"`
	DrainDelay time.Duration `help:"How long work goes on after SIGTERM." default:"0s" env:"REFOLD_DRAIN_DELAY"`
}

// Run feeds projections until it is told to stop.
func (r *runCommand) Run(ctx context.Context, c *cli) error {
	contracts, definitions, err := c.load()
	if err != nil {
		return err
	}
	brokers, err := kafka.ConfigFromEnv()
	if err != nil {
		return err
	}
	pool, err := c.open(ctx, 4)
	if err != nil {
		return err
	}
	defer pool.Close()
	log, reg, health := c.logger(), service.NewRegistry("projector"), &service.Health{}
	health.Check("database", pool.Ping)
	s := &service.Service{Log: log, Health: health, DrainDelay: r.DrainDelay}
	if _, err := s.Serve("admin server", r.AdminAddr, service.AdminHandler(health, reg)); err != nil {
		return err
	}
	owner, err := os.Hostname()
	if err != nil {
		owner = "unknown"
	}
	e := engine.New(engine.Config{DatabaseURL: c.DatabaseURL, Kafka: brokers, Prefix: c.Prefix, Owner: owner}, pool, registry.New(pool), eventstore.NewReader(pool), log, reg)
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
	Addr       string        `help:"Where read models are served." default:"127.0.0.1:8081" env:"REFOLD_ADDR"`
	AdminAddr  string        `help:"Where health, metrics and profiles are served." default:"127.0.0.1:9082" env:"REFOLD_ADMIN_ADDR"`
	DrainDelay time.Duration `help:"How long requests are served on after SIGTERM." default:"2s" env:"REFOLD_DRAIN_DELAY"`
}

// Run serves read models until it is told to stop.
func (r *serveCommand) Run(ctx context.Context, c *cli) error {
	contracts, _, err := c.load()
	if err != nil {
		return err
	}
	pool, err := postgres.Open(ctx, postgres.Config{URL: c.DatabaseURL, AppName: "refold-queries", MaxConns: 16, StatementTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	defer pool.Close()
	log, reg, health := c.logger(), service.NewRegistry("queries"), &service.Health{}
	health.Check("database", pool.Ping)
	s := &service.Service{Log: log, Health: health, DrainDelay: r.DrainDelay}
	if _, err := s.Serve("admin server", r.AdminAddr, service.AdminHandler(health, reg)); err != nil {
		return err
	}
	watcher := readmodel.NewWatcher(c.DatabaseURL)
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
func (r *verifyCommand) Run(ctx context.Context, c *cli) error {
	contracts, _, err := c.load()
	if err != nil {
		return err
	}
	pool, err := c.open(ctx, 4)
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
func (r *lintCommand) Run(c *cli) error {
	contracts, definitions, err := c.load()
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
