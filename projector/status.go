package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/service"
)

// output is the flag of commands that show something.
type output struct {
	Output string `short:"o" help:"Form of the output: table or json." enum:"table,json" default:"table"`
}

// print writes v as JSON, or calls table.
func (o output) print(v any, table func(io.Writer)) error {
	if o.Output == "json" {
		return json.NewEncoder(os.Stdout).Encode(v)
	}
	table(os.Stdout)
	return nil
}

// loud marks text that must not be overlooked, on a terminal.
func loud(text string) string {
	if !term.IsTerminal(int(os.Stdout.Fd())) || os.Getenv("NO_COLOR") != "" {
		return text
	}
	return "\x1b[1;31m" + text + "\x1b[0m"
}

type statusCommand struct {
	output `embed:""`

	Name       string `arg:"" optional:"" help:"Projection; all without a name."`
	Partitions bool   `short:"p" help:"Show every partition."`
}

// status is a version with what is due for it.
type status struct {
	engine.Status
	// RebuildDue says that another definition is deployed than the one that the
	// active version was built by.
	RebuildDue bool `json:"rebuildDue,omitempty"`
}

// Run shows how projections are being fed.
func (c *statusCommand) Run(ctx context.Context, settings *service.Settings) error {
	plans, err := deployed(settings)
	if err != nil {
		return err
	}
	pool, err := open(ctx, settings, 2)
	if err != nil {
		return err
	}
	defer pool.Close()
	list, err := engine.ReadStatus(ctx, pool, c.Name)
	if err != nil {
		return err
	}
	if c.Name != "" && len(list) == 0 {
		return service.NotFound(fmt.Errorf("%w: %s", readmodel.ErrUnknownProjection, c.Name)).Try("projector status")
	}
	all := make([]status, len(list))
	for i, s := range list {
		plan := plans[s.Projection]
		all[i] = status{Status: s, RebuildDue: s.State == "active" && plan != nil && plan.Hash() != s.Plan}
	}
	return c.print(map[string]any{"versions": all}, func(w io.Writer) { c.table(w, all) })
}

// deployed compiles the definitions that this program has.
func deployed(settings *service.Settings) (map[string]*projection.Plan, error) {
	contracts, err := settings.Contracts()
	if err != nil {
		return nil, service.Usage(err).Try("writer lint")
	}
	definitions, err := settings.Definitions()
	if err != nil {
		return nil, service.Usage(err).Try("projector lint")
	}
	plans := make(map[string]*projection.Plan)
	for _, d := range definitions {
		if plans[d.Name], err = projection.Compile(d, contracts); err != nil {
			return nil, service.Usage(err).Try("projector lint")
		}
	}
	return plans, nil
}

func (c *statusCommand) table(out io.Writer, all []status) {
	if len(all) == 0 {
		fmt.Fprintln(out, "no projection has a version yet: projector run makes them")
		return
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PROJECTION\tVERSION\tSTATE\tLAG\tBEHIND\tPARKED\tSTOPPED\tFED BY")
	for _, s := range all {
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t%d\t%d\t%s\n", s.Projection, s.Version, s.State, s.Events, age(s.Seconds), s.Parked, s.Stopped, fedBy(s.Partitions))
	}
	w.Flush()
	for _, s := range all {
		c.notes(out, s)
	}
	if c.Partitions {
		partitionTable(out, all)
	}
}

func fedBy(partitions []engine.PartitionStatus) string {
	fed := 0
	owners := make(map[string]bool)
	for _, p := range partitions {
		if p.Fed {
			fed++
			owners[p.Owner] = true
		}
	}
	switch {
	case fed == 0:
		return "nobody"
	case fed < len(partitions):
		return fmt.Sprintf("%d processes, %d of %d partitions", len(owners), fed, len(partitions))
	case len(owners) == 1:
		return partitions[0].Owner
	default:
		return fmt.Sprintf("%d processes", len(owners))
	}
}

func age(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d == 0:
		return "-"
	case d < 10*time.Second:
		return d.Round(time.Millisecond).String()
	default:
		return d.Round(time.Second).String()
	}
}

// notes says what somebody should look at, and what helps.
func (c *statusCommand) notes(out io.Writer, s status) {
	name := fmt.Sprintf("%s v%d", s.Projection, s.Version)
	if s.RebuildDue {
		fmt.Fprintf(out, "\n%s: a rebuild is due: another definition is deployed; rebuild plan %s\n", name, s.Projection)
	}
	if s.Parked > 0 {
		fmt.Fprintf(out, "\n%s: %s; projector parked %s\n", name, loud(fmt.Sprintf("parked streams: %d", s.Parked)), s.Projection)
	}
	for _, p := range s.Partitions {
		if p.Alarm != "" {
			fmt.Fprintf(out, "\n%s: %s: %s\n", name, loud(fmt.Sprintf("partition %s/%d stands", p.Category, p.Partition)), p.Alarm)
		}
		for _, x := range p.Stopped {
			fmt.Fprintf(out, "\n%s: %s from seq %d on, since %s: %s\n", name, loud(fmt.Sprintf("slot %s/%d stands", p.Category, x.Slot)), x.FirstMissing, x.Since.Format(time.RFC3339), x.Reason)
		}
	}
}

func partitionTable(out io.Writer, all []status) {
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PROJECTION\tVERSION\tPARTITION\tPHASE\tOFFSET\tLAG\tBEHIND\tSTOPPED\tOWNER")
	for _, s := range all {
		for _, p := range s.Partitions {
			owner := p.Owner
			if !p.Fed {
				owner = "nobody"
			}
			fmt.Fprintf(w, "%s\t%d\t%s/%d\t%s\t%d\t%d\t%s\t%d\t%s\n", s.Projection, s.Version, p.Category, p.Partition, p.Phase, p.NextOffset, p.Events, age(p.Seconds), len(p.Stopped), owner)
		}
	}
	w.Flush()
}
