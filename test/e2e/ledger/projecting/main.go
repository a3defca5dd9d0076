// Projecting feeds, serves and rebuilds the ledger's read models.
package main

import (
	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/service"
	"github.com/refoldhq/refold/test/e2e/ledger"
)

type cli struct {
	service.Settings
	Run   service.ProjectorCommand `cmd:"" help:"Feed read models."`
	Serve service.QueryCommand     `cmd:"" help:"Serve and rebuild read models."`
	Test  service.TestCommand      `cmd:"" help:"Run the tests beside the definitions."`
}

func main() {
	service.Program{Name: "projector", Description: "Keeps the read models of wallets.", Contracts: ledger.Contracts(), Upcasters: ledger.Upcasters(),
		Projections: ledger.Projections()}.Main(&cli{Test: service.TestCommand{Aggregates: []aggregate.Type{ledger.Define()}}})
}
