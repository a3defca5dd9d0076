package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/rebuilder"
)

// RebuildCommands are the commands of `rebuild`. A team that has upcasters, or
// projections in Go, embeds them into a program of its own: a rebuild folds with what
// its program knows.
//
//	type cli struct {
//		service.Settings
//		service.RebuildCommands `embed:""`
//	}
//
//	func main() {
//		service.Program{Name: "rebuild", Contracts: contracts, Upcasters: upcasters, Projections: projections}.Main(&cli{})
//	}
type RebuildCommands struct {
	Output string `short:"o" help:"Form of the output: table or json." enum:"table,json" default:"table"`
	Owner  string `help:"Who runs this, for people. A run of the same name as the holder of the lease takes over from it."`

	Plan     rebuildPlanCommand     `cmd:"" help:"Say what a rebuild would do and cost; change nothing."`
	Run      rebuildRunCommand      `cmd:"" help:"Begin a rebuild or resume it, and take it to its end."`
	Status   rebuildStatusCommand   `cmd:"" help:"Show versions and rebuilds."`
	Pause    rebuildPauseCommand    `cmd:"" help:"Hold a rebuild up."`
	Resume   rebuildResumeCommand   `cmd:"" help:"Let a paused rebuild go on."`
	Cancel   rebuildCancelCommand   `cmd:"" help:"End a rebuild and drop what it has built."`
	Verify   rebuildVerifyCommand   `cmd:"" help:"Compare a version with the log."`
	Promote  rebuildPromoteCommand  `cmd:"" help:"Let a version that is ready serve."`
	Rollback rebuildRollbackCommand `cmd:"" help:"Let the version serve that served before."`
	Retire   rebuildRetireCommand   `cmd:"" help:"Take versions out of use and drop their tables."`
}

// AfterApply hands the flags of all commands to each.
func (c *RebuildCommands) AfterApply(k *kong.Context) error {
	k.Bind(c)
	return nil
}

// open returns a rebuilder on a pool that the caller closes.
func (c *RebuildCommands) open(ctx context.Context, s *Settings, metrics prometheus.Registerer) (*rebuilder.Rebuilder, *pgxpool.Pool, error) {
	contracts, err := s.Contracts()
	if err != nil {
		return nil, nil, Usage(err).Try("writer lint")
	}
	definitions, err := s.Definitions()
	if err != nil {
		return nil, nil, Usage(err).Try("projector lint")
	}
	pool, err := postgres.Open(ctx, postgres.Config{URL: s.DatabaseURL, AppName: "refold-rebuild", MaxConns: 6})
	if err != nil {
		return nil, nil, err
	}
	return rebuilder.New(rebuilder.Config{DatabaseURL: s.DatabaseURL, Kafka: s.Brokers("rebuild"), Prefix: s.Prefix, Owner: c.Owner},
		rebuilder.Deps{Pool: pool, Schemas: s.Registry(pool), Contracts: contracts, Definitions: definitions, Logger: s.Logger(), Metrics: rebuilder.NewMetrics(metrics)}), pool, nil
}

// with runs f on a rebuilder and gives its error an exit code.
func (c *RebuildCommands) with(ctx context.Context, s *Settings, f func(*rebuilder.Rebuilder) error) error {
	r, pool, err := c.open(ctx, s, nil)
	if err != nil {
		return err
	}
	defer pool.Close()
	return explainRebuild(ctx, f(r))
}

// explainRebuild gives an error the exit code of its kind.
func explainRebuild(ctx context.Context, err error) error {
	var busy *rebuilder.Busy
	var left *rebuilder.Left
	switch {
	case err == nil:
		return nil
	case errors.As(err, &left):
		return Conflict(err).Try("rebuild plan " + left.Projection)
	case errors.As(err, &busy), errors.Is(err, rebuilder.ErrState), errors.Is(err, readmodel.ErrServing), errors.Is(err, readmodel.ErrNotServable), errors.Is(err, rebuilder.ErrNoFormer):
		return Conflict(err).Try("rebuild status")
	case errors.Is(err, rebuilder.ErrNoDefinition), errors.Is(err, rebuilder.ErrNoRebuild), errors.Is(err, rebuilder.ErrNoVersion):
		return NotFound(err).Try("rebuild status")
	case errors.Is(err, rebuilder.ErrOptions):
		return Usage(err).Try("rebuild run --help")
	case errors.Is(err, engine.ErrNoCategory), errors.Is(err, readmodel.ErrBehind), ctx.Err() != nil:
		return TryAgain(err)
	default:
		return err
	}
}

// sizes are the units of a size on the command line.
var sizes = map[string]int64{"": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

// size is a number of bytes, such as 512MiB.
type size int64

// UnmarshalText reads a size.
func (s *size) UnmarshalText(text []byte) error {
	upper := strings.ToUpper(string(text))
	digits := strings.TrimRight(upper, "KMGIB ")
	n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
	unit, known := sizes[strings.TrimSpace(upper[len(digits):])]
	if err != nil || !known || n < 0 || n > 1<<40 {
		return fmt.Errorf("%q is no size: want one such as 512MiB", text)
	}
	*s = size(n * unit)
	return nil
}

type rebuildRunCommand struct {
	Admin `embed:"" set:"admin_port=9083" set:"drain_delay=0s"`

	Name     string        `arg:"" help:"Projection to rebuild."`
	Promote  string        `help:"Whether the version serves as soon as it is verified: auto or manual." enum:"auto,manual" default:"auto"`
	Source   string        `help:"Where the history is read: topic, eventstore, or auto, which reads the event store where a topic is not whole." enum:"topic,eventstore,auto" default:"topic"`
	Verify   string        `help:"How much is verified: sample, full, or deterministic, which folds twice." enum:"sample,full,deterministic" default:"sample"`
	Memory   size          `help:"Memory that the process may take." default:"512MiB"`
	Rate     int           `help:"Most events read in a second; 0 for no bound." default:"0"`
	Parallel int           `help:"Partitions that are loaded at a time, each with one connection; 0 for the number of CPUs." default:"0"`
	Keep     time.Duration `help:"How long the version that served is fed on, for a roll back." default:"24h"`
	Fresh    bool          `help:"Build a version even where new fields or indexes could be made in the one that serves."`
	Back     bool          `help:"Build a definition that the projection has left."`
	Force    string        `help:"Promote in spite of a failed verification, for this reason." placeholder:"REASON"`
}

// Run runs one rebuild to its end.
func (r *rebuildRunCommand) Run(ctx context.Context, s *Settings, c *RebuildCommands) error {
	show := newRebuildShow(os.Stderr, c.Output == "json")
	if show.bars {
		s.LogLevel = max(s.LogLevel, slog.LevelWarn) // the bars show what else is logged
	}
	if err := c.with(ctx, s, func(b *rebuilder.Rebuilder) error { return b.CheckFree(ctx, r.Name) }); err != nil {
		return err // and not that another run has taken the admin address
	}
	h, err := NewHost(s, "rebuild", r.Admin)
	if err != nil {
		return err
	}
	debug.SetMemoryLimit(int64(r.Memory) * 9 / 10) // beyond it the collector works harder, below it seldom
	debug.SetGCPercent(300)
	b, pool, err := c.open(ctx, s, h.Registry)
	if err != nil {
		return err
	}
	defer pool.Close()
	options := rebuilder.Options{Promote: r.Promote, Source: rebuilder.Source(r.Source), Verify: rebuilder.Verification(r.Verify), MemoryBytes: int64(r.Memory),
		Rate: r.Rate, Parallel: r.Parallel, Keep: rebuilder.Duration(r.Keep), Fresh: r.Fresh, Back: r.Back, Force: r.Force}
	work := &work{name: r.Name, do: func(ctx context.Context) error {
		done, err := b.Run(ctx, r.Name, options, show.show)
		show.end()
		if err != nil {
			if err := c.printReport(done.Report); err != nil {
				return err
			}
			return err
		}
		return c.printRebuild(done)
	}}
	h.Add(work)
	hosted, stop := context.WithCancel(ctx)
	work.stop = stop
	defer stop()
	err = h.Run(hosted)
	if work.err != nil {
		return explainRebuild(ctx, work.err)
	}
	if err == nil && ctx.Err() != nil && !work.done {
		return TryAgain(errors.New("stopped before its end")).Try("rebuild run " + r.Name + " goes on where it stopped")
	}
	return err
}

// work is a component that ends by itself, and the host with it.
type work struct {
	name string
	do   func(context.Context) error
	stop context.CancelFunc
	err  error
	done bool
}

// Name is "rebuild".
func (w *work) Name() string { return "rebuild" }

// Start has nothing to wait for: the rebuild does that, and says so.
func (w *work) Start(context.Context, *Host) error { return nil }

// Run does the work and stops the host.
func (w *work) Run(ctx context.Context) error {
	defer w.stop()
	w.err = w.do(ctx)
	w.done = w.err == nil
	return nil
}
