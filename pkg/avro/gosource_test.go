package avro_test

import (
	"math/big"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
)

// generated_test.go is what GoSource makes of these contracts: it compiles, the
// structs fit, and they carry every kind of value there and back.
func TestGeneratedStructsCarryEveryValue(t *testing.T) {
	t.Parallel()
	contracts := contractsOf(t, fstest.MapFS{
		"events/Test/Everything.v1.avsc": {Data: []byte(strings.Replace(everything, `"namespace": "test"`, `"namespace": "test", "doc": "Holds a value of each type."`, 1))},
		"events/Test/Paid.v1.avsc":       {Data: []byte(paidV1)}, "events/Test/Paid.v2.avsc": {Data: []byte(paidV2)}, "events/Test/Paid.v3.avsc": {Data: []byte(paidV3)},
	}, avro.Upcast("Test", "Paid", 2, func(PaidV2) (Paid, error) { return Paid{}, nil }))
	category, _ := contracts.Category("Test")
	source, err := avro.GoSource("avro_test", category.Types)
	require.NoError(t, err)
	present, err := os.ReadFile("generated_test.go")
	require.NoError(t, err)
	if string(present) != string(source) && os.Getenv("REFOLD_UPDATE") != "" {
		require.NoError(t, os.WriteFile("generated_test.go", source, 0o644))
	}
	require.Equal(t, string(source), string(present), "REFOLD_UPDATE=1 writes it")

	typ, _ := category.Type("Everything")
	goType, err := avro.NewGoType(typ, reflect.TypeFor[Everything]())
	require.NoError(t, err)
	payload, err := encode(typ.Newest(), everythingJSON)
	require.NoError(t, err)
	var v Everything
	require.NoError(t, goType.Decode(typ.Newest(), payload, &v))
	again, err := goType.Encode(nil, v)
	require.NoError(t, err)
	doc, err := typ.Newest().AppendJSON(nil, again)
	require.NoError(t, err)
	require.JSONEq(t, everythingJSON, string(doc))

	_, err = goType.Encode(nil, Everything{E: "RED", U: "0190a1b2-c3d4-7000-8000-0123456789ab"})
	require.Error(t, err, "a decimal that is nil is an error and no panic")
}

func TestGoNames(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"id": "ID", "userId": "UserID", "user_ids": "UserIDs", "isActive": "IsActive", "URL": "URL", "homeUrl": "HomeURL", "_x": "X", "iban": "IBAN", "HTTPStatus": "HTTPStatus", "_": "X"} {
		require.Equal(t, want, avro.GoName(name), name)
	}
	contracts := contractsOf(t, fstest.MapFS{"events/Test/R.v1.avsc": {Data: []byte(record(`{"name":"userId","type":"int"},{"name":"user_id","type":"int"}`))}})
	category, _ := contracts.Category("Test")
	_, err := avro.GoSource("x", category.Types)
	require.ErrorContains(t, err, "userId and user_id")
}

type itemOf struct {
	SKU   string `avro:"sku"`
	Count int32  `avro:"count"`
}

type checkout struct {
	Customer string            `avro:"customer" doc:"Who pays."`
	Total    *big.Rat          `avro:"total" decimal:"12,2"`
	Items    []itemOf          `avro:"items"`
	First    itemOf            `avro:"first"`
	Note     *string           `avro:"note"`
	Coupon   string            `avro:"coupon" default:"none" aliases:"voucher"`
	Points   int               `avro:"points" default:"7"`
	Tags     map[string]string `avro:"tags" default:"{}"`
	Hash     [4]byte           `avro:"hash"`
	Raw      []byte            `avro:"raw"`
	At       time.Time         `avro:"at"`
	Took     time.Duration     `avro:"took"`
	Ratio    float64           `avro:"ratio"`
	Paid     bool              `avro:"paid"`
}

func TestASchemaFromAStructTakesTheStruct(t *testing.T) {
	t.Parallel()
	text, err := avro.SchemaFromGo(reflect.TypeFor[checkout](), "CheckedOut", "shop")
	require.NoError(t, err)
	typ, err := avro.NewEventType("Shop", "CheckedOut", avro.BackwardTransitive, []*avro.Schema{parse(t, text)})
	require.NoError(t, err)
	require.Equal(t, "shop.CheckedOut", typ.Newest().FullName())
	goType, err := avro.NewGoType(typ, reflect.TypeFor[checkout]())
	require.NoError(t, err)
	note := "n"
	in := checkout{Customer: "ada", Total: big.NewRat(1250, 100), Items: []itemOf{{"a", 1}}, First: itemOf{"b", 2}, Note: &note, Coupon: "c", Points: 3, Tags: map[string]string{"k": "v"},
		Hash: [4]byte{1}, Raw: []byte{2}, At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Took: time.Minute, Ratio: 0.5, Paid: true}
	payload, err := goType.Encode(nil, in)
	require.NoError(t, err)
	var out checkout
	require.NoError(t, goType.Decode(typ.Newest(), payload, &out))
	out.At = out.At.UTC()
	require.Equal(t, in, out)
	doc, err := encode(typ.Newest(), `{"customer":"a","total":"1.00","items":[],"first":{"sku":"x","count":1},"hash":"AAAAAA==","raw":"","at":"2026-01-01T00:00:00Z","took":"00:00:01","ratio":1,"paid":false}`)
	require.NoError(t, err, "what has a default may be left out")
	require.NoError(t, goType.Decode(typ.Newest(), doc, &out))
	require.Equal(t, 7, out.Points)
	require.Equal(t, "none", out.Coupon)
	require.Nil(t, out.Note)

	for name, bad := range map[string]any{
		"untagged": struct{ A string }{},
		"interface": struct {
			A any `avro:"a"`
		}{},
		"no precision": struct {
			A *big.Rat `avro:"a"`
		}{},
		"recursion of names": struct {
			A struct{ B string } `avro:"a"`
		}{},
		"unsigned": struct {
			A uint64 `avro:"a"`
		}{},
	} {
		_, err := avro.SchemaFromGo(reflect.TypeOf(bad), "Bad", "")
		require.Error(t, err, name)
	}
}
