package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/relay"
	"github.com/refoldhq/refold/pkg/service"
)

// repairCommand shows what is not relayed and why, and carries out what only an
// operator may decide.
type repairCommand struct {
	Category string `arg:"" optional:"" help:"The category to repair; without one, what is not relayed is listed."`
	Slot     int    `help:"The slot that has diverged, for --restore and --keep-log." default:"-1"`

	Republish bool `help:"Send again from the event table what the topic lacks: it was deleted, made anew, or lost its end." xor:"action"`
	Restore   bool `help:"Put events that the database has lost back from the topic. Their claims and idempotency keys do not come back." xor:"action"`
	KeepLog   bool `help:"Take the event table's side: projections that have applied lost events need a rebuild." xor:"action"`

	Output string `short:"o" help:"Form of the list: table or json." enum:"table,json" default:"table"`
}

// Run lists or repairs.
func (c *repairCommand) Run(ctx context.Context, s *service.Settings) error {
	pool, err := postgres.Open(ctx, postgres.Config{URL: s.DatabaseURL, AppName: "refold-repair", MaxConns: 2})
	if err != nil {
		return err
	}
	defer pool.Close()
	if !c.Republish && !c.Restore && !c.KeepLog {
		return c.list(ctx, pool)
	}
	category, err := c.category(ctx, pool)
	if err != nil {
		return err
	}
	switch {
	case c.Republish:
		err = relay.Republish(ctx, pool, category)
	case c.Slot < 0 || c.Slot >= category.Slots:
		err = service.Usage(fmt.Errorf("--slot names one of the %d slots of %s", category.Slots, category.Name)).Try("writer repair")
	case c.Restore:
		var n int
		if n, err = relay.Restore(ctx, pool, s.Brokers("repair"), category, c.Slot); err == nil {
			fmt.Printf("%d events are back\n", n)
		}
	default:
		err = relay.KeepLog(ctx, pool, s.Brokers("repair"), category, c.Slot)
	}
	if err == nil {
		fmt.Println("the relay goes on at its next look, within seconds; `writer repair` shows what is left")
	}
	return err
}

func (c *repairCommand) category(ctx context.Context, pool *pgxpool.Pool) (eventstore.Category, error) {
	all, err := eventstore.ReadCategories(ctx, pool)
	if err != nil {
		return eventstore.Category{}, err
	}
	for _, category := range all {
		if category.Name == c.Category {
			return category, nil
		}
	}
	return eventstore.Category{}, service.Usage(fmt.Errorf("there is no category %q", c.Category)).Try("writer repair")
}

func (c *repairCommand) list(ctx context.Context, pool *pgxpool.Pool) error {
	troubles, err := relay.Troubles(ctx, pool)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return json.NewEncoder(os.Stdout).Encode(troubles)
	}
	if len(troubles) == 0 {
		fmt.Println("everything is relayed or on its way")
		return nil
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TOPIC\tPARTITION\tSLOT\tSEQ\tKIND\tREASON")
	for _, t := range troubles {
		slot := "all"
		if t.Slot != nil {
			slot = fmt.Sprint(*t.Slot)
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t%s\n", t.Topic, t.Partition, slot, t.Seq, t.Kind, t.Reason)
	}
	return w.Flush()
}
