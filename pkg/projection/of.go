package projection

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"

	"github.com/refoldhq/refold/pkg/avro"
)

// Option says of a definition in Go what a struct's fields do not.
type Option func(*goDefinition)

// Category names the category whose events feed the rows; several make them shared.
func Category(names ...string) Option {
	return func(d *goDefinition) { d.categories = append(d.categories, names...) }
}

// Key makes rows by fields of the events, in place of one for each stream. Several
// are the parts of a composite key.
func Key(fields ...string) Option {
	return func(d *goDefinition) { d.key = "[" + quoted(fields) + "]" }
}

// KeyFrom makes a row for each of the named fields of events, written Event.field.
func KeyFrom(refs ...string) Option {
	return func(d *goDefinition) { d.key = "{from: [" + quoted(refs) + "]}" }
}

// KeyEach makes a row for each item of a list that every event has.
func KeyEach(list string) Option {
	return func(d *goDefinition) { d.key = fmt.Sprintf("{each: %q}", list) }
}

// KeyBucket makes a row for each hour, day, month or year of $time or $recorded.
func KeyBucket(of, by string) Option {
	return func(d *goDefinition) { d.key = fmt.Sprintf("{bucket: %q, by: %q}", of, by) }
}

// KeyConstant makes one row.
func KeyConstant(key string) Option {
	return func(d *goDefinition) { d.key = fmt.Sprintf("{constant: %q}", key) }
}

// RemoveOn names the events that remove the row.
func RemoveOn(events ...string) Option {
	return func(d *goDefinition) { d.remove = append(d.remove, events...) }
}

// Indexed declares an index over several fields, by their names in rows. One over a
// single field is declared by the field's index tag: `index:""` or `index:"unique"`.
func Indexed(fields ...string) Option {
	return func(d *goDefinition) { d.indexes = append(d.indexes, "{fields: ["+quoted(fields)+"]}") }
}

// OnEvents names the events that a fold in Go sees; without it, it sees all.
func OnEvents(types ...string) Option {
	return func(d *goDefinition) { d.events = append(d.events, types...) }
}

func quoted(list []string) string {
	parts := make([]string, len(list))
	for i, x := range list {
		parts[i] = fmt.Sprintf("%q", x)
	}
	return strings.Join(parts, ", ")
}

// Of returns the definition of a projection whose rows are structs of the type T.
// Each exported field is a field of the row: under the name of its json tag, else
// under its own, which begins in lower case there. Its refold tag says what feeds
// it, with the operators of definitions in YAML, separated by semicolons, their
// events by bars:
//
//	Email  string    `refold:"from=UserCreated|UserEmailChanged.newEmail" index:"unique"`
//	Active bool      `refold:"from=UserCreated.isActive; set=UserActivated:true"`
//	Logins int64     `refold:"count=UserLoggedIn"`
//	Seen   time.Time `refold:"max=UserLoggedIn.$time"`
//
// A tag that begins with a brace is a field of a definition as it stands in YAML.
// A struct without a tag is an object of its fields.
//
// The definition is made into the text that says the same, which is what the
// catalogue keeps: programs without T show its rows, feed and rebuild them. A
// mistake is reported by [Compile], and so is a field whose type cannot hold what
// feeds it.
func Of[T any](name string, options ...Option) *Definition {
	d := newGoDefinition(name, "Of", reflect.TypeFor[T](), options)
	fields, err := taggedFields(d.typ, "  ", d)
	if err != nil {
		return d.broken(err)
	}
	out := d.finish("fields:\n" + fields)
	out.check = func(p *Plan) error { return d.fits(p) }
	return out
}

// Fold returns the definition of a projection whose rows are folded by a function,
// which changes the state by one event. What T's exported fields hold between two
// events is the row, and nothing else: the function is handed a struct made of the
// row each time, the zero T before the first event. It returns [Remove] to remove
// the row, and any other error to park the event's stream.
//
// The function must be pure: the same state and event make the same state,
// whenever and wherever it is called. It has no clock, does no IO, keeps nothing
// aside, and does not range over a map where the order shows. A change of what it
// does needs another revision: rows of the old one are then fed by the old function
// for as long as the program has that definition too, else they stand still, until
// a rebuild has made the rows of the new one. So a program that goes on gives both:
//
//	projections := []*projection.Definition{accounts2, accounts1} // the first of a name is the present one
//
// Rows are those of one stream, as no order of other streams' events is the same
// twice.
func Fold[T any](name string, revision int, fold func(state *T, e *Event) error, options ...Option) *Definition {
	d := newGoDefinition(name, "Fold", reflect.TypeFor[T](), options)
	shape, err := shapeOf(d.typ)
	if err != nil {
		return d.broken(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "fold: {revision: %d", revision)
	if len(d.events) > 0 {
		fmt.Fprintf(&b, ", events: [%s]", quoted(d.events))
	}
	b.WriteString("}\nfields:\n")
	for i := range shape.fields {
		f := &shape.fields[i]
		fmt.Fprintf(&b, "  %s: {type: %s}\n", f.name, f.value.typeName())
		d.indexOf(f.name, f.field)
	}
	out := d.finish(b.String())
	if out.fold != nil {
		out.fold.code = &foldCode{shape: shape, apply: func(state any, e *Event) error { return fold(state.(*T), e) }}
	}
	return out
}

// goDefinition is a definition while it is made of Go.
type goDefinition struct {
	name, where string
	typ         reflect.Type
	categories  []string
	key         string
	remove      []string
	indexes     []string
	events      []string
}

func newGoDefinition(name, function string, typ reflect.Type, options []Option) *goDefinition {
	d := &goDefinition{name: name, typ: typ, where: fmt.Sprintf("projection.%s[%s]", function, typ)}
	if _, file, line, ok := runtime.Caller(2); ok {
		d.where = fmt.Sprintf("%s:%d, %s", filepath.Base(file), line, d.where)
	}
	for _, option := range options {
		option(d)
	}
	return d
}

func (d *goDefinition) broken(err error) *Definition {
	return &Definition{Name: d.name, Categories: d.categories, File: d.where, err: fmt.Errorf("%s: %w", d.where, err)}
}

// finish makes the text and reads it.
func (d *goDefinition) finish(middle string) *Definition {
	var b strings.Builder
	fmt.Fprintf(&b, "projection: %s\ncategory: [%s]\n", d.name, quoted(d.categories))
	if d.key != "" {
		fmt.Fprintf(&b, "key: %s\n", d.key)
	}
	b.WriteString(middle)
	if len(d.remove) > 0 {
		fmt.Fprintf(&b, "remove: [%s]\n", quoted(d.remove))
	}
	if len(d.indexes) > 0 {
		fmt.Fprintf(&b, "indexes: [%s]\n", strings.Join(d.indexes, ", "))
	}
	list, err := ParseDefinitions(d.where, []byte(b.String()))
	if err != nil {
		return d.broken(err)
	}
	return list[0]
}

func (d *goDefinition) indexOf(name string, f reflect.StructField) {
	if index, ok := f.Tag.Lookup("index"); ok {
		d.indexes = append(d.indexes, fmt.Sprintf("{fields: [%s], unique: %t}", name, index == "unique"))
	}
}

// taggedFields makes the lines of a struct's fields.
func taggedFields(t reflect.Type, indent string, d *goDefinition) (string, error) {
	if t.Kind() != reflect.Struct {
		return "", fmt.Errorf("%s is no struct", t)
	}
	var b strings.Builder
	for _, f := range reflect.VisibleFields(t) {
		tag, tagged := f.Tag.Lookup("refold")
		if f.Anonymous || !f.IsExported() || tag == "-" {
			continue
		}
		name := rowName(f)
		inside := f.Type
		if inside.Kind() == reflect.Pointer {
			inside = inside.Elem()
		}
		switch {
		case !tagged && inside.Kind() == reflect.Struct && inside != timeType:
			fields, err := taggedFields(inside, indent+"    ", d)
			if err != nil {
				return "", fmt.Errorf("the field %s: %w", f.Name, err)
			}
			fmt.Fprintf(&b, "%s%s:\n%s  fields:\n%s", indent, name, indent, fields)
			continue
		case !tagged:
			return "", fmt.Errorf("the field %s has no refold tag: say what feeds it, or leave it out by `refold:\"-\"`", f.Name)
		case strings.HasPrefix(tag, "{"):
			fmt.Fprintf(&b, "%s%s: %s\n", indent, name, tag)
		default:
			operators, err := readTag(tag)
			if err != nil {
				return "", fmt.Errorf("the field %s: %w", f.Name, err)
			}
			fmt.Fprintf(&b, "%s%s: {%s}\n", indent, name, operators)
		}
		if len(indent) == 2 {
			d.indexOf(name, f)
		}
	}
	return b.String(), nil
}

// readTag makes YAML of a tag: op=A|B.c; set=A:true; key.
func readTag(tag string) (string, error) {
	var parts []string
	for part := range strings.SplitSeq(tag, ";") {
		op, value, has := strings.Cut(strings.TrimSpace(part), "=")
		op, value = strings.TrimSpace(op), strings.TrimSpace(value)
		switch {
		case op == "key" && !has:
			parts = append(parts, "key: true")
		case op == "initial":
			parts = append(parts, "initial: "+value)
		case op == "set":
			var sets []string
			for one := range strings.SplitSeq(value, "|") {
				event, constant, ok := strings.Cut(one, ":")
				if !ok {
					return "", fmt.Errorf("set=%s: want set=Event:constant", one)
				}
				sets = append(sets, fmt.Sprintf("%q: %s", strings.TrimSpace(event), strings.TrimSpace(constant)))
			}
			parts = append(parts, "set: {"+strings.Join(sets, ", ")+"}")
		case op == "" || !has:
			return "", fmt.Errorf("the tag %q: want operators such as from=Event.field, separated by semicolons", tag)
		default:
			var refs []string
			for r := range strings.SplitSeq(value, "|") {
				refs = append(refs, strings.TrimSpace(r))
			}
			parts = append(parts, op+": ["+quoted(refs)+"]")
		}
	}
	return strings.Join(parts, ", "), nil
}

// fits checks that the struct can hold what the plan makes.
func (d *goDefinition) fits(p *Plan) error {
	if err := fitFields(d.typ, p.fields); err != nil {
		return fmt.Errorf("%s: %w", d.where, err)
	}
	return nil
}

func fitFields(t reflect.Type, fields []Field) error {
	var failures []error
	for _, f := range reflect.VisibleFields(t) {
		i := slices.IndexFunc(fields, func(x Field) bool { return x.Name == rowName(f) })
		if f.Anonymous || !f.IsExported() || f.Tag.Get("refold") == "-" || i < 0 {
			continue
		}
		inside := f.Type
		if inside.Kind() == reflect.Pointer {
			inside = inside.Elem()
		}
		if fields[i].Shape == ShapeObject && inside.Kind() == reflect.Struct {
			failures = append(failures, fitFields(inside, fields[i].Fields))
		} else if want := fitting(inside, &fields[i]); want != "" {
			failures = append(failures, fmt.Errorf("the field %s is a %s: what feeds it is of the type %s, which needs %s", f.Name, f.Type,
				cmp.Or(map[bool]string{true: fields[i].Kind.String()}[fields[i].Shape == ShapeValue], fields[i].Shape.String()), want))
		}
	}
	return errors.Join(failures...)
}

// fitting returns what Go type a field needs, empty if t is one that holds it.
func fitting(t reflect.Type, f *Field) string {
	if t.Kind() == reflect.Interface {
		return ""
	}
	need := func(ok bool, want string) string {
		if ok {
			return ""
		}
		return want
	}
	switch f.Shape {
	case ShapeList, ShapeSet, ShapeChildren:
		return need(t.Kind() == reflect.Slice, "a slice")
	case ShapeMap:
		return need(t.Kind() == reflect.Map, "a map")
	case ShapeDocument, ShapeObject:
		return need(t.Kind() == reflect.Map || t.Kind() == reflect.Struct || t.Kind() == reflect.Slice, "a struct or a map")
	}
	switch f.Kind {
	case avro.Bool:
		return need(t.Kind() == reflect.Bool, "a bool")
	case avro.Long:
		return need(t.Kind() == reflect.Int64 || t.Kind() == reflect.Int, "an int64")
	case avro.Double:
		return need(t.Kind() == reflect.Float64, "a float64")
	case avro.Bytes:
		return need(t == bytesType, "a []byte")
	case avro.Timestamp:
		return need(t == timeType || t == instant || t.Kind() == reflect.String, "a time.Time")
	case avro.UUID:
		return need(t == idType || t.Kind() == reflect.String, "a string")
	default:
		return need(t.Kind() == reflect.String, "a string")
	}
}
