package avro_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/strictjson"
)

type line struct {
	Item  string `avro:"item"`
	Count int32  `avro:"count"`
}

type order struct {
	Customer string            `avro:"customer"`
	Total    int64             `avro:"total"`
	Lines    []line            `avro:"lines"`
	Note     *string           `avro:"note"`
	Tags     map[string]string `avro:"tags"`
	At       time.Time         `avro:"at"`
}

const (
	orderV1 = `{"type":"record","name":"OrderPlaced","fields":[
		{"name":"client","type":"string"},{"name":"total","type":"int"},
		{"name":"lines","type":{"type":"array","items":{"type":"record","name":"Line","fields":[{"name":"item","type":"string"},{"name":"count","type":"int"},{"name":"gone","type":"string"}]}}},
		{"name":"tags","type":{"type":"map","values":"string"}},
		{"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}}]}`
	orderV2 = `{"type":"record","name":"OrderPlaced","fields":[
		{"name":"customer","type":"string","aliases":["client"]},{"name":"total","type":"long"},
		{"name":"lines","type":{"type":"array","items":{"type":"record","name":"Line","fields":[{"name":"item","type":"string"},{"name":"count","type":"int"}]}}},
		{"name":"note","type":["null","string"],"default":null},
		{"name":"tags","type":{"type":"map","values":"string"}},
		{"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}}]}`
)

func TestAGoStructReadsEveryVersionAndWritesTheNewest(t *testing.T) {
	t.Parallel()
	old, err := avro.Parse([]byte(orderV1))
	require.NoError(t, err)
	newest, err := avro.Parse([]byte(orderV2))
	require.NoError(t, err)
	again, err := avro.Parse([]byte(orderV2)) // as a registry gives it
	require.NoError(t, err)
	orders, err := avro.NewEventType("Order", "OrderPlaced", avro.BackwardTransitive, []*avro.Schema{old, newest})
	require.NoError(t, err)
	typ, err := avro.NewGoType(orders, reflect.TypeFor[order]())
	require.NoError(t, err)
	payload, err := old.EncodeJSON(nil, strictjson.NewReader([]byte(
		`{"client":"ada","total":7,"lines":[{"item":"x","count":2,"gone":"y"}],"tags":{"a":"b"},"at":"2026-01-02T03:04:05.000006Z"}`)))
	require.NoError(t, err)
	want := order{Customer: "ada", Total: 7, Lines: []line{{"x", 2}}, Tags: map[string]string{"a": "b"}, At: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)}
	for range 2 { // the second time the resolution is known
		var got order
		require.NoError(t, typ.Decode(old, payload, &got))
		got.At = got.At.UTC()
		require.Equal(t, want, got)
	}
	current, err := typ.Encode([]byte("frame"), want)
	require.NoError(t, err)
	require.Equal(t, "frame", string(current[:5]))
	for _, writer := range []*avro.Schema{newest, again} {
		var got order
		require.NoError(t, typ.Decode(writer, current[5:], &got))
		got.At = got.At.UTC()
		require.Equal(t, want, got)
		require.ErrorIs(t, typ.Decode(writer, current[5:len(current)-1], &got), avro.ErrCorrupt)
	}
	require.ErrorIs(t, typ.Decode(old, payload[:len(payload)-1], new(order)), avro.ErrCorrupt)
	bad := want
	bad.Customer = "\xff"
	_, err = typ.Encode(nil, bad)
	require.ErrorIs(t, err, avro.ErrCorrupt)
	other, err := avro.Parse([]byte(`{"type":"record","name":"Other","fields":[]}`))
	require.NoError(t, err)
	require.Error(t, typ.Decode(other, nil, new(order)))
}

func TestAGoStructThatDoesNotFitIsRefused(t *testing.T) {
	t.Parallel()
	schema, err := avro.Parse([]byte(orderV2))
	require.NoError(t, err)
	newest, err := avro.NewEventType("Order", "OrderPlaced", avro.BackwardTransitive, []*avro.Schema{schema})
	require.NoError(t, err)
	type shallow struct {
		Customer string `avro:"customer"`
		Total    int64  `avro:"total"`
		Lines    []struct {
			Item string `avro:"item"`
		} `avro:"lines"`
		Note *string           `avro:"note"`
		Tags map[string]string `avro:"tags"`
		At   time.Time         `avro:"at"`
	}
	_, err = avro.NewGoType(newest, reflect.TypeFor[shallow]())
	require.ErrorContains(t, err, "lines[].count")
	type narrow struct {
		Customer string            `avro:"customer"`
		Total    string            `avro:"total"`
		Lines    []line            `avro:"lines"`
		Note     *string           `avro:"note"`
		Tags     map[string]string `avro:"tags"`
		At       time.Time         `avro:"at"`
	}
	_, err = avro.NewGoType(newest, reflect.TypeFor[narrow]())
	require.ErrorContains(t, err, "Total")
	_, err = avro.NewGoType(newest, reflect.TypeFor[string]())
	require.ErrorContains(t, err, "no struct")
}
