// Projector is refold's read side: it feeds projections from the topics and
// serves read models.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/service"
	"github.com/refoldhq/refold/schemas"
	"github.com/refoldhq/refold/schemas/user"
)

// cli is the command line.
type cli struct {
	service.Settings

	Run    service.ProjectorCommand `cmd:"" help:"Feed projections: the named ones, all without a name."`
	Serve  service.QueryCommand     `cmd:"" help:"Serve read models."`
	Status statusCommand            `cmd:"" help:"Show how projections are being fed: lag, parked streams, stopped slots, what is due."`
	Parked parkedCommand            `cmd:"" help:"Show parked streams; retry or skip."`
	Verify verifyCommand            `cmd:"" help:"Fold the log from the event table and compare every row."`
	Lint   lintCommand              `cmd:"" help:"Compile the definitions of a folder."`
	Test   service.TestCommand      `cmd:"" help:"Run the tests that stand beside the definitions (projections/*.test.yaml)."`
}

func main() {
	service.Program{Name: "projector", Description: "refold's read side: it feeds projections from the topics and serves read models.",
		Contracts: schemas.FS}.Main(&cli{Test: service.TestCommand{Aggregates: []aggregate.Type{user.Define()}}})
}

func open(ctx context.Context, s *service.Settings, conns int) (*pgxpool.Pool, error) {
	return postgres.Open(ctx, postgres.Config{URL: s.DatabaseURL, AppName: "refold-projector", MaxConns: conns, StatementTimeout: 30 * time.Second})
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
		report, err := engine.Verify(ctx, pool, settings.Registry(pool), f)
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
