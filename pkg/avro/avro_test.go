package avro_test

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	twmb "github.com/twmb/avro"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/strictjson"
)

const everything = `{"type": "record", "name": "Everything", "namespace": "test", "fields": [
	{"name": "b", "type": "boolean"},
	{"name": "i", "type": "int"},
	{"name": "l", "type": "long"},
	{"name": "f", "type": "float"},
	{"name": "d", "type": "double"},
	{"name": "s", "type": "string"},
	{"name": "by", "type": "bytes"},
	{"name": "fx", "type": {"type": "fixed", "name": "Four", "size": 4}},
	{"name": "e", "type": {"type": "enum", "name": "Color", "symbols": ["RED", "GREEN"]}},
	{"name": "u", "type": {"type": "string", "logicalType": "uuid"}},
	{"name": "dec", "type": {"type": "bytes", "logicalType": "decimal", "precision": 30, "scale": 2}},
	{"name": "decf", "type": {"type": "fixed", "name": "Dec", "size": 8, "logicalType": "decimal", "precision": 18, "scale": 4}},
	{"name": "tm", "type": {"type": "long", "logicalType": "timestamp-millis"}},
	{"name": "tu", "type": {"type": "long", "logicalType": "timestamp-micros"}},
	{"name": "da", "type": {"type": "int", "logicalType": "date"}},
	{"name": "ti", "type": {"type": "int", "logicalType": "time-millis"}},
	{"name": "tiu", "type": {"type": "long", "logicalType": "time-micros"}},
	{"name": "opt", "type": ["null", "string"], "default": null},
	{"name": "many", "type": ["null", "boolean", "long", "string", {"type": "array", "items": "int"}]},
	{"name": "arr", "type": {"type": "array", "items": {"type": "record", "name": "Item", "fields": [{"name": "n", "type": "int"}]}}},
	{"name": "map", "type": {"type": "map", "values": "double"}},
	{"name": "again", "type": "Item"}
]}`

const everythingJSON = `{"b":true,"i":-2147483648,"l":9223372036854775807,"f":1.5,"d":-2.25e-10,"s":"aé\"\n","by":"AAEC","fx":"AAECAw==","e":"GREEN",` +
	`"u":"0190a1b2-c3d4-7000-8000-0123456789ab","dec":"-1234567890123456789012345678.90","decf":"-0.0001","tm":"2023-11-08T16:12:44.123Z","tu":"1969-12-31T23:59:59.999999Z",` +
	`"da":"1900-02-28","ti":"23:59:59.999","tiu":"00:00:00.000001","opt":null,"many":[1,2],"arr":[{"n":1},{"n":2}],"map":{"a":1,"b":0.5},"again":{"n":3}}`

func parse(t testing.TB, src string) *avro.Schema {
	t.Helper()
	s, err := avro.Parse([]byte(src))
	require.NoError(t, err)
	return s
}

func record(fields string) string {
	return `{"type": "record", "name": "R", "fields": [` + fields + `]}`
}

func one(typ string) string { return record(`{"name": "v", "type": ` + typ + `}`) }

func encode(s *avro.Schema, in string) ([]byte, error) {
	r := strictjson.NewReader([]byte(in))
	out, err := s.EncodeJSON(nil, r)
	if err != nil {
		return nil, err
	}
	return out, r.End()
}

func TestJSONSurvivesTheWayThroughAvro(t *testing.T) {
	t.Parallel()
	s := parse(t, everything)
	payload, err := encode(s, everythingJSON)
	require.NoError(t, err)
	require.NoError(t, s.Scan(payload))
	back, err := s.AppendJSON(nil, payload)
	require.NoError(t, err)
	require.JSONEq(t, everythingJSON, string(back))
	require.Contains(t, string(back), `"l":9223372036854775807`)

	// Another implementation reads the same bytes.
	var other any
	_, err = twmb.MustParse(everything).Decode(payload, &other)
	require.NoError(t, err)
}

func TestFieldsMayComeInAnyOrder(t *testing.T) {
	t.Parallel()
	s := parse(t, record(`{"name": "a", "type": "int"}, {"name": "b", "type": "string", "default": "x"}, {"name": "c", "type": "long", "default": 7}`))
	want, err := encode(s, `{"a": 1, "b": "x", "c": 7}`)
	require.NoError(t, err)
	for _, in := range []string{`{"a": 1}`, `{"c": 7, "a": 1}`, `{"b": "x", "c": "7", "a": 1}`} {
		got, err := encode(s, in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
}

func TestDataThatDoesNotFitIsRefusedWithItsPlace(t *testing.T) {
	t.Parallel()
	dec := `{"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}`
	for name, c := range map[string]struct{ typ, value string }{
		"fraction for int":      {`"int"`, `1.0`},
		"exponent for int":      {`"int"`, `1e3`},
		"int out of range":      {`"int"`, `2147483648`},
		"int as a string":       {`"int"`, `"1"`},
		"long out of range":     {`"long"`, `9223372036854775808`},
		"long string":           {`"long"`, `"+1"`},
		"long empty string":     {`"long"`, `""`},
		"float overflow":        {`"float"`, `1e39`},
		"double overflow":       {`"double"`, `1e309`},
		"string for boolean":    {`"boolean"`, `"true"`},
		"null for string":       {`"string"`, `null`},
		"unknown symbol":        {`{"type": "enum", "name": "E", "symbols": ["A"]}`, `"a"`},
		"not base64":            {`"bytes"`, `"%"`},
		"base64 with newline":   {`"bytes"`, `"AA\nEC"`},
		"short fixed":           {`{"type": "fixed", "name": "F", "size": 4}`, `"AAEC"`},
		"scale too large":       {dec, `"1.234"`},
		"scale too small":       {dec, `"1.2"`},
		"decimal number":        {dec, `1.23`},
		"precision":             {dec, `"123.45"`},
		"decimal leading zero":  {dec, `"01.23"`},
		"decimal plus":          {dec, `"+1.23"`},
		"uuid":                  {`{"type": "string", "logicalType": "uuid"}`, `"x"`},
		"too many digits of ms": {`{"type": "long", "logicalType": "timestamp-millis"}`, `"2023-11-08T16:12:44.1234Z"`},
		"too many digits of us": {`{"type": "long", "logicalType": "timestamp-micros"}`, `"2023-11-08T16:12:44.1234567Z"`},
		"no zone":               {`{"type": "long", "logicalType": "timestamp-micros"}`, `"2023-11-08T16:12:44"`},
		"no such day":           {`{"type": "int", "logicalType": "date"}`, `"2023-02-29"`},
		"time of day":           {`{"type": "int", "logicalType": "time-millis"}`, `"24:00:00"`},
		"no branch":             {`["null", "long"]`, `true`},
		"item":                  {`{"type": "array", "items": "int"}`, `"x"`},
		"unknown field":         {`{"type": "record", "name": "X", "fields": []}`, `{"a": 1}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := encode(parse(t, one(c.typ)), `{"v": `+c.value+`}`)
			var data *avro.DataError
			require.ErrorAs(t, err, &data)
			require.True(t, strings.HasPrefix(data.Pointer, "/v"), data.Pointer)
		})
	}
	s := parse(t, one(`"int"`))
	for _, in := range []string{`{}`, `{"v": 1, "w": 2}`, `[1]`, `null`} {
		_, err := encode(s, in)
		var data *avro.DataError
		require.ErrorAs(t, err, &data, in)
	}
	_, err := encode(s, `{"v": 1, "v": 2}`)
	var syntax *strictjson.Error
	require.ErrorAs(t, err, &syntax)
}

func TestSchemasThatAreRefused(t *testing.T) {
	t.Parallel()
	for name, src := range map[string]string{
		"no JSON":         `{`,
		"no record":       `"string"`,
		"recursive":       record(`{"name": "next", "type": ["null", "R"]}`),
		"array of null":   one(`{"type": "array", "items": "null"}`),
		"array of empty":  one(`{"type": "array", "items": {"type": "record", "name": "E", "fields": []}}`),
		"two strings":     one(`["string", "bytes"]`),
		"two numbers":     one(`["int", "double"]`),
		"enum and string": one(`["string", {"type": "enum", "name": "E", "symbols": ["A"]}]`),
		"large default":   record(`{"name": "v", "type": "long", "default": 9007199254740993}`),
		"wrong default":   record(`{"name": "v", "type": "int", "default": "x"}`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := avro.Parse([]byte(src))
			var refused *avro.SchemaError
			require.ErrorAs(t, err, &refused)
		})
	}
}

func TestASchemaThatIsNoJSONIsRefusedWithItsLine(t *testing.T) {
	t.Parallel()
	_, err := avro.Parse([]byte("{\"type\": \"record\",\n \"name\": \"R\",\n \"fields\": [}\n"))
	require.EqualError(t, err, "schema refused: it is no JSON: line 3: invalid character '}' looking for beginning of value")
}

func TestCorruptPayloadsAreRefusedWithoutAllocating(t *testing.T) {
	t.Parallel()
	s := parse(t, record(`{"name": "s", "type": "string"}, {"name": "a", "type": {"type": "array", "items": "long"}}, {"name": "b", "type": "boolean"}, {"name": "u", "type": ["null", "int"]}`))
	good, err := encode(s, `{"s": "abc", "a": [1, 2], "b": true, "u": 5}`)
	require.NoError(t, err)
	require.NoError(t, s.Scan(good))
	for n := range good {
		require.ErrorIs(t, s.Scan(good[:n]), avro.ErrCorrupt, "truncated to %d bytes", n)
	}
	for name, bad := range map[string][]byte{
		"left over":          append(append([]byte(nil), good...), 0),
		"huge string":        {0xfe, 0xff, 0xff, 0xff, 0x0f},
		"negative string":    {0x01},
		"long varint":        {0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01},
		"invalid UTF-8":      {0x02, 0xff, 0, 1, 0},
		"NUL":                {0x02, 0x00, 0, 1, 0},
		"huge count":         {0x00, 0xfe, 0xff, 0xff, 0xff, 0x0f},
		"huge negative":      {0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0x00},
		"wrong block length": {0x00, 0x03, 0x02, 0x02, 0x02, 0x00, 0x01, 0x00},
		"boolean":            {0x00, 0x00, 0x02, 0x00},
		"branch":             {0x00, 0x00, 0x01, 0x04},
		"int range":          {0x00, 0x00, 0x01, 0x02, 0xfe, 0xff, 0xff, 0xff, 0xff, 0x01},
	} {
		require.ErrorIs(t, s.Scan(bad), avro.ErrCorrupt, name)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 1000 {
		s.Scan([]byte{0x00, 0xfe, 0xff, 0xff, 0xff, 0x0f})
	}
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(4<<20))
}

func TestNegativeBlockCountsAreRead(t *testing.T) {
	t.Parallel()
	s := parse(t, one(`{"type": "array", "items": "int"}`))
	payload := []byte{0x03, 0x04, 0x02, 0x04, 0x02, 0x06, 0x00} // two items in two bytes, one item, end
	require.NoError(t, s.Scan(payload))
	out, err := s.AppendJSON(nil, payload)
	require.NoError(t, err)
	require.Equal(t, `{"v":[1,2,3]}`, string(out))
}

func TestOldPayloadsAreReadWithTheNewestSchema(t *testing.T) {
	t.Parallel()
	old := parse(t, `{"type": "record", "name": "Paid", "fields": [
		{"name": "amount", "type": "int"}, {"name": "gone", "type": "string"}, {"name": "nick", "type": "string"},
		{"name": "color", "type": {"type": "enum", "name": "Color", "symbols": ["RED", "BLUE"]}}, {"name": "note", "type": "string"}]}`)
	new := parse(t, `{"type": "record", "name": "Paid", "fields": [
		{"name": "name", "type": "string", "aliases": ["nick"]}, {"name": "amount", "type": "double"}, {"name": "note", "type": ["null", "string"]},
		{"name": "color", "type": {"type": "enum", "name": "Color", "symbols": ["OTHER", "RED"], "default": "OTHER"}},
		{"name": "added", "type": {"type": "record", "name": "Inner", "fields": [{"name": "x", "type": "long"}]}, "default": {"x": 5}}]}`)
	payload, err := encode(old, `{"amount": 3, "gone": "x", "nick": "ada", "color": "BLUE", "note": "hi"}`)
	require.NoError(t, err)
	res, err := avro.Resolve(old, new)
	require.NoError(t, err)
	out, err := res.AppendJSON(nil, payload)
	require.NoError(t, err)
	require.JSONEq(t, `{"name": "ada", "amount": 3, "note": "hi", "color": "OTHER", "added": {"x": 5}}`, string(out))

	sel, err := avro.NewSelector(old, new, [][]string{{"name"}, {"amount"}, {"added", "x"}, {"color"}, {"added"}, {"note"}})
	require.NoError(t, err)
	values := make([]avro.Value, 6)
	require.NoError(t, sel.Select(payload, values))
	require.Equal(t, "ada", string(values[0].Bytes))
	require.Equal(t, avro.Value{Kind: avro.Double, Float: 3}, values[1])
	require.EqualValues(t, 5, values[2].Int)
	require.Equal(t, "OTHER", string(values[3].Bytes))
	require.Equal(t, `{"x":5}`, string(values[4].Bytes))
	require.Equal(t, "hi", string(values[5].Bytes))
}

func TestIncompatibleVersionsNameTheField(t *testing.T) {
	t.Parallel()
	old := parse(t, record(`{"name": "a", "type": {"type": "record", "name": "A", "fields": [{"name": "b", "type": "string"}]}}`))
	for want, fields := range map[string]string{
		"a.b": `{"name": "a", "type": {"type": "record", "name": "A", "fields": [{"name": "b", "type": "int"}]}}`,
		"c":   `{"name": "a", "type": {"type": "record", "name": "A", "fields": [{"name": "b", "type": "string"}]}}, {"name": "c", "type": "int"}`,
	} {
		err := avro.CheckBackward(old, parse(t, record(fields)))
		var refused *avro.SchemaError
		require.ErrorAs(t, err, &refused)
		require.Equal(t, want, refused.Path)
	}
	dec := func(precision, scale string) *avro.Schema {
		return parse(t, one(`{"type": "bytes", "logicalType": "decimal", "precision": `+precision+`, "scale": `+scale+`}`))
	}
	require.NoError(t, avro.CheckBackward(dec("5", "2"), dec("9", "2")))
	require.Error(t, avro.CheckBackward(dec("5", "2"), dec("9", "3")))
}

func TestSelectorReadsNestedAndNullableFields(t *testing.T) {
	t.Parallel()
	s := parse(t, record(`{"name": "skipped", "type": {"type": "map", "values": "long"}}, {"name": "o", "type": ["null", {"type": "record", "name": "O", "fields": [
		{"name": "x", "type": "string"}, {"name": "p", "type": {"type": "record", "name": "P", "fields": [{"name": "y", "type": ["null", "long"]}]}}]}]}, {"name": "last", "type": "boolean"}`))
	sel, err := avro.NewSelector(s, s, [][]string{{"o", "p", "y"}, {"last"}, {"o", "x"}, {"o"}})
	require.NoError(t, err)
	values := make([]avro.Value, 4)
	payload, err := encode(s, `{"skipped": {"a": 1}, "o": {"x": "xx", "p": {"y": 42}}, "last": true}`)
	require.NoError(t, err)
	require.NoError(t, sel.Select(payload, values))
	require.EqualValues(t, 42, values[0].Int)
	require.Equal(t, avro.Value{Kind: avro.Bool, Int: 1}, values[1])
	require.Equal(t, "xx", string(values[2].Bytes))
	require.JSONEq(t, `{"x": "xx", "p": {"y": 42}}`, string(values[3].Bytes))

	payload, err = encode(s, `{"skipped": {}, "o": null, "last": false}`)
	require.NoError(t, err)
	require.NoError(t, sel.Select(payload, values))
	require.Equal(t, []avro.Value{{}, {Kind: avro.Bool}, {}, {}}, values)
	require.ErrorIs(t, sel.Select(payload[:len(payload)-1], values), avro.ErrCorrupt)

	_, err = avro.NewSelector(s, s, [][]string{{"o", "nope"}})
	require.ErrorIs(t, err, avro.ErrNoField)
}

func TestTypesForCompilers(t *testing.T) {
	t.Parallel()
	s := parse(t, everything)
	for path, want := range map[string]avro.Type{
		"l": {Kind: avro.Long}, "opt": {Kind: avro.String, Nullable: true}, "many": {Kind: avro.JSON, Nullable: true},
		"dec": {Kind: avro.Decimal, Precision: 30, Scale: 2}, "tm": {Kind: avro.Timestamp}, "fx": {Kind: avro.Bytes}, "again.n": {Kind: avro.Int},
	} {
		got, err := s.TypeOf(strings.Split(path, ".")...)
		require.NoError(t, err, path)
		require.Equal(t, want, got, path)
	}
	require.Equal(t, "Everything", s.Name())
	require.Equal(t, "test.Everything", s.FullName())
}

func TestGoStructs(t *testing.T) {
	t.Parallel()
	s := parse(t, record(`{"name": "name", "type": "string"}, {"name": "n", "type": "long"}`))
	type event struct {
		Name string `avro:"name"`
		N    int64  `avro:"n"`
	}
	payload, err := s.EncodeGo(nil, event{"ada", 7})
	require.NoError(t, err)
	var got event
	require.NoError(t, s.DecodeGo(payload, &got))
	require.Equal(t, event{"ada", 7}, got)
	_, err = s.EncodeGo(nil, event{"\xff", 7})
	require.ErrorIs(t, err, avro.ErrCorrupt)
	require.ErrorIs(t, s.DecodeGo(payload[1:], &got), avro.ErrCorrupt)
}

func TestFrame(t *testing.T) {
	t.Parallel()
	id, body, err := avro.SplitFrame(append(avro.AppendFrame(nil, 70000), "body"...))
	require.NoError(t, err)
	require.Equal(t, 70000, id)
	require.Equal(t, "body", string(body))
	for _, bad := range [][]byte{nil, {0, 0, 0, 1}, {1, 0, 0, 0, 1}, {0, 0xff, 0, 0, 1}} {
		_, _, err := avro.SplitFrame(bad)
		require.ErrorIs(t, err, avro.ErrNoFrame)
	}
}

// What our scanner takes is decoded, and never more; what we render is JSON that
// encodes to a payload of the same meaning; twmb/avro agrees.
func FuzzScan(f *testing.F) {
	s := parse(f, everything)
	other := twmb.MustParse(everything)
	payload, err := encode(s, everythingJSON)
	require.NoError(f, err)
	f.Add(payload)
	f.Add(payload[:len(payload)/2])
	f.Add([]byte{0x00, 0xfe, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, in []byte) {
		err := s.Scan(in)
		text, jsonErr := s.AppendJSON(nil, in)
		require.Equal(t, err == nil, jsonErr == nil, "scan says %v, rendering %v", err, jsonErr)
		if err != nil {
			require.ErrorIs(t, err, avro.ErrCorrupt)
			return
		}
		again, err := encode(s, string(text))
		var syntax *strictjson.Error
		if errors.As(err, &syntax) { // a number of too many digits or a repeated key of a map: fine as Avro
			return
		}
		require.NoError(t, err, "%s", text)
		back, err := s.AppendJSON(nil, again)
		require.NoError(t, err)
		require.Equal(t, string(text), string(back))
		var v any
		rest, err := other.Decode(in, &v)
		require.NoError(t, err, "twmb/avro refuses what we take")
		require.Empty(t, rest)
	})
}

func FuzzEncodeJSON(f *testing.F) {
	s := parse(f, everything)
	f.Add([]byte(everythingJSON))
	f.Add([]byte(`{"b": 1}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		payload, err := encode(s, string(in))
		if err != nil {
			return
		}
		require.NoError(t, s.Scan(payload))
		text, err := s.AppendJSON(nil, payload)
		require.NoError(t, err)
		again, err := encode(s, string(text))
		require.NoError(t, err, "%s", text)
		require.Equal(t, payload, again, "%s", text)
	})
}

func BenchmarkSelect(b *testing.B) {
	s := parse(b, everything)
	payload, err := encode(s, everythingJSON)
	require.NoError(b, err)
	sel, err := avro.NewSelector(s, s, [][]string{{"l"}, {"s"}, {"tu"}})
	require.NoError(b, err)
	values := make([]avro.Value, 3)
	b.ReportAllocs()
	for b.Loop() {
		if err := sel.Select(payload, values); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeJSON(b *testing.B) {
	s := parse(b, record(`{"name": "id", "type": "string"}, {"name": "email", "type": "string"}, {"name": "isActive", "type": "boolean"}`))
	in := []byte(`{"id": "42", "email": "ada@example.com", "isActive": true}`)
	r := strictjson.NewReader(nil)
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		r.Reset(in)
		var err error
		if dst, err = s.EncodeJSON(dst[:0], r); err != nil {
			b.Fatal(err)
		}
	}
}
