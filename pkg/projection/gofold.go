package projection

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
)

// Remove is what a fold in Go returns to remove the row.
var Remove = errors.New("the row is removed") //nolint:staticcheck // a fold says what is to be done, not what went wrong

// ErrNoFold says that a version is folded by a function in Go which this program
// does not have in that revision: it cannot feed it, though it can show its rows.
var ErrNoFold = errors.New("the fold is not in this program")

// foldDef is a fold in Go as a definition has it: the revision, which is all that
// the catalogue keeps, and the function where the program has it.
type foldDef struct {
	revision int
	events   []string // types; empty for all
	at       place
	code     *foldCode
}

// foldCode is the Go side of a fold.
type foldCode struct {
	shape *goShape
	apply func(state any, e *Event) error
}

// goFold is a fold in Go as part of a plan.
type goFold struct {
	revision int
	code     *foldCode // nil: not in this program
	types    map[string]*avro.EventType
}

// Event is an event as a fold in Go sees it.
type Event struct {
	event.Event
	writer *avro.Schema
	types  *goTypes
	typ    *avro.EventType
}

// Decode reads the event's data, whatever version it was written in, into v, a
// pointer to a struct whose fields are named by `avro` tags. A fold returns the
// error, so that the stream is parked.
func (e *Event) Decode(v any) error {
	_, body, err := avro.SplitFrame(e.Value)
	if err != nil {
		return err
	}
	typ, err := e.types.of(e.typ, v)
	if err != nil {
		return err
	}
	return typ.Decode(e.writer, body, v)
}

// fold reads the fold of a definition.
func (r *reader) fold(n ast.Node) (*foldDef, error) {
	d := &foldDef{at: placeOf(n)}
	err := r.members(n, "fold", func(key string, k, v ast.Node) (err error) {
		switch key {
		case "revision":
			l, err := r.literal(v)
			if err != nil {
				return err
			}
			revision, ok := l.value.(int64)
			if !ok || revision < 1 || revision > 1<<30 {
				return r.fail(v, "a revision is a whole number from 1")
			}
			d.revision = int(revision)
		case "events":
			d.events, err = r.texts(v)
		default:
			err = r.fail(k, "unknown member %q of a fold%s", key, suggest(key, []string{"revision", "events"}))
		}
		return err
	})
	if err == nil && d.revision == 0 {
		err = r.fail(n, "a fold has a revision")
	}
	return d, err
}

// typeDef is the type of a field, where no operator tells it.
type typeDef struct {
	typ valueType
	at  place
}

var typeNames = map[string]valueType{
	"boolean": {kind: avro.Bool}, "long": {kind: avro.Long}, "double": {kind: avro.Double}, "string": {kind: avro.String}, "uuid": {kind: avro.UUID},
	"bytes": {kind: avro.Bytes}, "timestamp": {kind: avro.Timestamp}, "document": {kind: avro.JSON, shape: ShapeDocument}, "list": {kind: avro.JSON, shape: ShapeList},
}

func (r *reader) typ(n ast.Node) (*typeDef, error) {
	name, err := r.text(n)
	if err != nil {
		return nil, err
	}
	name, items, _ := strings.Cut(name, " of ")
	t, ok := typeNames[name]
	if item, known := typeNames[items]; items != "" && (!known || item.shape != ShapeValue || t.shape != ShapeList) {
		ok = false
	} else if items != "" {
		t.items = item.kind
	}
	if !ok {
		return nil, r.fail(n, "there is no type %q: want one of %s, or list of one%s", name, strings.Join(sortedNames(typeNames), ", "), suggest(name, sortedNames(typeNames)))
	}
	return &typeDef{t, placeOf(n)}, nil
}

func (t valueType) typeName() string {
	for name, known := range typeNames {
		if known == (valueType{kind: t.kind, shape: t.shape}) {
			if t.items != avro.Null {
				return name + " of " + valueType{kind: t.items}.typeName()
			}
			return name
		}
	}
	return t.String()
}

// Bind gives a definition that was read from its text the functions that the
// program has for it: those of a deployed definition of the same name and
// revision.
func (d *Definition) Bind(deployed []*Definition) {
	if d.fold == nil || d.fold.code != nil {
		return
	}
	for _, other := range deployed {
		if other.Name == d.Name && other.fold != nil && other.fold.revision == d.fold.revision && other.fold.code != nil {
			d.fold.code = other.fold.code
		}
	}
}

// Revision returns the revision of a fold in Go, 0 for a definition of operators.
func (d *Definition) Revision() int {
	if d.fold == nil {
		return 0
	}
	return d.fold.revision
}

// Foldable returns nil if this program can fold events by the plan, else an error
// that wraps [ErrNoFold].
func (p *Plan) Foldable() error {
	if p.fold != nil && p.fold.code == nil {
		return fmt.Errorf("%w: %s is folded by revision %d", ErrNoFold, p.name, p.fold.revision)
	}
	return nil
}

// collectTyped makes the columns of fields that have types.
func (c *compiler) collectTyped() error {
	if c.plan.shared {
		return c.d.errorf(c.d.fold.at, "a fold in Go makes rows of one stream, of one category: rows that several streams feed need operators, which do not depend on the order")
	}
	if len(c.d.remove) > 0 {
		return c.d.errorf(c.d.remove[0].at, "a fold in Go removes rows itself: it returns projection.Remove")
	}
	s := scope{columns: &c.plan.columns}
	for i := range c.d.fields {
		f := &c.d.fields[i]
		if f.typ == nil || len(f.ops) > 0 || f.hasInitial || f.key || f.fields != nil || f.children != nil {
			return c.d.errorf(f.at, "the field %s is made by the fold in Go: it has a type and nothing else", f.name)
		}
		k := newColumn(f, s)
		c.plan.columns[k].typ = f.typ.typ
		t := f.typ.typ
		c.plan.fields = append(c.plan.fields, Field{Name: f.name, Kind: t.kind, Shape: t.shape, Items: t.items, column: k})
	}
	return nil
}

// bindFold settles which events the fold sees.
func (c *compiler) bindFold() error {
	d := c.d.fold
	c.plan.fold = &goFold{revision: d.revision, code: d.code, types: make(map[string]*avro.EventType)}
	types := c.types
	if len(d.events) > 0 {
		types = nil
		for _, name := range d.events {
			found, err := c.eventTypes(ref{event: name, at: d.at})
			if err != nil {
				return err
			}
			types = append(types, found...)
		}
	}
	for _, t := range types {
		c.program(t).always = true
		c.plan.fold.types[t.Name] = t
		c.keyed = append(c.keyed, t.Category+"/"+t.Name)
	}
	slices.Sort(c.keyed)
	return nil
}

// beginGo finds the row of an event for a fold in Go, whether its function is here
// or not.
func (f *Folder) beginGo(writer *avro.Schema) (Outcome, error) {
	_, body, err := avro.SplitFrame(f.event.Value)
	if err == nil {
		err = writer.Scan(body)
	}
	if err != nil {
		return Applies, poison("%v", err)
	}
	if err := f.checkTexts(); err != nil {
		return Applies, err
	}
	f.writer = writer
	return Applies, f.makeKeys()
}

// applyGo calls the function. It is given what the row holds, and not what it left
// behind itself, so that a row that was stored and one that was not are the same
// to it.
func (f *Folder) applyGo(row *Row) (err error) {
	fold := f.plan.fold
	if fold.code == nil {
		return poison("%v", f.plan.Foldable())
	}
	state := fold.code.shape.new()
	if row.exists {
		if err := fold.code.shape.fill(state, row.cells); err != nil {
			return poison("the row: %v", err)
		}
	}
	e := Event{Event: *f.event, writer: f.writer, types: &fold.code.shape.types, typ: f.program.typ}
	switch err := call(fold.code.apply, state.Addr().Interface(), &e); {
	case errors.Is(err, Remove):
		row.remove()
		return nil
	case err != nil:
		return poison("%v", err)
	}
	if f.sums == nil {
		f.sums = make([]cell, len(f.plan.columns))
	}
	if err := fold.code.shape.read(state, f.sums, &f.jsonb); err != nil {
		return poison("the fold made what no row holds: %v", err)
	}
	for i := range f.sums {
		if col := &f.plan.columns[i]; col.maxText > 0 && len(f.sums[i].b) > col.maxText {
			return poison("the field %s is indexed and would have %d bytes: at most %d", col.name, len(f.sums[i].b), col.maxText)
		}
	}
	if !row.exists {
		row.create()
	}
	for i := range f.sums {
		row.cells[i].assign(&f.sums[i])
	}
	return nil
}

// call calls the function; a panic is an error like any other, as it would come
// again and again.
func call(apply func(any, *Event) error, state any, e *Event) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the fold panicked: %v", p)
		}
	}()
	return apply(state, e)
}
