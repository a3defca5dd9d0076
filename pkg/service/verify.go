package service

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/relay"
)

// VerifyCommand is `writer verify`. A custom writer has it as a command of its own,
// as only its aggregates say what their snapshots and claims should be.
type VerifyCommand struct {
	Output string        `short:"o" help:"Form of the output: table or json." enum:"table,json" default:"table"`
	Settle time.Duration `help:"How long records may still be under way." default:"30s"`

	Claims string `help:"Whether aggregates that do not hold what their rules say are only counted, or fail the command: report or strict, for where all is written by commands." enum:"report,strict" default:"report"`

	// Aggregates are those of the program.
	Aggregates []aggregate.Type `kong:"-"`
}

// verification is what was checked.
type verification struct {
	Log       eventstore.LogReport   `json:"log"`
	Snapshots int                    `json:"snapshots"`
	Claims    aggregate.ClaimsReport `json:"claims"`
	Topics    []relay.TopicReport    `json:"topics"`
}

// Run verifies the log, the snapshots and claims of aggregates, and then every topic.
func (c *VerifyCommand) Run(ctx context.Context, s *Settings) error {
	pool, err := postgres.Open(ctx, postgres.Config{URL: s.DatabaseURL, AppName: "refold-verify", MaxConns: 2})
	if err != nil {
		return err
	}
	defer pool.Close()
	report, err := c.verify(ctx, s, pool)
	if err != nil && report.Log.Categories == 0 {
		return err // nothing was looked at
	}
	if printed := report.print(os.Stdout, c.Output); err == nil {
		err = printed
	}
	return err
}

func (c *VerifyCommand) verify(ctx context.Context, s *Settings, pool *pgxpool.Pool) (report verification, err error) {
	if report.Log, err = eventstore.VerifyLog(ctx, pool); err != nil {
		return report, err
	}
	runtime, err := idleRuntime(ctx, s, pool, c.Aggregates)
	if err != nil {
		return report, err
	}
	if report.Snapshots, err = runtime.VerifySnapshots(ctx); err != nil {
		return report, err
	}
	if report.Claims, err = runtime.VerifyClaims(ctx); err != nil {
		return report, err
	}
	if report.Claims.Differ > 0 {
		if c.Claims == "strict" {
			return report, explainClaims(report.Claims).Try("writer claims")
		}
		s.Logger().Warn("aggregates do not hold what their rules say", "aggregates", report.Claims.Differ, "first", report.Claims.First)
	}
	brokers := s.Brokers("verify")
	categories, err := eventstore.ReadCategories(ctx, pool)
	if err != nil {
		return report, err
	}
	for _, category := range categories {
		topic, err := relay.VerifyTopic(ctx, pool, brokers, category, c.Settle)
		report.Topics = append(report.Topics, topic)
		if err != nil {
			return report, err
		}
	}
	return report, nil
}

func (v verification) print(out io.Writer, form string) error {
	if form == "json" {
		return json.NewEncoder(out).Encode(v)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CATEGORIES\tSLOTS\tSTREAMS\tEVENTS\tCLAIMS\tDIFFER\tSNAPSHOTS")
	fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t%d\t%d\n\n", v.Log.Categories, v.Log.Slots, v.Log.Streams, v.Log.Events, v.Log.Claims, v.Claims.Differ, v.Snapshots)
	fmt.Fprintln(w, "TOPIC\tRECORDS\tDUPLICATES\tFOREIGN\tSUPERSEDED")
	for _, t := range v.Topics {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\n", t.Topic, t.Records, t.Duplicates, t.Foreign, t.Superseded)
	}
	return w.Flush()
}

// ClaimsCommand is `writer claims`. A custom writer has it as a command of its own.
type ClaimsCommand struct {
	Repair bool `help:"Have every aggregate take and release what its rule says. All writers must have the rule already."`

	// Aggregates are those of the program.
	Aggregates []aggregate.Type `kong:"-"`
}

// Run compares claims with their rules, or brings them there.
func (c *ClaimsCommand) Run(ctx context.Context, s *Settings) error {
	pool, err := postgres.Open(ctx, postgres.Config{URL: s.DatabaseURL, AppName: "refold-claims", MaxConns: 2})
	if err != nil {
		return err
	}
	defer pool.Close()
	runtime, err := idleRuntime(ctx, s, pool, c.Aggregates)
	if err != nil {
		return err
	}
	run := runtime.VerifyClaims
	if c.Repair {
		run = runtime.RepairClaims
	}
	report, err := run(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%d aggregates claim %d values; %d were brought to their rule, %d differ from it\n", report.Aggregates, report.Claims, report.Repaired, report.Differ)
	switch {
	case report.Differ == 0:
		return nil
	case c.Repair:
		return Conflict(explainClaims(report).Err).Because("by their rules two aggregates have one value").Try("have one of them give it up by a command, and repeat this")
	default:
		return explainClaims(report).Try("writer claims --repair")
	}
}

func explainClaims(report aggregate.ClaimsReport) *Failure {
	return (&Failure{Err: fmt.Errorf("%d aggregates do not hold what their rules say; first: %w", report.Differ, report.First), Code: ExitFailed}).
		Because("a rule has changed, or somebody has appended past the commands")
}

// idleRuntime returns a runtime of those types whose category the database and the
// contracts have. Nothing can be appended with it.
func idleRuntime(ctx context.Context, s *Settings, pool *pgxpool.Pool, types []aggregate.Type) (*aggregate.Runtime, error) {
	contracts, err := s.Contracts()
	if err != nil {
		return nil, err
	}
	categories, err := eventstore.ReadCategories(ctx, pool)
	if err != nil {
		return nil, err
	}
	store := eventstore.New(eventstore.Config{DatabaseURL: s.DatabaseURL}, s.Logger(), prometheus.NewRegistry())
	store.Know(categories...)
	var present []aggregate.Type
	for _, c := range categories {
		_, known := contracts.Category(c.Name)
		for _, t := range types {
			if known && t.Category() == c.Name {
				present = append(present, t)
			}
		}
	}
	return aggregate.NewRuntime(aggregate.Config{}, aggregate.Deps{Store: store, Pool: pool, Schemas: s.Registry(pool), Contracts: contracts,
		SchemaIDs: aggregate.LocalIDs(contracts), Logger: s.Logger()}, present...) // nothing is written, so no id of a schema is needed
}
