package refoldtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/projection"
)

// Suite runs the tests that stand in YAML beside definitions. Each document of a
// file projections/*.test.yaml is one test:
//
//	test: a changed address is not verified
//	given:
//	  - {stream: "42", type: UserCreated, data: {id: "42", email: a@example.com, isActive: false}}
//	  - {stream: "42", type: UserEmailChanged, data: {newEmail: b@example.com}, time: 2026-03-01T12:00:00Z}
//	expect:
//	  rm_users:                  # exactly these rows; of each, the fields that are named
//	    "42": {email: b@example.com, emailVerified: false}
//	    "43": null               # no such row
//	---
//	test: a locked account does not log in
//	given:
//	  - {type: UserCreated, data: {id: "1", email: a@example.com, isActive: true}}
//	  - {type: UserLocked}
//	when: {command: logIn, data: {succeeded: true}}
//	error: account-locked        # or "then", a list of events
//
// An event with a "schemaVersion" is written with that version of its schema, so
// that a test shows what becomes of old events.
//
// Commands need their aggregates, which are Go: a program that has them compiled
// in hands them over.
type Suite struct {
	kit   *kit
	plans map[string]*projection.Plan
	types map[string]aggregate.Type
}

// NewSuite reads contracts and definitions of a folder.
func NewSuite(fsys fs.FS, upcasters []avro.Upcaster, types ...aggregate.Type) (*Suite, error) {
	k, err := newKit(fsys, upcasters)
	if err != nil {
		return nil, err
	}
	s := &Suite{kit: k, types: make(map[string]aggregate.Type)}
	if s.plans, err = k.compile(); err != nil {
		return nil, err
	}
	for _, t := range types {
		if _, ok := k.contracts.Category(t.Category()); ok { // else it belongs to other contracts
			s.types[t.Category()] = t
		}
	}
	return s, nil
}

// Outcome is what became of one test.
type Outcome struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Name string `json:"name"`
	// Problem says what is wrong, with a diff; empty when the test has passed.
	Problem string `json:"problem,omitempty"`
}

// Run runs all tests of the folder. The error is that of a file that cannot be
// read; a test that fails is an outcome.
func (s *Suite) Run() (outcomes []Outcome, err error) {
	files, err := fs.Glob(s.kit.fsys, "projections/*.test.yaml")
	if err != nil {
		return nil, err
	}
	var failures []error
	for _, file := range files {
		raw, err := fs.ReadFile(s.kit.fsys, file)
		if err == nil {
			outcomes, err = s.runFile(outcomes, file, raw)
		}
		failures = append(failures, err)
	}
	return outcomes, errors.Join(failures...)
}

func (s *Suite) runFile(outcomes []Outcome, file string, raw []byte) ([]Outcome, error) {
	parsed, err := parser.ParseBytes(raw, 0)
	if err != nil {
		return outcomes, fmt.Errorf("%s: %s", file, yaml.FormatError(err, false, true))
	}
	for _, doc := range parsed.Docs {
		if doc.Body == nil {
			continue
		}
		test, err := readTest(doc)
		if err != nil {
			return outcomes, fmt.Errorf("%s: %s", file, yaml.FormatError(err, false, true))
		}
		outcomes = append(outcomes, Outcome{File: file, Line: firstLine(doc.Body), Name: test.Test, Problem: s.run(test)})
	}
	return outcomes, nil
}

// firstLine returns where a mapping begins, which its token, a colon, only
// stands near to.
func firstLine(n ast.Node) int {
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 {
		return m.Values[0].Key.GetToken().Position.Line
	}
	return n.GetToken().Position.Line
}

// test is one document.
type test struct {
	Test   string
	Given  []testEvent
	Expect map[string]map[string]map[string]any
	When   *testCommand
	Then   []testEvent
	Error  string
}

type testEvent struct {
	Category, Stream, Type string
	Data                   map[string]any
	SchemaVersion          int `yaml:"schemaVersion"`
	Time                   string
	Actor                  string
	CorrelationID          string `yaml:"correlationId"`
	CausationID            string `yaml:"causationId"`
}

type testCommand struct {
	Category, Stream, Command string
	Data                      map[string]any
}

func readTest(doc *ast.DocumentNode) (t test, err error) {
	err = yaml.NodeToValue(doc.Body, &t, yaml.Strict())
	return t, err
}

// run returns what is wrong, or "".
func (s *Suite) run(t test) string {
	given, err := s.events(t.Given)
	if err != nil {
		return err.Error()
	}
	switch {
	case t.Test == "":
		return `the test has no name: add "test: ..."`
	case t.When != nil && t.Expect != nil:
		return `"when" and "expect" are two tests`
	case t.When == nil && (t.Then != nil || t.Error != ""):
		return `"then" and "error" say what a command does, and there is no "when"`
	case t.Then != nil && t.Error != "":
		return `"then" and "error" exclude each other: a command that fails raises nothing`
	case t.When != nil && t.Then == nil && t.Error == "":
		return `"when" needs "then" or "error"; "then: []" expects that nothing is raised`
	case t.When != nil:
		return s.runCommand(t, given)
	case t.Expect == nil:
		return `there is neither "when" nor "expect"`
	case len(t.Expect) == 0:
		return `"expect" names no projection, so it checks nothing; "expect: {NAME: {}}" expects that NAME has no rows`
	default:
		return s.runRows(t, given)
	}
}

func (s *Suite) events(list []testEvent) ([]event.Event, error) {
	events := make([]Event, len(list))
	for i, e := range list {
		events[i] = Event{Category: e.Category, Stream: e.Stream, Type: e.Type, SchemaVersion: e.SchemaVersion, Actor: e.Actor, CorrelationID: e.CorrelationID, CausationID: e.CausationID}
		if e.Data != nil {
			events[i].Data = e.Data
		}
		if e.Time != "" {
			at, err := event.ParseTime(e.Time)
			if err != nil {
				return nil, fmt.Errorf("event %d: %w", i+1, err)
			}
			events[i].Time = at.Std().In(time.UTC)
		}
	}
	return s.kit.given(events)
}

func (s *Suite) runRows(t test, given []event.Event) string {
	var problems []string
	for _, name := range slices.Sorted(maps.Keys(t.Expect)) {
		plan := s.plans[name]
		if plan == nil {
			problems = append(problems, fmt.Sprintf("there is no projection %s; there are %q", name, slices.Sorted(maps.Keys(s.plans))))
			continue
		}
		rows, err := s.kit.fold(plan, given)
		if err != nil {
			problems = append(problems, name+": "+err.Error())
			continue
		}
		want := maps.Clone(t.Expect[name])
		maps.DeleteFunc(want, func(_ string, fields map[string]any) bool { return fields == nil }) // no row
		if keys, got := slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(rows)); !slices.Equal(keys, got) {
			problems = append(problems, fmt.Sprintf("%s has other rows than expected:\n%s", name, diff(keys, got)))
		}
		for _, key := range slices.Sorted(maps.Keys(want)) {
			fields, err := json.Marshal(want[key])
			if err != nil {
				return err.Error()
			}
			if _, there := rows[key]; there {
				if problem := compareRow(name, key, rows, fields); problem != "" {
					problems = append(problems, problem)
				}
			}
		}
	}
	return strings.Join(problems, "\n")
}

func (s *Suite) runCommand(t test, given []event.Event) string {
	category, stream, err := s.target(t.When, given)
	if err != nil {
		return err.Error()
	}
	typ := s.types[category]
	if typ == nil {
		return fmt.Sprintf("the category %q has no aggregate in this program", category)
	}
	body, err := json.Marshal(t.When.Data)
	if err != nil {
		return err.Error()
	}
	if t.When.Data == nil {
		body = []byte("{}")
	}
	var own []event.Event
	for _, e := range given {
		if e.Category == category && e.Stream == stream {
			own = append(own, e)
		}
	}
	result, err := typ.Simulate(s.kit.contracts, stream, own, t.When.Command, body)
	if err != nil || t.Error != "" {
		return compareErrors(t.Error, err)
	}
	want, err := s.events(inCategoryOf(t.Then, category, stream))
	if err != nil {
		return "then: " + err.Error()
	}
	var left, right []string
	for _, e := range want {
		left = append(left, s.kit.show(category, e.Type, e.Value))
	}
	for _, e := range result.Raised {
		right = append(right, s.kit.show(category, e.Type, e.Value))
	}
	if !slices.Equal(left, right) {
		return "other events than expected:\n" + diff(left, right)
	}
	return ""
}

// target finds out whose command it is: that of the events given, or of the one
// aggregate that there is.
func (s *Suite) target(c *testCommand, given []event.Event) (category, stream string, err error) {
	category, stream = c.Category, c.Stream
	if category == "" && len(given) > 0 {
		category = given[len(given)-1].Category
	}
	if category == "" && len(s.types) == 1 {
		for category = range s.types {
		}
	}
	if category == "" {
		return "", "", errors.New(`"when" needs a category`)
	}
	if stream == "" && len(given) > 0 {
		stream = given[len(given)-1].Stream
	}
	if stream == "" {
		stream = "1"
	}
	return category, stream, nil
}

func inCategoryOf(list []testEvent, category, stream string) []testEvent {
	out := slices.Clone(list)
	for i := range out {
		out[i].Category, out[i].Stream = category, stream
	}
	return out
}

func compareErrors(want string, err error) string {
	switch got := codeOf(err); {
	case err == nil:
		return fmt.Sprintf("expected the error %s, and the command succeeded", want)
	case want == "" || got == "":
		return fmt.Sprintf("the command failed: %v", err)
	case got != want:
		return fmt.Sprintf("expected the error %s, got %s: %v", want, got, err)
	default:
		return ""
	}
}

// codeOf returns an error's code, as HTTP clients get it.
func codeOf(err error) string {
	var broken *aggregate.Broken
	var missing *aggregate.Missing
	var exists *aggregate.Exists
	switch {
	case errors.As(err, &broken):
		return broken.Code
	case errors.As(err, &missing):
		return "missing-aggregate"
	case errors.As(err, &exists):
		return "aggregate-exists"
	default:
		return ""
	}
}
