// Writer is refold's write side: it appends events, relays them to Kafka and
// serves the log and the schema registry.
package main

import (
	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/service"
	"github.com/refoldhq/refold/schemas"
	"github.com/refoldhq/refold/schemas/user"
)

// cli is the command line.
type cli struct {
	service.Settings

	Serve   service.WriterCommand `cmd:"" help:"Append, read the log, serve schemas, and relay to Kafka."`
	Relay   service.RelayCommand  `cmd:"" help:"Relay to Kafka only."`
	Dev     devCommand            `cmd:"" help:"Everything in one process, with a Postgres and a broker of its own."`
	Topics  topicsCommand         `cmd:"" help:"Make the topics of all categories, for brokers where the relay may not."`
	Migrate migrateCommand        `cmd:"" help:"Bring the database's schema to the newest version."`
	Streams streamsCommand        `cmd:"" help:"Show the categories of the log, the streams of one, or the events of a stream."`
	Import  importCommand         `cmd:"" help:"Send a history to a writer: lines of a file or of standard input."`
	Verify  service.VerifyCommand `cmd:"" help:"Check that sequences and versions are dense, that snapshots and claims are what the log makes, and that topics hold exactly the log."`
	Claims  service.ClaimsCommand `cmd:"" help:"Compare the claims of aggregates with their rules, and with --repair bring them there, as after a change of a rule."`
	Repair  repairCommand         `cmd:"" help:"Show what is not relayed and why, and repair what only an operator may decide."`
	Probe   probeCommand          `cmd:"" help:"Append an event through the API of an installation and read its row, as a client does."`
	Lint    service.LintCommand   `cmd:"" help:"Check the contracts of a folder, and with --history that they read what the log holds."`
	Schema  service.SchemaCommand `cmd:"" help:"Make golden files and Go code from schemas, and schemas from Go code."`
}

func main() {
	service.Program{Name: "writer", Description: "refold's write side: it appends events, relays them to Kafka, and serves the log and its schemas.",
		Contracts: schemas.FS}.Main(&cli{Serve: service.WriterCommand{Aggregates: demo()}, Schema: service.SchemaCommand{Aggregates: demo()},
		Verify: service.VerifyCommand{Aggregates: demo()}, Claims: service.ClaimsCommand{Aggregates: demo()}})
}

// demo are the aggregates of the contracts that are compiled in.
func demo() []aggregate.Type { return []aggregate.Type{user.Define()} }
