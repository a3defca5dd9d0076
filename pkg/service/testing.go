package service

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/refoldtest"
)

// TestCommand is `projector test`: it runs the tests beside the definitions of the
// program's contracts. Those that run commands need the aggregates.
type TestCommand struct {
	Output string `short:"o" help:"Form of the output: table or json." enum:"table,json" default:"table"`

	// Aggregates are those whose commands the tests run.
	Aggregates []aggregate.Type `kong:"-"`
}

// Run runs the tests beside the definitions, without any server.
func (c *TestCommand) Run(settings *Settings) error {
	suite, err := refoldtest.NewSuite(settings.ContractsFS(), settings.Upcasters(), c.Aggregates...)
	if err != nil {
		return Usage(err).Try("projector lint")
	}
	outcomes, err := suite.Run()
	if err != nil {
		return Usage(err)
	}
	failed := 0
	for _, o := range outcomes {
		if o.Problem != "" {
			failed++
		}
		c.print(o)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d tests failed", failed, len(outcomes))
	}
	if c.Output == "table" {
		fmt.Printf("%d tests: fine\n", len(outcomes))
	}
	return nil
}

// print shows a test: as a line of JSON, or only if it failed.
func (c *TestCommand) print(o refoldtest.Outcome) {
	switch {
	case c.Output == "json":
		json.NewEncoder(os.Stdout).Encode(o) // an output that is gone ends the program anyway
	case o.Problem != "":
		fmt.Printf("%s:%d: %s\n  %s\n", o.File, o.Line, o.Name, strings.ReplaceAll(strings.TrimRight(o.Problem, "\n"), "\n", "\n  "))
	}
}
