package service

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
)

// LintCommand is `writer lint`: it checks the contracts, and with --history whether
// they read what the log holds. A custom writer has it as a command of its own, as
// its upcasters belong to what is checked.
type LintCommand struct {
	History bool   `help:"Read events of the real log with these contracts, too."`
	Sample  int    `help:"About how many events of the log are read, evenly over all slots; 0 for every one." default:"10000"`
	Output  string `short:"o" help:"Form of the output: table or json." enum:"table,json" default:"table"`
}

// contractsReport is what was checked.
type contractsReport struct {
	Categories int                  `json:"categories"`
	EventTypes int                  `json:"eventTypes"`
	Versions   int                  `json:"versions"`
	Golden     int                  `json:"golden"`
	History    []eventstore.History `json:"history,omitempty"`
}

// Run checks contracts; without --history no server is asked.
func (c *LintCommand) Run(ctx context.Context, s *Settings) error {
	contracts, err := s.Contracts()
	if err != nil {
		return err
	}
	var report contractsReport
	for _, category := range contracts.Categories() {
		report.Categories++
		for _, t := range category.Types {
			report.EventTypes++
			report.Versions += len(t.Versions)
		}
	}
	if report.Golden, err = contracts.CheckGolden(s.ContractsFS()); err != nil {
		return err
	}
	if c.History {
		pool, err := postgres.Open(ctx, postgres.Config{URL: s.DatabaseURL, AppName: "refold-lint", MaxConns: 2, StatementTimeout: time.Minute})
		if err != nil {
			return err
		}
		defer pool.Close()
		if report.History, err = eventstore.CheckHistory(ctx, pool, s.Registry(pool), contracts, max(c.Sample, 0)); err != nil {
			return err
		}
	}
	if err := report.print(os.Stdout, c.Output); err != nil {
		return err
	}
	return report.failure()
}

// failure returns an error if events of the log cannot be read.
func (r contractsReport) failure() error {
	var failed int64
	for _, line := range r.History {
		failed += line.Failed
	}
	if failed == 0 {
		return nil
	}
	return (&Failure{Err: fmt.Errorf("%d events of the log cannot be read with these contracts", failed), Code: ExitFailed}).
		Because("a version was changed or has gone, or no chain of versions and upcasters leads from it to the newest")
}

func (r contractsReport) print(w io.Writer, form string) error {
	if form == "json" {
		return json.NewEncoder(w).Encode(r)
	}
	fmt.Fprintf(w, "%d categories, %d event types, %d versions, %d golden events: fine\n", r.Categories, r.EventTypes, r.Versions, r.Golden)
	if len(r.History) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nCATEGORY\tTYPE\tVERSION\tEVENTS\tFAILED\tFIRST FAILURE")
	for _, line := range r.History {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s %s\n", line.Category, line.Type, versionText(line.SchemaVersion), line.Events, line.Failed, line.Position, line.Error)
	}
	return t.Flush()
}

func versionText(version int) string {
	if version == 0 {
		return "other"
	}
	return fmt.Sprint(version)
}
