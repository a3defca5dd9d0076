// Writing is the ledger's write side.
package main

import (
	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/service"
	"github.com/refoldhq/refold/test/e2e/ledger"
)

type cli struct {
	service.Settings
	Serve  service.WriterCommand `cmd:"" help:"Serve the wallets."`
	Schema service.SchemaCommand `cmd:"" help:"Make Go code from schemas, and schemas from Go code."`
	Lint   service.LintCommand   `cmd:"" help:"Check the contracts, and with --history that they read what the log holds."`
}

func main() {
	service.Program{Name: "writer", Description: "Keeps wallets.", Contracts: ledger.Contracts(), Upcasters: ledger.Upcasters()}.Main(&cli{
		Serve:  service.WriterCommand{Aggregates: []aggregate.Type{ledger.Define()}, Reactions: []service.Reaction{ledger.Thank}},
		Schema: service.SchemaCommand{Aggregates: []aggregate.Type{ledger.Define()}},
	})
}
