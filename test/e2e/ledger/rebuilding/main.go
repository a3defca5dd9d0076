// Rebuilding rebuilds the ledger's read models in a process of its own, as a Job
// does.
package main

import (
	"github.com/refoldhq/refold/pkg/service"
	"github.com/refoldhq/refold/test/e2e/ledger"
)

type cli struct {
	service.Settings
	service.RebuildCommands `embed:""`
}

func main() {
	service.Program{Name: "rebuild", Description: "Rebuilds the read models of wallets.", Contracts: ledger.Contracts(), Upcasters: ledger.Upcasters(),
		Projections: ledger.Projections()}.Main(&cli{})
}
