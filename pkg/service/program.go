package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/projection"
)

// Program is what a main function says about itself. Its command line is a
// struct for package kong that embeds [Settings].
type Program struct {
	Name        string
	Description string
	// Contracts are the schemas and definitions that are compiled in.
	Contracts fs.FS
	// Upcasters lead from old versions of the contracts to new ones. Every program
	// of a system needs the same.
	Upcasters []avro.Upcaster
	// Projections are definitions in Go, made by [projection.Of] and [projection.Fold],
	// beside those of the contracts. Of several revisions of a fold the first is the
	// present one; the others feed the versions that were built by them.
	Projections []*projection.Definition
}

// CommandLine is a pointer to a struct that embeds [Settings].
type CommandLine interface{ settings() *Settings }

// Main parses the command line, runs the command and exits. Every flag has an
// environment variable, REFOLD_ and its name unless its tag says otherwise, and
// a key of its name in the config file. The Run method of a command may take a
// context, which ends at SIGTERM or an interrupt, the *Settings and cli; its
// error is explained on standard error and decides the exit code, see [Failure].
// A second signal ends the program at once.
func (p Program) Main(cli CommandLine) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop)
	os.Exit(p.run(ctx, cli, os.Args[1:]))
}

func (p Program) run(ctx context.Context, cli CommandLine, args []string) int {
	err := p.command(ctx, cli, args)
	if err == nil {
		return ExitOK
	}
	failure := explain(err)
	failure.print(os.Stderr, p.Name)
	return failure.Code
}

func (p Program) command(ctx context.Context, cli CommandLine, args []string) error {
	parser, err := kong.New(cli, kong.Name(p.Name), kong.Description(p.Description), kong.DefaultEnvars("REFOLD"), kong.ShortUsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}), kong.Vars{"drain_delay": "2s", "version": p.Name + " " + Version() + "\n"},
		kong.ExplicitGroups([]kong.Group{{Key: "Settings", Title: "Settings of all programs:"}, {Key: "Connections", Title: "Connections:"}}))
	if err != nil {
		panic(err) // the struct is wrong
	}
	config, err := loadConfig(configPath(args), parser.Model)
	if err != nil {
		return Usage(err)
	}
	warnOfEnvironment(os.Environ(), parser.Model)
	if err := kong.Resolvers(config).Apply(parser); err != nil {
		return Usage(err)
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		return p.usage(err, config)
	}
	s := cli.settings()
	s.contracts, s.upcasters, s.projections, s.program = p.Contracts, p.Upcasters, p.Projections, p.Name
	if err := s.load(); err != nil {
		return Usage(err).Try(p.Name + " --help")
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	return parsed.Run(s, cli)
}

// usage says what is wrong with the command line, and where it came from.
func (p Program) usage(err error, config *configFile) error {
	next := p.Name + " --help"
	var parse *kong.ParseError
	if errors.As(err, &parse) && parse.Context.Selected() != nil {
		next = parse.Context.Selected().FullPath() + " --help"
	}
	failure := Usage(fmt.Errorf("reading the command line: %w", err)).Try(next)
	for name, place := range config.used {
		if strings.Contains(err.Error(), "--"+name) {
			failure.Err = fmt.Errorf("%s: %w", place, err)
		}
	}
	return failure
}

// warnOfEnvironment names variables that look like a misspelt setting. They are
// no error: Kubernetes makes variables of its own from the names of services.
func warnOfEnvironment(environ []string, app *kong.Application) {
	known := make(map[string]bool)
	for _, node := range nodes(app.Node) {
		for _, f := range node.Flags {
			for _, env := range f.Envs {
				known[env] = true
			}
		}
	}
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if known[name] || !strings.HasPrefix(name, "REFOLD_") && !strings.HasPrefix(name, "KAFKA_") {
			continue
		}
		for _, right := range slices.Sorted(maps.Keys(known)) {
			if editDistance(name, right) <= 2 {
				fmt.Fprintf(os.Stderr, "%s: warning: the variable %s is not known: did you mean %s?\n", app.Name, name, right)
				break
			}
		}
	}
}

// nodes returns a node and all below it.
func nodes(node *kong.Node) []*kong.Node {
	all := []*kong.Node{node}
	for _, child := range node.Children {
		all = append(all, nodes(child)...)
	}
	return all
}

// configPath finds the config file before anything is parsed: its values are
// needed for parsing.
func configPath(args []string) string {
	path := os.Getenv("REFOLD_CONFIG")
	for i, arg := range args {
		if arg == "--" {
			break
		}
		if value, ok := strings.CutPrefix(arg, "--config="); ok {
			path = value
		} else if arg == "--config" && i+1 < len(args) {
			path = args[i+1]
		}
	}
	return path
}
