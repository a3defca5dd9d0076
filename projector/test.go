package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/refoldhq/refold/pkg/refoldtest"
	"github.com/refoldhq/refold/pkg/service"
	"github.com/refoldhq/refold/schemas/user"
)

type testCommand struct {
	Output string `short:"o" help:"Form of the output: table or json." enum:"table,json" default:"table"`
}

// Run runs the tests beside the definitions, without any server.
func (c *testCommand) Run(settings *service.Settings) error {
	suite, err := refoldtest.NewSuite(settings.ContractsFS(), settings.Upcasters(), user.Define())
	if err != nil {
		return service.Usage(err).Try("projector lint")
	}
	outcomes, err := suite.Run()
	if err != nil {
		return service.Usage(err)
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
func (c *testCommand) print(o refoldtest.Outcome) {
	switch {
	case c.Output == "json":
		json.NewEncoder(os.Stdout).Encode(o) // an output that is gone ends the program anyway
	case o.Problem != "":
		fmt.Printf("%s:%d: %s\n  %s\n", o.File, o.Line, o.Name, strings.ReplaceAll(strings.TrimRight(o.Problem, "\n"), "\n", "\n  "))
	}
}
