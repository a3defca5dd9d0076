// Package projectiontest draws event types, definitions of projections over them,
// and events, for tests that compare what different ways of folding make of them.
package projectiontest

import (
	"fmt"
	"slices"
	"strings"
	"testing/fstest"

	"pgregory.net/rapid"
)

// Generator draws one case: everything but the events is drawn by [Generate].
type Generator struct {
	*rapid.T
	// Types are the event types of the category Thing, FS their contracts.
	Types []string
	FS    fstest.MapFS
	// Fields tells which fields an event type has; those of records by their path.
	Fields map[string]map[string]bool
	null   map[string]bool // nullable fields, as Type.field
}

// Generate draws event types.
func Generate(t *rapid.T) *Generator {
	g := &Generator{T: t, FS: fstest.MapFS{}, null: map[string]bool{}, Fields: map[string]map[string]bool{}}
	for _, typ := range []string{"Alpha", "Beta", "Gamma"}[:rapid.IntRange(1, 3).Draw(t, "types")] {
		g.Types = append(g.Types, typ)
		g.schema(typ)
	}
	return g
}

// FieldTypes returns the type of each field that an event may have, by its path.
func FieldTypes() map[string]string {
	types := map[string]string{"ls[]": "string", "ll[]": "long", "r.s": "string", "r.l": "long"}
	for name, p := range pool {
		types[name] = p.typ
	}
	return types
}

// schema draws an event type: some of the fields, some nullable, perhaps a record.
func (g *Generator) schema(typ string) {
	var fields []string
	have := map[string]bool{}
	for _, name := range poolNames {
		if rapid.IntRange(0, 3).Draw(g.T, "has "+name) == 0 && name != "i" {
			continue
		}
		have[name] = true
		avroType := strings.ReplaceAll(pool[name].avro, "%s", typ)
		if rapid.Bool().Draw(g.T, "nullable "+name) {
			avroType = `["null", ` + avroType + `]`
			g.null[typ+"."+name] = true
		}
		fields = append(fields, fmt.Sprintf(`{"name": %q, "type": %s}`, name, avroType))
	}
	if rapid.Bool().Draw(g.T, "record") {
		have["r"], have["r.s"], have["r.l"] = true, true, true
		g.null[typ+".r"] = true
		fields = append(fields, `{"name": "r", "type": ["null", {"type": "record", "name": "R_`+typ+`", "fields": [{"name": "s", "type": "string"}, {"name": "l", "type": ["null", "long"]}]}]}`)
	}
	g.Fields[typ] = have
	g.FS["events/Thing/"+typ+".v1.avsc"] = &fstest.MapFile{Data: []byte(`{"type": "record", "name": "` + typ + `", "fields": [` + strings.Join(fields, ", ") + `]}`)}
}

// having are the event types that have all of the fields.
func (g *Generator) having(names ...string) (types []string) {
	for _, typ := range g.Types {
		if !slices.ContainsFunc(names, func(n string) bool { return n != "" && !strings.HasPrefix(n, "$") && !g.Fields[typ][n] }) {
			types = append(types, typ)
		}
	}
	return types
}

// refs draws references to a field in some of the event types that have it.
func (g *Generator) refs(name string, needs ...string) string {
	types := g.having(append(needs, strings.Split(name, "\x00")[0])...)
	if len(types) == 0 {
		return ""
	}
	var list []string
	for i, typ := range types {
		if i > 0 && rapid.Bool().Draw(g.T, "leave out") {
			continue
		}
		when := ""
		if rapid.IntRange(0, 3).Draw(g.T, "condition") == 0 {
			for _, c := range []struct{ text, field string }{{"i > 3", "i"}, {"s != 'a'", "s"}, {"event.version > 2", "i"}, {"size(ls) > 1", "ls"}} {
				if g.Fields[typ][c.field] && rapid.Bool().Draw(g.T, "which") {
					when = c.text
				}
			}
		}
		ref := typ
		if name != "" {
			ref += "." + name
		}
		if when != "" {
			ref = fmt.Sprintf("{event: %s, when: %q}", ref, when)
		}
		list = append(list, ref)
	}
	return "[" + strings.Join(list, ", ") + "]"
}

func (g *Generator) pick(names ...string) string { return rapid.SampledFrom(names).Draw(g.T, "field") }

// field draws the operators of one field; empty if the schema has nothing for it.
func (g *Generator) field(shared, child bool) string {
	scalars := []string{"s", "e", "u", "i", "l", "t", "dt", "tod", "dec"}
	of := func(op, name string, needs ...string) string {
		if refs := g.refs(name, needs...); refs != "" {
			return op + ": " + refs
		}
		return ""
	}
	kinds := []string{"from", "from", "first", "count", "add", "min", "include", "put", "special", "computed", "transform"}
	if !child {
		kinds = append(kinds, "distinct", "object")
		if !shared {
			kinds = append(kinds, "children", "children")
		}
	}
	switch g.pick(kinds...) {
	case "from":
		ops := of("from", g.pick(append(append(scalars, "b", "ls", "ll", "m", "d"), "r", "r.s", "r.l")...))
		if ops != "" && rapid.IntRange(0, 3).Draw(g.T, "clear") == 0 {
			ops += ", clear: " + g.pick(g.Types...)
		}
		return ops
	case "first":
		return of("first", g.pick(scalars...))
	case "count":
		ops := of("count", "")
		if rapid.Bool().Draw(g.T, "decrement") {
			ops += ", decrement: " + g.pick(g.Types...)
		} else if !shared && rapid.Bool().Draw(g.T, "initial") {
			ops += ", initial: 7"
		}
		return ops
	case "add":
		names := []string{"i", "l", "dec"}
		if !shared {
			names = append(names, "d")
		}
		name := g.pick(names...)
		ops := of("add", name)
		if sub := of("subtract", name); ops != "" && rapid.Bool().Draw(g.T, "subtract") {
			ops += ", " + sub
		}
		return ops
	case "min":
		return of(g.pick("min", "max"), g.pick(append(scalars, "d")...))
	case "distinct":
		return of("distinct", g.pick("s", "l", "ls", "ll", "e", "t", "dec"))
	case "include":
		name := g.pick("s", "l", "ls", "ll", "i", "u")
		ops := of("include", name)
		if drop := of("exclude", name); ops != "" && rapid.Bool().Draw(g.T, "exclude") {
			ops += ", " + drop
		}
		return ops
	case "put":
		key, value := g.pick("s", "i", "e"), g.pick(append(scalars, "b", "d", "ls", "m")...)
		types := g.having(key, value)
		if len(types) == 0 {
			return ""
		}
		ops := fmt.Sprintf("put: [{event: %s, key: %s, value: %s}]", types[0], key, value)
		if other := g.having(key); rapid.Bool().Draw(g.T, "delete") {
			ops += fmt.Sprintf(", delete: [{event: %s, key: %s}]", other[len(other)-1], key)
		}
		return ops
	case "special":
		return of(g.pick("from", "max", "min"), g.pick("$time", "$version", "$type", "$stream", "$id"))
	case "computed":
		if g.Fields[g.Types[0]]["i"] && rapid.Bool().Draw(g.T, "number") {
			return fmt.Sprintf("%s: [{event: %s, value: \"i * 2\"}]", g.pick("from", "add", "max"), g.Types[0])
		}
		return fmt.Sprintf("from: [{event: %s, value: \"event.type + '/x'\"}]", g.Types[0])
	case "transform":
		name, transform := "s", g.pick("lower", "upper", "trim")
		if rapid.Bool().Draw(g.T, "time") {
			name, transform = "t", g.pick("hour", "day", "month", "year")
		}
		if types := g.having(name); len(types) > 0 {
			return fmt.Sprintf("from: [{event: %s.%s, transform: %s}]", types[0], name, transform)
		}
		return ""
	case "object":
		return g.inside("fields: {", shared, true)
	default:
		key := g.pick("s", "i", "u")
		if len(g.having(key)) < len(g.Types) {
			return ""
		}
		inside := g.inside("fields: {", shared, true)
		if inside == "" {
			return ""
		}
		if rapid.Bool().Draw(g.T, "remove child") {
			inside += ", remove: " + g.pick(g.Types...)
		}
		return "children: {key: " + key + ", " + inside + "}"
	}
}

func (g *Generator) inside(open string, shared, child bool) string {
	var fields []string
	for i := range rapid.IntRange(1, 2).Draw(g.T, "inside") {
		if f := g.field(shared, child); f != "" {
			fields = append(fields, fmt.Sprintf("in%d: {%s}", i, f))
		}
	}
	if len(fields) == 0 {
		return ""
	}
	return open + strings.Join(fields, ", ") + "}"
}

// Definition draws a definition of the projection "generated", of rows that many
// streams share or of one stream each.
func (g *Generator) Definition(shared bool) string {
	text := "projection: generated\ncategory: Thing\n"
	keyField := ""
	if shared {
		options := []string{"{constant: all}", "{bucket: $time, by: day}", "{bucket: $time, by: hour}"}
		for _, name := range []string{"s", "l", "t", "dec", "u"} {
			if len(g.having(name)) == len(g.Types) {
				options = append(options, name)
			}
		}
		if len(g.having("s", "i")) == len(g.Types) {
			options = append(options, "[s, i]")
		}
		for _, name := range []string{"ls", "ll"} {
			if len(g.having(name)) == len(g.Types) {
				options = append(options, "{each: "+name+"}")
			}
		}
		if len(g.having("s", "u")) == len(g.Types) {
			var list []string
			for _, typ := range g.Types {
				list = append(list, typ+".s", "{event: "+typ+".s, transform: upper}")
			}
			options = append(options, "{from: ["+strings.Join(list, ", ")+"]}")
		}
		key := rapid.SampledFrom(options).Draw(g.T, "key")
		text += "key: " + key + "\n"
		keyField = "  k: {key: true}\n"
		if key == "[s, i]" {
			keyField = "  s: {key: true}\n"
		}
	}
	text += "fields:\n  n: {count: [" + strings.Join(g.Types, ", ") + "]}\n" + keyField
	for i := range rapid.IntRange(1, 5).Draw(g.T, "fields") {
		if f := g.field(shared, false); f != "" {
			text += fmt.Sprintf("  f%d: {%s}\n", i, f)
		}
	}
	if !shared && rapid.IntRange(0, 2).Draw(g.T, "remove") == 0 {
		text += "remove: " + g.refs("") + "\n"
	}
	return text
}
