package service

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// configFile is a YAML file of settings. Its keys are the names of flags, at the
// top or below a command. One file may serve all programs: what concerns one of
// them stands below its name, and the others leave it alone.
//
//	log-level: debug
//	kafka-bootstrap-servers: [kafka-0:9092, kafka-1:9092]
//	writer:
//	  serve: {addr: ":8080", admin-addr: ":9080"}
//	projector:
//	  run: {admin-addr: ":9081"}
//
// What is nearer to the command wins.
type configFile struct {
	path    string
	program string
	values  map[string]setting // by the path of commands and the flag: "serve admin-addr"
	used    map[string]string  // flags that were taken from the file, with their place
}

type setting struct{ text, place string }

// programs have sections of their own.
var programs = [...]string{"writer", "projector", "rebuild"}

// loadConfig reads a file; without a path it returns one that holds nothing.
// Every key has to be known, so that a misspelt one is no silent default.
func loadConfig(path string, app *kong.Application) (*configFile, error) {
	c := &configFile{path: path, program: app.Name, values: make(map[string]setting), used: make(map[string]string)}
	if path == "" {
		return c, nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the config file: %w", err)
	}
	file, err := parser.ParseBytes(raw, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %s", path, yaml.FormatError(err, false, true))
	}
	for _, doc := range file.Docs {
		if err := c.section(doc.Body, app.Node, ""); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// section reads the settings for a program or a command of it.
func (c *configFile) section(body ast.Node, node *kong.Node, command string) error {
	var members []*ast.MappingValueNode
	switch m := body.(type) {
	case nil, *ast.NullNode, *ast.CommentGroupNode:
		return nil
	case *ast.MappingNode:
		members = m.Values
	case *ast.MappingValueNode:
		members = []*ast.MappingValueNode{m}
	default:
		return fmt.Errorf("%s: want settings as key: value", c.place(body))
	}
	flags, commands := c.known(node)
	for _, m := range members {
		key := m.Key.GetToken().Value
		at := strings.TrimSpace(command + " " + key)
		var err error
		switch {
		case flags[key]:
			err = c.set(at, m.Value)
		case commands[key] != nil:
			err = c.section(m.Value, commands[key], at)
		case command == "" && key == c.program:
			err = c.section(m.Value, node, "")
		case command == "" && slices.Contains(programs[:], key): // somebody else's
		default:
			err = c.unknown(m.Key, key, flags, commands)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// known returns the flags below a node, those of its commands too, and its
// commands.
func (c *configFile) known(node *kong.Node) (flags map[string]bool, commands map[string]*kong.Node) {
	flags, commands = make(map[string]bool), make(map[string]*kong.Node)
	for _, n := range nodes(node) {
		for _, f := range n.Flags {
			if f.Name != "help" && f.Name != "version" && f.Name != "config" {
				flags[f.Name] = true
			}
		}
	}
	for _, child := range node.Children {
		commands[child.Name] = child
	}
	return flags, commands
}

func (c *configFile) set(at string, value ast.Node) error {
	text, err := c.text(value)
	if err != nil {
		return err
	}
	if before, twice := c.values[at]; twice {
		return fmt.Errorf("%s: %s is set already, at %s", c.place(value), at, before.place)
	}
	c.values[at] = setting{text, c.place(value)}
	return nil
}

// text returns a value as a flag would have it: lists are joined by commas.
func (c *configFile) text(value ast.Node) (string, error) {
	switch v := value.(type) {
	case *ast.SequenceNode:
		parts := make([]string, len(v.Values))
		for i, item := range v.Values {
			part, err := c.text(item)
			if err != nil {
				return "", err
			}
			parts[i] = part
		}
		return strings.Join(parts, ","), nil
	case *ast.NullNode:
		return "", nil
	case *ast.LiteralNode:
		return v.Value.Value, nil
	case ast.ScalarNode:
		return v.GetToken().Value, nil
	default:
		return "", fmt.Errorf("%s: want a value or a list of values", c.place(value))
	}
}

func (c *configFile) unknown(at ast.Node, key string, flags map[string]bool, commands map[string]*kong.Node) error {
	best, distance := "", 1+len(key)/2
	try := func(name string) {
		if d := editDistance(key, name); d < distance || d == distance && name < best {
			best, distance = name, d
		}
	}
	for name := range flags {
		try(name)
	}
	for name := range commands {
		try(name)
	}
	if best == "" {
		return fmt.Errorf("%s: unknown setting %q: see %s --help", c.place(at), key, c.program)
	}
	return fmt.Errorf("%s: unknown setting %q: did you mean %q?", c.place(at), key, best)
}

func (c *configFile) place(n ast.Node) string {
	position := n.GetToken().Position
	return fmt.Sprintf("%s:%d:%d", c.path, position.Line, position.Column)
}

// Validate is part of kong's interface; loadConfig has checked everything.
func (c *configFile) Validate(*kong.Application) error { return nil }

// Resolve returns the value of a flag that neither the command line nor the
// environment gives.
func (c *configFile) Resolve(parsed *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	for _, env := range flag.Envs {
		if _, ok := os.LookupEnv(env); ok {
			return nil, nil
		}
	}
	var commands []string
	for _, step := range parsed.Path {
		if step.Command != nil {
			commands = append(commands, step.Command.Name)
		}
	}
	for n := len(commands); n >= 0; n-- {
		if s, ok := c.values[strings.Join(append(slices.Clone(commands[:n]), flag.Name), " ")]; ok {
			c.used[flag.Name] = s.place
			return s.text, nil
		}
	}
	return nil, nil
}

// editDistance is Levenshtein's: insertions, deletions and replacements.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
