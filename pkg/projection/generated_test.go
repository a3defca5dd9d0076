package projection_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
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
	"github.com/refoldhq/refold/pkg/projection/projectiontest"
)

// generator draws cases that the oracle understands.
type generator struct {
	*projectiontest.Generator
	world *world
}

func generate(t *rapid.T) *generator {
	g := projectiontest.Generate(t)
	w := &world{types: projectiontest.FieldTypes(), events: g.Fields}
	number := func(f *fact, name string) (int64, bool) {
		v, ok := f.data[name].(json.Number)
		n, err := strconv.ParseInt(string(v), 10, 64)
		return n, ok && err == nil
	}
	w.expressions = map[string]func(*fact, string) any{
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
	w.types["i * 2"], w.types["event.type + '/x'"] = "long", "string"
	return &generator{g, w}
}

func (g *generator) facts() (facts []*fact) {
	for _, f := range g.Facts(30, "one", "two", "three") {
		facts = append(facts, &fact{category: f.Category, typ: f.Type, stream: f.Stream, id: f.ID, actor: f.Actor, version: f.Version, seq: f.Seq, slot: f.Slot, time: f.Time, data: f.Data})
	}
	return facts
}

func (g *generator) encode(contracts *avro.Contracts, facts []*fact) ([]event.Event, []*avro.Schema) {
	var list []*projectiontest.Fact
	for _, f := range facts {
		list = append(list, &projectiontest.Fact{Category: f.category, Type: f.typ, Stream: f.stream, ID: f.id, Actor: f.actor, Version: f.version, Seq: f.seq, Slot: f.slot, Time: f.time, Data: f.data})
	}
	return g.Encode(contracts, list, func(string) int { return 1 })
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
		definition := g.Definition(false)
		plan, contracts := compileDefinition(t, g.FS, definition)
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
		definition := g.Definition(true)
		plan, contracts := compileDefinition(t, g.FS, definition)
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
