package projectiontest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// Fact is an event as people would write it down.
type Fact struct {
	Category, Type, Stream, ID, Actor string
	Version, Seq                      int64
	Slot                              int
	Time                              int64          // microseconds since 1970
	Data                              map[string]any // nil, bool, json.Number, string, []any, map[string]any
}

// Facts draws up to most events of some streams, whose slots are of eight.
func (g *Generator) Facts(most int, streams ...string) (facts []*Fact) {
	seqs, versions := map[int]int64{}, map[string]int64{}
	for i := range rapid.IntRange(1, most).Draw(g.T, "events") {
		f := &Fact{Category: "Thing", Type: g.pick(g.Types...), Stream: g.pick(streams...), ID: fmt.Sprintf("00000000-0000-7000-8000-%012d", i+1),
			Actor: g.pick("", "ada"), Time: rapid.SampledFrom([]int64{0, 1, 86_400_000_000, 3_600_000_000, 1_700_000_000_123_456}).Draw(g.T, "time"), Data: map[string]any{}}
		f.Slot = event.SlotOf(f.Stream, 8)
		seqs[f.Slot]++
		versions[f.Stream]++
		f.Seq, f.Version = seqs[f.Slot], versions[f.Stream]
		for _, name := range slices.Sorted(maps.Keys(g.Fields[f.Type])) {
			if strings.Contains(name, ".") {
				continue
			}
			if g.null[f.Type+"."+name] && rapid.IntRange(0, 3).Draw(g.T, "null") == 0 {
				f.Data[name] = nil
			} else if name == "r" {
				f.Data[name] = map[string]any{"s": pool["s"].values(g.T), "l": pool["l"].values(g.T)}
			} else if f.Data[name] = pool[name].values(g.T); f.Data[name] == nil || fmt.Sprint(f.Data[name]) == "[]" {
				f.Data[name] = []any{}
			}
		}
		facts = append(facts, f)
	}
	return facts
}

// Encode makes events of facts, with the schemas that they are written with; id is
// the registry's number of an event type.
func (g *Generator) Encode(contracts *avro.Contracts, facts []*Fact, id func(typ string) int) (events []event.Event, schemas []*avro.Schema) {
	category, _ := contracts.Category("Thing")
	for _, f := range facts {
		typ, _ := category.Type(f.Type)
		data, err := json.Marshal(f.Data)
		require.NoError(g, err)
		value, err := typ.Newest().EncodeJSON(avro.AppendFrame(nil, id(f.Type)), strictjson.NewReader(data))
		require.NoError(g, err, "%s", data)
		eventID, err := event.ParseID(f.ID)
		require.NoError(g, err)
		events = append(events, event.Event{ID: eventID, Category: f.Category, Stream: f.Stream, Version: f.Version, Slot: f.Slot, Seq: f.Seq, Type: f.Type, Value: value,
			Time: event.Time(f.Time), Recorded: event.Time(f.Time), Metadata: event.Metadata{Actor: f.Actor}})
		schemas = append(schemas, typ.Newest())
	}
	return events, schemas
}
