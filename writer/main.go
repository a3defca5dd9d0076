// Writer is refold's write side: it appends events, relays them to Kafka and
// serves the log and the schema registry.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/term"

	"github.com/refoldhq/refold/pkg/service"
)

// exit codes of the command line.
const (
	exitFailed = 1
	exitUsage  = 2
)

// cli is the command line. Every flag has an environment variable of its name.
type cli struct {
	LogLevel  slog.Level `help:"Least level that is logged." default:"info" env:"REFOLD_LOG_LEVEL"`
	LogFormat string     `help:"Form of the log: text or json; by default text on a terminal." enum:"auto,text,json" default:"auto" env:"REFOLD_LOG_FORMAT"`

	Serve   serveCommand   `cmd:"" help:"Append, read the log, serve schemas, and relay to Kafka."`
	Relay   relayCommand   `cmd:"" help:"Relay to Kafka only."`
	Dev     devCommand     `cmd:"" help:"Everything in one process, with a Postgres and a broker of its own."`
	Migrate migrateCommand `cmd:"" help:"Bring the database's schema to the newest version."`
	Verify  verifyCommand  `cmd:"" help:"Check that sequences and versions are dense and that topics hold exactly the log."`
	Lint    lintCommand    `cmd:"" help:"Check the contracts of a folder."`
}

func (c *cli) logger() *slog.Logger {
	json := c.LogFormat == "json" || c.LogFormat == "auto" && !term.IsTerminal(int(os.Stderr.Fd()))
	return service.NewLogger(c.LogLevel, json)
}

// database says which database. Without a URL the PG* variables are taken.
type database struct {
	DatabaseURL string `help:"Postgres to work on; PG* variables where it is empty." env:"DATABASE_URL"`
}

// naming is shared by all that speak of topics.
type naming struct {
	Prefix  string `help:"First part of the names of topics and groups." default:"refold" env:"REFOLD_PREFIX"`
	Schemas string `help:"Folder of contracts; those compiled in where it is empty." env:"REFOLD_SCHEMAS" type:"existingdir"`
}

// admin is the port of health and metrics.
type admin struct {
	AdminAddr  string        `help:"Where health, metrics and profiles are served." default:"127.0.0.1:9080" env:"REFOLD_ADMIN_ADDR"`
	DrainDelay time.Duration `help:"How long requests are served on after SIGTERM." default:"2s" env:"REFOLD_DRAIN_DELAY"`
}

func main() {
	var c cli
	parser, err := kong.New(&c, kong.Name("writer"), kong.Description("refold's write side."), kong.UsageOnError())
	if err != nil {
		panic(err) // the struct above is wrong
	}
	command, err := parser.Parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "writer:", err)
		os.Exit(exitUsage)
	}
	command.BindTo(context.Background(), (*context.Context)(nil))
	if err := command.Run(&c); err != nil {
		fmt.Fprintln(os.Stderr, "writer:", err)
		os.Exit(exitFailed)
	}
}
