package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/relay"
	"github.com/refoldhq/refold/pkg/service"
)

type migrateCommand struct{}

// Run migrates and says what was missing.
func (c *migrateCommand) Run(ctx context.Context, s *service.Settings) error {
	pool, err := postgres.Open(ctx, postgres.Config{URL: s.DatabaseURL, AppName: "refold-migrate", MaxConns: 2})
	if err != nil {
		return err
	}
	defer pool.Close()
	missing, err := postgres.Missing(ctx, pool)
	if err != nil {
		return err
	}
	if err := postgres.Migrate(ctx, pool); err != nil {
		return err
	}
	if len(missing) == 0 {
		fmt.Println("the schema refold has every migration")
		return nil
	}
	fmt.Printf("the schema refold has every migration now: %v were applied\n", missing)
	return nil
}

type verifyCommand struct {
	Output string        `short:"o" help:"Form of the output: table or json." enum:"table,json" default:"table"`
	Settle time.Duration `help:"How long records may still be under way." default:"30s"`
}

// verification is what was checked.
type verification struct {
	Log       eventstore.LogReport `json:"log"`
	Snapshots int                  `json:"snapshots"`
	Topics    []relay.TopicReport  `json:"topics"`
}

// Run verifies the log, the snapshots of aggregates, and then every topic.
func (c *verifyCommand) Run(ctx context.Context, s *service.Settings) error {
	pool, err := postgres.Open(ctx, postgres.Config{URL: s.DatabaseURL, AppName: "refold-verify", MaxConns: 2})
	if err != nil {
		return err
	}
	defer pool.Close()
	report, err := verify(ctx, s, pool, c.Settle)
	if err != nil && report.Log.Categories == 0 {
		return err // nothing was looked at
	}
	if printed := report.print(c.Output); err == nil {
		err = printed
	}
	return err
}

func verify(ctx context.Context, s *service.Settings, pool *pgxpool.Pool, settle time.Duration) (report verification, err error) {
	if report.Log, err = eventstore.VerifyLog(ctx, pool); err != nil {
		return report, err
	}
	if report.Snapshots, err = service.VerifySnapshots(ctx, s, pool, demo()); err != nil {
		return report, err
	}
	brokers := s.Brokers("verify")
	categories, err := eventstore.ReadCategories(ctx, pool)
	if err != nil {
		return report, err
	}
	for _, category := range categories {
		topic, err := relay.VerifyTopic(ctx, pool, brokers, category, settle)
		report.Topics = append(report.Topics, topic)
		if err != nil {
			return report, err
		}
	}
	return report, nil
}

func (v verification) print(form string) error {
	if form == "json" {
		return json.NewEncoder(os.Stdout).Encode(v)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CATEGORIES\tSLOTS\tSTREAMS\tEVENTS\tSNAPSHOTS")
	fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\n\n", v.Log.Categories, v.Log.Slots, v.Log.Streams, v.Log.Events, v.Snapshots)
	fmt.Fprintln(w, "TOPIC\tRECORDS\tDUPLICATES\tFOREIGN\tSUPERSEDED")
	for _, t := range v.Topics {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\n", t.Topic, t.Records, t.Duplicates, t.Foreign, t.Superseded)
	}
	return w.Flush()
}
