package avro_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
	twmb "github.com/twmb/avro"

	"github.com/refoldhq/refold/pkg/avro"
)

// evolutions are pairs of schemas, with data of the old one.
var evolutions = map[string]struct{ old, new, data string }{
	"the same":             {everything, everything, everythingJSON},
	"fields change places": {record(`{"name":"a","type":"int"},{"name":"b","type":"string"}`), record(`{"name":"b","type":"string"},{"name":"a","type":"int"}`), `{"a":-7,"b":"x"}`},
	"a field between, one gone": {record(`{"name":"a","type":"int"},{"name":"gone","type":{"type":"array","items":"string"}},{"name":"b","type":"string"}`),
		record(`{"name":"a","type":"int"},{"name":"n","type":{"type":"map","values":"int"},"default":{"k":3}},{"name":"b","type":"string"}`), `{"a":1,"gone":["x","y"],"b":"z"}`},
	"renamed by an alias": {record(`{"name":"mail","type":"string"}`), record(`{"name":"email","type":"string","aliases":["mail"]}`), `{"mail":"a@b.c"}`},
	"promotions": {record(`{"name":"a","type":"int"},{"name":"b","type":"int"},{"name":"c","type":"long"},{"name":"d","type":"float"},{"name":"e","type":"string"},{"name":"f","type":"bytes"}`),
		record(`{"name":"a","type":"long"},{"name":"b","type":"double"},{"name":"c","type":"float"},{"name":"d","type":"double"},{"name":"e","type":"bytes"},{"name":"f","type":"string"}`),
		`{"a":-5,"b":3,"c":7,"d":0.5,"e":"text","f":"dGV4dA=="}`},
	"becomes optional": {one(`"string"`), one(`["null","string"]`), `{"v":"x"}`},
	"branches move":    {one(`["null","int",{"type":"array","items":"int"}]`), one(`[{"type":"array","items":"int"},"long","null"]`), `{"v":[1,2]}`},
	"a null moves":     {one(`["null","string"]`), one(`["string","null"]`), `{"v":null}`},
	"symbols move":     {one(`{"type":"enum","name":"E","symbols":["A","B","C"]}`), one(`{"type":"enum","name":"E","symbols":["C","A"],"default":"A"}`), `{"v":"C"}`},
	"inside items": {one(`{"type":"array","items":{"type":"record","name":"I","fields":[{"name":"n","type":"int"},{"name":"x","type":"string"}]}}`),
		one(`{"type":"array","items":{"type":"record","name":"I","fields":[{"name":"m","type":"long","default":9},{"name":"n","type":"long"}]}}`), `{"v":[{"n":1,"x":"a"},{"n":2,"x":"b"}]}`},
	"inside values":     {one(`{"type":"map","values":"int"}`), one(`{"type":"map","values":["null","double"]}`), `{"v":{"a":1}}`},
	"inside a branch":   {one(`["null",{"type":"record","name":"I","fields":[{"name":"n","type":"int"}]}]`), one(`["null",{"type":"record","name":"I","fields":[{"name":"n","type":"long"},{"name":"k","type":"string","default":"d"}]}]`), `{"v":{"n":4}}`},
	"a renamed record":  {one(`{"type":"record","name":"Old","fields":[{"name":"n","type":"int"}]}`), one(`{"type":"record","name":"New","aliases":["Old"],"fields":[{"name":"n","type":"long"}]}`), `{"v":{"n":4}}`},
	"nothing is wanted": {record(`{"name":"a","type":"int"}`), record(``), `{"a":1}`},
}

func TestOldPayloadsBecomeWhatAnotherLibraryMakesOfThem(t *testing.T) {
	t.Parallel()
	for name, c := range evolutions {
		old, newest := parse(t, c.old), parse(t, c.new)
		payload, err := encode(old, c.data)
		require.NoError(t, err, name)
		resolution, err := avro.Resolve(old, newest)
		require.NoError(t, err, name)
		got, err := resolution.Append([]byte("before"), payload)
		require.NoError(t, err, name)
		got = got[len("before"):]
		require.NoError(t, newest.Scan(got), name)

		viaJSON, err := resolution.AppendJSON(nil, payload)
		require.NoError(t, err, name)
		asJSON, err := newest.AppendJSON(nil, got)
		require.NoError(t, err, name)
		require.JSONEq(t, string(viaJSON), string(asJSON), name)

		writer, err := twmb.Parse(c.old)
		require.NoError(t, err, name)
		reader, err := twmb.Parse(c.new)
		require.NoError(t, err, name)
		resolved, err := twmb.Resolve(writer, reader)
		require.NoError(t, err, name)
		var value any
		_, err = resolved.Decode(payload, &value)
		require.NoError(t, err, name)
		want, err := reader.AppendEncode(nil, value)
		require.NoError(t, err, name)
		if strings.Count(c.data, ":") < 20 { // maps come in any order
			require.Equal(t, string(want), string(got), name)
		}
		for cut := range payload {
			_, err := resolution.Append(nil, payload[:cut])
			require.ErrorIs(t, err, avro.ErrCorrupt, "%s cut at %d", name, cut)
		}
		_, err = resolution.Append(nil, append(payload, 0))
		require.ErrorIs(t, err, avro.ErrCorrupt, name)
	}
}

func TestDecimalsMayGrowLonger(t *testing.T) { // the other library refuses it, the specification leaves it open
	t.Parallel()
	decimal := func(precision, scale int) *avro.Schema {
		return parse(t, one(fmt.Sprintf(`{"type":"bytes","logicalType":"decimal","precision":%d,"scale":%d}`, precision, scale)))
	}
	payload, err := encode(decimal(4, 2), `{"v":"-12.34"}`)
	require.NoError(t, err)
	resolution, err := avro.Resolve(decimal(4, 2), decimal(9, 2))
	require.NoError(t, err)
	got, err := resolution.Append(nil, payload)
	require.NoError(t, err)
	require.Equal(t, payload, got)
	require.Error(t, avro.CheckBackward(decimal(4, 2), decimal(9, 3)), "the point would move")
	require.Error(t, avro.CheckBackward(decimal(9, 2), decimal(4, 2)))
}

func TestTimesKeepEveryDigit(t *testing.T) {
	t.Parallel()
	millis, micros := parse(t, one(`{"type":"long","logicalType":"timestamp-millis"}`)), parse(t, one(`{"type":"long","logicalType":"timestamp-micros"}`))
	payload, err := encode(millis, `{"v":"2026-01-02T03:04:05.678Z"}`)
	require.NoError(t, err)
	resolution, err := avro.Resolve(millis, micros)
	require.NoError(t, err)
	payload, err = resolution.Append(nil, payload)
	require.NoError(t, err)
	doc, err := micros.AppendJSON(nil, payload)
	require.NoError(t, err)
	require.JSONEq(t, `{"v":"2026-01-02T03:04:05.678Z"}`, string(doc))
	require.ErrorContains(t, avro.CheckBackward(micros, millis), "v")
}

// The three generations of an event: a field is added, a name is split in two and
// an amount becomes cents, a field is renamed.
const (
	paidV1 = `{"type":"record","name":"Paid","fields":[{"name":"payer","type":"string"},{"name":"amount","type":"double"}]}`
	paidV2 = `{"type":"record","name":"Paid","fields":[{"name":"payer","type":"string"},{"name":"amount","type":"double"},{"name":"currency","type":"string","default":"EUR"}]}`
	paidV3 = `{"type":"record","name":"Paid","fields":[{"name":"first","type":"string"},{"name":"last","type":"string"},{"name":"cents","type":"long"},{"name":"currency","type":"string"}]}`
	paidV4 = `{"type":"record","name":"Paid","fields":[{"name":"givenName","type":"string","aliases":["first"]},{"name":"last","type":"string"},{"name":"cents","type":"long"},{"name":"currency","type":"string"},{"name":"note","type":["null","string"],"default":null}]}`
)

type payment2 struct {
	Payer    string  `avro:"payer"`
	Amount   float64 `avro:"amount"`
	Currency string  `avro:"currency"`
}

type payment3 struct {
	First    string `avro:"first"`
	Last     string `avro:"last"`
	Cents    int64  `avro:"cents"`
	Currency string `avro:"currency"`
}

type payment4 struct {
	GivenName string  `avro:"givenName"`
	Last      string  `avro:"last"`
	Cents     int64   `avro:"cents"`
	Currency  string  `avro:"currency"`
	Note      *string `avro:"note"`
}

func split(old payment2) (payment3, error) {
	first, last, ok := strings.Cut(old.Payer, " ")
	if !ok {
		return payment3{}, errors.New("a payer of one name")
	}
	return payment3{First: first, Last: last, Cents: int64(old.Amount * 100), Currency: old.Currency}, nil
}

func splitPaid() avro.Upcaster { return avro.Upcast("Payment", "Paid", 2, split) }

func files(versions ...string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for i, v := range versions {
		fsys[fmt.Sprintf("events/Payment/Paid.v%d.avsc", i+1)] = &fstest.MapFile{Data: []byte(v)}
	}
	return fsys
}

func paid(t testing.TB) *avro.EventType {
	t.Helper()
	contracts, err := avro.LoadContracts(files(paidV1, paidV2, paidV3, paidV4), splitPaid())
	require.NoError(t, err)
	category, _ := contracts.Category("Payment")
	typ, ok := category.Type("Paid")
	require.True(t, ok)
	return typ
}

func TestEveryReaderSeesTheNewestVersion(t *testing.T) {
	t.Parallel()
	typ := paid(t)
	goType, err := avro.NewGoType(typ, reflect.TypeFor[payment4]())
	require.NoError(t, err)
	for i, data := range []string{
		`{"payer":"Ada Lovelace","amount":12.5}`,
		`{"payer":"Ada Lovelace","amount":12.5,"currency":"EUR"}`,
		`{"first":"Ada","last":"Lovelace","cents":1250,"currency":"EUR"}`,
		`{"givenName":"Ada","last":"Lovelace","cents":1250,"currency":"EUR"}`,
	} {
		payload, err := encode(typ.Versions[i], data)
		require.NoError(t, err)
		stored := string(payload)
		writer := parse(t, typ.Versions[i].String()) // as a registry gives it
		upgrade, err := typ.Upgrade(writer)
		require.NoError(t, err)
		require.Equal(t, i+1, upgrade.Version())

		doc, err := upgrade.AppendJSON(nil, payload)
		require.NoError(t, err)
		require.JSONEq(t, `{"givenName":"Ada","last":"Lovelace","cents":1250,"currency":"EUR","note":null}`, string(doc))
		newest, err := upgrade.Append(nil, payload)
		require.NoError(t, err)
		doc, err = typ.Newest().AppendJSON(nil, newest)
		require.NoError(t, err)
		require.JSONEq(t, `{"givenName":"Ada","last":"Lovelace","cents":1250,"currency":"EUR","note":null}`, string(doc))

		var got payment4
		require.NoError(t, goType.Decode(writer, payload, &got))
		require.Equal(t, payment4{GivenName: "Ada", Last: "Lovelace", Cents: 1250, Currency: "EUR"}, got)

		selector, err := upgrade.Selector([][]string{{"cents"}, {"givenName"}})
		require.NoError(t, err)
		values := make([]avro.Value, 2)
		require.NoError(t, selector.Select(payload, values))
		require.EqualValues(t, 1250, values[0].Int)
		require.Equal(t, "Ada", string(values[1].Bytes))

		require.Equal(t, stored, string(payload), "stored bytes are never rewritten")
		for cut := range payload {
			_, err := upgrade.Append(nil, payload[:cut])
			require.ErrorIs(t, err, avro.ErrCorrupt)
			require.ErrorIs(t, selector.Select(payload[:cut], values), avro.ErrCorrupt)
		}
	}
}

func TestDataThatAnUpcasterRefusesIsAnErrorOfTheData(t *testing.T) {
	t.Parallel()
	typ := paid(t)
	payload, err := encode(typ.Versions[0], `{"payer":"Cher","amount":1}`)
	require.NoError(t, err)
	upgrade, err := typ.Upgrade(typ.Versions[0])
	require.NoError(t, err)
	var refused *avro.UpcastError
	_, err = upgrade.Append(nil, payload)
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, "Paid from version 2 to 3")

	panics := avro.Upcast("Payment", "Paid", 2, func(payment2) (payment3, error) { panic("nil map") })
	contracts, err := avro.LoadContracts(files(paidV1, paidV2, paidV3), panics)
	require.NoError(t, err)
	category, _ := contracts.Category("Payment")
	typ, _ = category.Type("Paid")
	upgrade, err = typ.Upgrade(typ.Versions[0])
	require.NoError(t, err)
	_, err = upgrade.Append(nil, payload)
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, "nil map")
}

func TestContractsThatDoNotFitTogetherAreRefusedWithTheFieldAndItsType(t *testing.T) {
	t.Parallel()
	narrow := record(`{"name":"n","type":"int"}`)
	config := func(fsys fstest.MapFS, level string) fstest.MapFS {
		fsys["events/Payment/category.yaml"] = &fstest.MapFile{Data: []byte("compatibility: " + level)}
		return fsys
	}
	named := func(schema string) string { return strings.Replace(schema, `"R"`, `"Paid"`, 1) }
	for name, c := range map[string]struct {
		fsys      fstest.MapFS
		upcasters []avro.Upcaster
		parts     []string
	}{
		"another type":                  {files(named(narrow), named(record(`{"name":"n","type":"string"}`))), nil, []string{"Paid.v2.avsc", "version 1", "field n", "int cannot be read as string", "upcaster from version 1 to 2"}},
		"no default":                    {files(paidV1, paidV2, paidV3), nil, []string{"Paid.v3.avsc", "version 2", "first", "string has no default"}},
		"the gap is transitive":         {files(named(record(`{"name":"a","type":"int"}`)), named(record(`{"name":"a","type":"int"},{"name":"b","type":"int","default":0}`)), named(record(`{"name":"b","type":"int"}`))), nil, []string{"v3.avsc", "version 1", "field b"}},
		"forward":                       {config(files(named(record(`{"name":"a","type":"int"},{"name":"b","type":"int"}`)), named(record(`{"name":"a","type":"int"}`))), "FULL"), nil, []string{"v2.avsc", "its data cannot be read with version 1", "field b", "int has no default"}},
		"nothing leads on":              {config(files(named(narrow), named(record(`{"name":"n","type":"string"}`))), "NONE"), nil, []string{"v1.avsc", "nothing leads", "int cannot be read as string", "upcaster from version 1 to 2"}},
		"no such level":                 {config(files(paidV1), "SIDEWAYS"), nil, []string{"category.yaml", "SIDEWAYS", "FULL_TRANSITIVE"}},
		"no news":                       {files(paidV1, paidV2, strings.Replace(paidV2, `"fields"`, `"doc": "other words", "fields"`, 1)), nil, []string{"v3.avsc", "same", "version 2"}},
		"an upcaster of nothing":        {files(paidV1, paidV2), []avro.Upcaster{avro.Upcast("Payment", "Refunded", 1, split)}, []string{"Payment/Refunded", "no such event type"}},
		"an upcaster too far":           {files(paidV1, paidV2), []avro.Upcaster{splitPaid()}, []string{"Payment/Paid from version 2", "the newest version is 2"}},
		"two upcasters":                 {files(paidV1, paidV2, paidV3), []avro.Upcaster{splitPaid(), splitPaid()}, []string{"from version 2", "two"}},
		"an upcaster that does not fit": {files(paidV1, paidV2, strings.Replace(paidV3, `"long"`, `"string"`, 1)), []avro.Upcaster{splitPaid()}, []string{"from version 2", "payment3", "Cents"}},
		"an upcaster is no excuse for what comes after": {files(paidV1, paidV2, paidV3, strings.Replace(paidV3, `"cents"`, `"euros"`, 1)), []avro.Upcaster{splitPaid()}, []string{"v4.avsc", "version 3", "euros", "long"}},
	} {
		_, err := avro.LoadContracts(c.fsys, c.upcasters...)
		require.Error(t, err, name)
		for _, part := range c.parts {
			require.ErrorContains(t, err, part, name)
		}
	}
}

func TestALevelThatIsNotTransitiveIsReadOverTheVersionsBetween(t *testing.T) {
	t.Parallel()
	fsys := files(strings.Replace(record(`{"name":"a","type":"int"}`), `"R"`, `"Paid"`, 1), strings.Replace(record(`{"name":"a","type":"int"},{"name":"b","type":"int","default":5}`), `"R"`, `"Paid"`, 1),
		strings.Replace(record(`{"name":"b","type":"long"}`), `"R"`, `"Paid"`, 1))
	fsys["events/Payment/category.yaml"] = &fstest.MapFile{Data: []byte("compatibility: backward")}
	contracts, err := avro.LoadContracts(fsys)
	require.NoError(t, err)
	category, _ := contracts.Category("Payment")
	typ, _ := category.Type("Paid")
	payload, err := encode(typ.Versions[0], `{"a":1}`)
	require.NoError(t, err)
	upgrade, err := typ.Upgrade(typ.Versions[0])
	require.NoError(t, err)
	doc, err := upgrade.AppendJSON(nil, payload)
	require.NoError(t, err)
	require.JSONEq(t, `{"b":5}`, string(doc))
}

// BenchmarkUpgrade is what a reader of an event pays: of the newest version, of an
// older one that Avro resolves, and of one that is upcast.
func BenchmarkUpgrade(b *testing.B) {
	typ := paid(b)
	for i, data := range []string{`{"payer":"Ada Lovelace","amount":12.5}`, `{"payer":"Ada Lovelace","amount":12.5,"currency":"EUR"}`,
		`{"first":"Ada","last":"Lovelace","cents":1250,"currency":"EUR"}`, `{"givenName":"Ada","last":"Lovelace","cents":1250,"currency":"EUR"}`} {
		payload, err := encode(typ.Versions[i], data)
		require.NoError(b, err)
		upgrade, err := typ.Upgrade(typ.Versions[i])
		require.NoError(b, err)
		kind := []string{"resolved and upcast", "upcast", "resolved", "newest"}[i]
		b.Run("select "+kind, func(b *testing.B) {
			selector, err := upgrade.Selector([][]string{{"cents"}, {"givenName"}})
			require.NoError(b, err)
			values := make([]avro.Value, 2)
			b.ReportAllocs()
			for b.Loop() {
				if err := selector.Select(payload, values); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("decode "+kind, func(b *testing.B) {
			goType, err := avro.NewGoType(typ, reflect.TypeFor[payment4]())
			require.NoError(b, err)
			b.ReportAllocs()
			for b.Loop() {
				var v payment4
				if err := goType.Decode(typ.Versions[i], payload, &v); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
