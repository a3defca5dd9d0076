package projection_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// pool is the fields that generated schemas choose from: Avro type, the oracle's
// name for the type, and values.
var pool = map[string]struct {
	avro, typ string
	values    func(*rapid.T) any
}{
	"s": {`"string"`, "string", func(t *rapid.T) any {
		return rapid.SampledFrom([]string{"a", "B", "b", "é\"\\\n", " x ", "ß", ""}).Draw(t, "s")
	}},
	"e": {`{"type": "enum", "name": "E_%s", "symbols": ["ONE", "TWO", "THREE"]}`, "string", func(t *rapid.T) any { return rapid.SampledFrom([]string{"ONE", "TWO", "THREE"}).Draw(t, "e") }},
	"u": {`{"type": "string", "logicalType": "uuid"}`, "string", func(t *rapid.T) any {
		return fmt.Sprintf("00000000-0000-7000-8000-00000000000%d", rapid.IntRange(0, 3).Draw(t, "u"))
	}},
	"i": {`"int"`, "long", func(t *rapid.T) any { return json.Number(strconv.Itoa(rapid.IntRange(-3, 12).Draw(t, "i"))) }},
	"l": {`"long"`, "long", func(t *rapid.T) any {
		return json.Number(strconv.FormatInt(rapid.SampledFrom([]int64{0, 1, -1, 2, 10, 9, math.MaxInt64, math.MinInt64 + 1}).Draw(t, "l"), 10))
	}},
	"d": {`"double"`, "double", func(t *rapid.T) any {
		return json.Number(rapid.SampledFrom([]string{"0", "0.5", "-1.25", "3", "1e300", "1e-7"}).Draw(t, "d"))
	}},
	"b": {`"boolean"`, "boolean", func(t *rapid.T) any { return rapid.Bool().Draw(t, "b") }},
	"t": {`{"type": "long", "logicalType": "timestamp-micros"}`, "timestamp", func(t *rapid.T) any { return rfc3339(rapid.Int64Range(-5, 5).Draw(t, "t") * 40_000_000_500) }},
	"dt": {`{"type": "int", "logicalType": "date"}`, "date", func(t *rapid.T) any {
		return rapid.SampledFrom([]string{"1999-12-31", "2024-02-29", "0001-01-01"}).Draw(t, "dt")
	}},
	"tod": {`{"type": "long", "logicalType": "time-micros"}`, "time", func(t *rapid.T) any {
		return rapid.SampledFrom([]string{"00:00:00", "12:30:01.5", "23:59:59.999999"}).Draw(t, "tod")
	}},
	"dec": {`{"type": "bytes", "logicalType": "decimal", "precision": 30, "scale": 2}`, "decimal", func(t *rapid.T) any {
		return rapid.SampledFrom([]string{"0.00", "0.01", "-1.50", "12345678901234567890123456.78"}).Draw(t, "dec")
	}},
	"ls": {`{"type": "array", "items": "string"}`, "list", func(t *rapid.T) any {
		return anys(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "ç", "z z"}), 0, 3).Draw(t, "ls"))
	}},
	"ll": {`{"type": "array", "items": "long"}`, "list", func(t *rapid.T) any {
		var out []any
		for _, n := range rapid.SliceOfN(rapid.Int64Range(-2, 12), 0, 3).Draw(t, "ll") {
			out = append(out, json.Number(strconv.FormatInt(n, 10)))
		}
		return out
	}},
	"m": {`{"type": "map", "values": "int"}`, "document", func(t *rapid.T) any {
		out := map[string]any{}
		for _, k := range rapid.SliceOfN(rapid.SampledFrom([]string{"k", "kk", "a"}), 0, 2).Draw(t, "m") {
			out[k] = json.Number("7")
		}
		return out
	}},
}

func anys(list []string) (out []any) {
	for _, x := range list {
		out = append(out, x)
	}
	return out
}

var poolNames = slices.Sorted(maps.Keys(pool))

// generator draws one case.
type generator struct {
	*rapid.T
	world *world
	types []string
	fsys  fstest.MapFS
	null  map[string]bool // nullable fields, as Type.field
}

func generate(t *rapid.T) *generator {
	g := &generator{T: t, fsys: fstest.MapFS{}, null: map[string]bool{}, world: &world{types: map[string]string{"ls[]": "string", "ll[]": "long", "r.s": "string", "r.l": "long"}, events: map[string]map[string]bool{}}}
	for name, p := range pool {
		g.world.types[name] = p.typ
	}
	number := func(f *fact, name string) (int64, bool) {
		v, ok := f.data[name].(json.Number)
		n, err := strconv.ParseInt(string(v), 10, 64)
		return n, ok && err == nil
	}
	g.world.expressions = map[string]func(*fact, string) any{
		"i > 3":    func(f *fact, _ string) any { n, ok := number(f, "i"); return ok && n > 3 },
		"s != 'a'": func(f *fact, _ string) any { return f.data["s"] != "a" },
		"i * 2": func(f *fact, _ string) any {
			if n, ok := number(f, "i"); ok {
				return json.Number(strconv.FormatInt(2*n, 10))
			}
			return nil
		},
		"key == s":          func(f *fact, key string) any { return f.data["s"] == key },
		"event.version > 2": func(f *fact, _ string) any { return f.version > 2 },
		"event.type + '/x'": func(f *fact, _ string) any { return f.typ + "/x" },
		"size(ls) > 1":      func(f *fact, _ string) any { l, ok := f.data["ls"].([]any); return ok && len(l) > 1 },
	}
	g.world.types["i * 2"], g.world.types["event.type + '/x'"] = "long", "string"
	for _, typ := range []string{"Alpha", "Beta", "Gamma"}[:rapid.IntRange(1, 3).Draw(t, "types")] {
		g.types = append(g.types, typ)
		g.schema(typ)
	}
	return g
}

// schema draws an event type: some of the fields, some nullable, perhaps a record.
func (g *generator) schema(typ string) {
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
	g.world.events[typ] = have
	g.fsys["events/Thing/"+typ+".v1.avsc"] = &fstest.MapFile{Data: []byte(`{"type": "record", "name": "` + typ + `", "fields": [` + strings.Join(fields, ", ") + `]}`)}
}

// having are the event types that have all of the fields.
func (g *generator) having(names ...string) (types []string) {
	for _, typ := range g.types {
		if !slices.ContainsFunc(names, func(n string) bool { return n != "" && !strings.HasPrefix(n, "$") && !g.world.events[typ][n] }) {
			types = append(types, typ)
		}
	}
	return types
}

// refs draws references to a field in some of the event types that have it.
func (g *generator) refs(name string, needs ...string) string {
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
				if g.world.events[typ][c.field] && rapid.Bool().Draw(g.T, "which") {
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

func (g *generator) pick(names ...string) string { return rapid.SampledFrom(names).Draw(g.T, "field") }

// field draws the operators of one field; empty if the schema has nothing for it.
func (g *generator) field(shared, child bool) string {
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
			ops += ", clear: " + g.pick(g.types...)
		}
		return ops
	case "first":
		return of("first", g.pick(scalars...))
	case "count":
		ops := of("count", "")
		if rapid.Bool().Draw(g.T, "decrement") {
			ops += ", decrement: " + g.pick(g.types...)
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
		if g.world.events[g.types[0]]["i"] && rapid.Bool().Draw(g.T, "number") {
			return fmt.Sprintf("%s: [{event: %s, value: \"i * 2\"}]", g.pick("from", "add", "max"), g.types[0])
		}
		return fmt.Sprintf("from: [{event: %s, value: \"event.type + '/x'\"}]", g.types[0])
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
		if len(g.having(key)) < len(g.types) {
			return ""
		}
		inside := g.inside("fields: {", shared, true)
		if inside == "" {
			return ""
		}
		if rapid.Bool().Draw(g.T, "remove child") {
			inside += ", remove: " + g.pick(g.types...)
		}
		return "children: {key: " + key + ", " + inside + "}"
	}
}

func (g *generator) inside(open string, shared, child bool) string {
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

func (g *generator) definition(shared bool) string {
	text := "projection: generated\ncategory: Thing\n"
	keyField := ""
	if shared {
		options := []string{"{constant: all}", "{bucket: $time, by: day}", "{bucket: $time, by: hour}"}
		for _, name := range []string{"s", "l", "t", "dec", "u"} {
			if len(g.having(name)) == len(g.types) {
				options = append(options, name)
			}
		}
		if len(g.having("s", "i")) == len(g.types) {
			options = append(options, "[s, i]")
		}
		for _, name := range []string{"ls", "ll"} {
			if len(g.having(name)) == len(g.types) {
				options = append(options, "{each: "+name+"}")
			}
		}
		if len(g.having("s", "u")) == len(g.types) {
			var list []string
			for _, typ := range g.types {
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
	text += "fields:\n  n: {count: [" + strings.Join(g.types, ", ") + "]}\n" + keyField
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

func (g *generator) facts() (facts []*fact) {
	seqs, versions := map[int]int64{}, map[string]int64{}
	for i := range rapid.IntRange(1, 30).Draw(g.T, "events") {
		f := &fact{category: "Thing", typ: g.pick(g.types...), stream: g.pick("one", "two", "three"), id: fmt.Sprintf("00000000-0000-7000-8000-%012d", i+1),
			actor: g.pick("", "ada"), time: rapid.SampledFrom([]int64{0, 1, 86_400_000_000, 3_600_000_000, 1_700_000_000_123_456}).Draw(g.T, "time"), data: map[string]any{}}
		f.slot = event.SlotOf(f.stream, 8)
		seqs[f.slot]++
		versions[f.stream]++
		f.seq, f.version = seqs[f.slot], versions[f.stream]
		for _, name := range slices.Sorted(maps.Keys(g.world.events[f.typ])) {
			if strings.Contains(name, ".") {
				continue
			}
			if g.null[f.typ+"."+name] && rapid.IntRange(0, 3).Draw(g.T, "null") == 0 {
				f.data[name] = nil
			} else if name == "r" {
				f.data[name] = map[string]any{"s": pool["s"].values(g.T), "l": pool["l"].values(g.T)}
			} else if f.data[name] = pool[name].values(g.T); f.data[name] == nil || fmt.Sprint(f.data[name]) == "[]" {
				f.data[name] = []any{}
			}
		}
		facts = append(facts, f)
	}
	return facts
}

// events encodes facts.
func (g *generator) encode(contracts *avro.Contracts, facts []*fact) (events []event.Event, schemas []*avro.Schema) {
	category, _ := contracts.Category("Thing")
	for _, f := range facts {
		typ, _ := category.Type(f.typ)
		data, err := json.Marshal(f.data)
		require.NoError(g, err)
		value, err := typ.Newest().EncodeJSON(avro.AppendFrame(nil, 1), strictjson.NewReader(data))
		require.NoError(g, err, "%s", data)
		id, err := event.ParseID(f.id)
		require.NoError(g, err)
		events = append(events, event.Event{ID: id, Category: f.category, Stream: f.stream, Version: f.version, Slot: f.slot, Seq: f.seq, Type: f.typ, Value: value,
			Time: event.Time(f.time), Recorded: event.Time(f.time), Metadata: event.Metadata{Actor: f.actor}})
		schemas = append(schemas, typ.Newest())
	}
	return events, schemas
}

// part folds some events into rows that begin empty, or that are reloaded before
// each event where reload is set.
func part(t require.TestingT, plan *projection.Plan, events []event.Event, schemas []*avro.Schema, parked map[string]bool, reload bool) map[string]*projection.Row {
	folder, rows := plan.NewFolder(), map[string]*projection.Row{}
	for i := range events {
		e := &events[i]
		if parked[e.Stream] {
			continue
		}
		outcome, err := folder.Begin(e, schemas[i])
		if err == nil && outcome == projection.Applies {
			for key := range folder.Keys() {
				row := rows[string(key)]
				if row == nil {
					row = plan.NewRow()
				} else if reload && row.Exists() {
					row, err = plan.LoadRow(row.AppendData(nil), row.AppendState(nil))
					require.NoError(t, err)
				}
				if err = folder.Apply(row); err != nil {
					break
				}
				rows[string(key)] = row
			}
		}
		if err != nil {
			parked[e.Stream] = true
		}
	}
	return rows
}

func texts(rows map[string]*projection.Row) map[string]string {
	out := map[string]string{}
	for key, row := range rows {
		if row.Exists() {
			out[key] = string(row.AppendData(nil))
		}
	}
	return out
}

func compileDefinition(t require.TestingT, fsys fstest.MapFS, text string) (*projection.Plan, *avro.Contracts) {
	contracts, err := avro.LoadContracts(fsys)
	require.NoError(t, err)
	definitions, err := projection.ParseDefinitions("generated.yaml", []byte(text))
	require.NoError(t, err, "%s", text)
	plan, err := projection.Compile(definitions[0], contracts)
	require.NoError(t, err, "%s", text)
	return plan, contracts
}

// Rows of one stream: the fold is what the oracle makes of the definition, whether
// rows stay in memory or are written and read between any two events, and what is
// written is what jsonb prints.
func TestGeneratedRowsOfOneStreamEqualTheOracle(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		g := generate(t)
		definition := g.definition(false)
		plan, contracts := compileDefinition(t, g.fsys, definition)
		facts := g.facts()
		events, schemas := g.encode(contracts, facts)
		want := g.world.fold(definition, facts)
		live := part(t, plan, events, schemas, map[string]bool{}, false)
		require.Equal(t, want, texts(live), "%s", definition)
		reloaded := part(t, plan, events, schemas, map[string]bool{}, true)
		require.Equal(t, texts(live), texts(reloaded), "%s", definition)
		for key, row := range live {
			if row.Exists() {
				require.Equal(t, string(row.AppendState(nil)), string(reloaded[key].AppendState(nil)))
				require.True(t, utf8.Valid(row.AppendData(nil)))
			}
		}
	})
}

// Shared rows: whatever the split into partitions and batches, and whatever their
// order, the table holds what the oracle makes of the definition.
func TestGeneratedSharedRowsEqualTheOracle(t *testing.T) {
	t.Parallel()
	db := devstack.MigratedDatabase(t)
	leafs := 0
	rapid.Check(t, func(t *rapid.T) {
		g := generate(t)
		definition := g.definition(true)
		plan, contracts := compileDefinition(t, g.fsys, definition)
		facts := g.facts()
		events, schemas := g.encode(contracts, facts)
		want := g.world.fold(definition, facts)
		var stored map[string]string
		for range 2 {
			leafs++
			got := mergeParts(t, db, plan, fmt.Sprintf("refold.generated_%d", leafs), events, schemas)
			data := map[string]string{}
			for key, row := range got {
				data[key], _, _ = strings.Cut(row, "\x00")
			}
			require.Equal(t, want, data, "%s", definition)
			if stored != nil {
				require.Equal(t, stored, got, "%s", definition)
			}
			stored = got
		}
		for key, row := range part(t, plan, events, schemas, map[string]bool{}, false) { // all in one part
			require.Equal(t, stored[key], string(row.AppendData(nil))+"\x00"+string(row.AppendState(nil)), "%s", definition)
		}
	})
}

// mergeParts deals the events to partitions by slot, cuts these into batches, and
// merges the batches of different partitions in any order.
func mergeParts(t *rapid.T, db *pgxpool.Pool, plan *projection.Plan, leaf string, events []event.Event, schemas []*avro.Schema) map[string]string {
	ctx := context.Background()
	_, err := db.Exec(ctx, `create table `+leaf+` (like refold.projections including defaults, primary key (key))`)
	require.NoError(t, err)
	partitions := map[int][]int{}
	n := rapid.SampledFrom([]int{1, 2, 8}).Draw(t, "partitions")
	for i := range events {
		partitions[events[i].Slot%n] = append(partitions[events[i].Slot%n], i)
	}
	parked := map[string]bool{}
	for len(partitions) > 0 {
		p := rapid.SampledFrom(slices.Sorted(maps.Keys(partitions))).Draw(t, "partition")
		size := rapid.IntRange(1, len(partitions[p])).Draw(t, "batch")
		var batch []event.Event
		var of []*avro.Schema
		for _, i := range partitions[p][:size] {
			batch, of = append(batch, events[i]), append(of, schemas[i])
		}
		if partitions[p] = partitions[p][size:]; len(partitions[p]) == 0 {
			delete(partitions, p)
		}
		rows := part(t, plan, batch, of, parked, false)
		var data, states []string
		keys := slices.Sorted(maps.Keys(rows))
		for _, key := range keys {
			data, states = append(data, string(rows[key].AppendData(nil))), append(states, string(rows[key].AppendState(nil)))
		}
		_, err := db.Exec(ctx, plan.UpsertSQL(leaf), "generated", 1, keys, data, states)
		require.NoError(t, err)
	}
	rows, err := db.Query(ctx, `select key, data::text || chr(1) || state::text from `+leaf)
	require.NoError(t, err)
	got := map[string]string{}
	for rows.Next() {
		var key, text string
		require.NoError(t, rows.Scan(&key, &text))
		got[key] = strings.Replace(text, "\x01", "\x00", 1)
	}
	require.NoError(t, rows.Err())
	_, err = db.Exec(ctx, `drop table `+leaf)
	require.NoError(t, err)
	return got
}
