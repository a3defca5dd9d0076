package projectiontest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"pgregory.net/rapid"
)

// pool is the fields that generated schemas choose from: Avro type, the name of the
// type in definitions, and values.
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

// rfc3339 writes microseconds since 1970 as events and rows do.
func rfc3339(us int64) string {
	return time.UnixMicro(us).UTC().Format("2006-01-02T15:04:05.999999Z07:00")
}
