package avro_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
	twmb "github.com/twmb/avro"

	"github.com/refoldhq/refold/pkg/avro"
)

func TestSamplesAreGoodPayloads(t *testing.T) {
	t.Parallel()
	schema := parse(t, everything)
	other, err := twmb.Parse(everything)
	require.NoError(t, err)
	r, again := rand.New(rand.NewPCG(7, 7)), rand.New(rand.NewPCG(7, 7))
	for range 500 {
		payload := schema.Sample(nil, r)
		require.Equal(t, payload, schema.Sample(nil, again))
		require.NoError(t, schema.Scan(payload))
		doc, err := schema.AppendJSON(nil, payload)
		require.NoError(t, err)
		back, err := encode(schema, string(doc))
		require.NoError(t, err, string(doc))
		require.NoError(t, schema.Scan(back))
		var value any
		rest, err := other.Decode(payload, &value)
		require.NoError(t, err)
		require.Empty(t, rest)
	}
}

func contractsOf(t testing.TB, fsys fstest.MapFS, upcasters ...avro.Upcaster) *avro.Contracts {
	t.Helper()
	contracts, err := avro.LoadContracts(fsys, upcasters...)
	require.NoError(t, err)
	return contracts
}

// golden adds the missing golden files of a folder to it.
func golden(t testing.TB, fsys fstest.MapFS, upcasters ...avro.Upcaster) fstest.MapFS {
	t.Helper()
	with := maps.Clone(fsys)
	require.NoError(t, contractsOf(t, fsys, upcasters...).MissingGolden(fsys, func(file string, t *avro.EventType, schema *avro.Schema) error {
		raw, err := t.NewGolden(schema, nil)
		with[file] = &fstest.MapFile{Data: raw}
		return err
	}))
	return with
}

func TestAShippedVersionNeitherChangesNorGoes(t *testing.T) {
	t.Parallel()
	total := avro.Upcast("Payment", "Paid", 2, func(old payment2) (payment3, error) {
		return payment3{First: old.Payer, Cents: int64(old.Amount), Currency: old.Currency}, nil
	})
	shipped := golden(t, files(paidV1, paidV2, paidV3), total)
	n, err := contractsOf(t, shipped, total).CheckGolden(shipped)
	require.NoError(t, err)
	require.Equal(t, 12, n)

	n, err = contractsOf(t, files(paidV1)).CheckGolden(files(paidV1))
	require.NoError(t, err)
	require.Zero(t, n, "nothing was shipped")

	change := func(edit func(fstest.MapFS)) error {
		fsys := maps.Clone(shipped)
		edit(fsys)
		_, err := contractsOf(t, fsys, total).CheckGolden(fsys)
		return err
	}
	const v1, v3 = "golden/Payment/Paid.v1.json", "golden/Payment/Paid.v3.json"
	require.ErrorContains(t, change(func(f fstest.MapFS) {
		f["events/Payment/Paid.v1.avsc"] = &fstest.MapFile{Data: []byte(strings.Replace(paidV1, `"double"`, `"float"`, 1))}
	}), "Paid.v1.avsc is")
	require.ErrorContains(t, change(func(f fstest.MapFS) { delete(f, v3) }), "Paid.v3.json: the version has no golden file yet")
	require.ErrorContains(t, change(func(f fstest.MapFS) { f["golden/Payment/Paid.v4.json"] = f[v3] }), "events/Payment/Paid.v4.avsc is gone")
	require.ErrorContains(t, change(func(f fstest.MapFS) { f["golden/Payment/Refunded.v1.json"] = f[v3] }), "Refunded.v1.avsc is gone")
	require.ErrorContains(t, change(func(f fstest.MapFS) {
		f[v1] = &fstest.MapFile{Data: bytes.Replace(f[v1].Data, []byte(`"amount": `), []byte(`"amount": 1`), 1)}
	}), "they meant")

	for content, want := range map[string]string{
		"":               "it is no JSON: line 1",
		"{\n":            "it is no JSON: line 1",
		"{\n \"a\": ]\n": "it is no JSON: line 2",
		`{"fingerprint":"` + fingerprintIn(t, shipped[v1].Data) + `","events":[{}]}`: "event 1",
	} {
		err := change(func(f fstest.MapFS) { f[v1] = &fstest.MapFile{Data: []byte(content)} })
		require.ErrorContains(t, err, v1+": "+want)
		require.NotErrorIs(t, err, io.EOF, "it would look like a lost connection")
		require.NotErrorIs(t, err, io.ErrUnexpectedEOF)
	}

	// An upcaster that comes later and does not take what was shipped.
	later := maps.Clone(golden(t, files(paidV1, paidV2)))
	later["events/Payment/Paid.v3.avsc"] = &fstest.MapFile{Data: []byte(paidV3)}
	_, err = contractsOf(t, later, splitPaid()).CheckGolden(later)
	require.ErrorContains(t, err, "cannot be read as version 3")
	require.ErrorContains(t, err, "a payer of one name")
}

// What an upcaster refuses was never shipped, so it is no golden event: samples that
// it takes are, or the examples of somebody who knows it.
func TestGoldenEventsAreThoseThatCanBeUpcast(t *testing.T) {
	t.Parallel()
	picky := avro.Upcast("Payment", "Paid", 2, func(old payment2) (payment3, error) {
		if old.Amount < 0 {
			return payment3{}, errors.New("a negative amount")
		}
		return payment3{First: old.Payer, Currency: old.Currency}, nil
	})
	shipped := golden(t, files(paidV1, paidV2, paidV3), picky)
	n, err := contractsOf(t, shipped, picky).CheckGolden(shipped)
	require.NoError(t, err)
	require.Equal(t, 12, n)

	only := avro.Upcast("Payment", "Paid", 2, func(old payment2) (payment3, error) {
		if old.Payer != "Ada Byron" {
			return payment3{}, errors.New("somebody unknown")
		}
		return payment3{First: "Ada", Currency: old.Currency}, nil
	})
	contracts := contractsOf(t, files(paidV1, paidV2, paidV3), only)
	category, _ := contracts.Category("Payment")
	typ, _ := category.Type("Paid")
	_, err = typ.NewGolden(typ.Versions[1], nil)
	require.ErrorContains(t, err, "no sample of version 2 of Paid can be read as the newest version: name an example")
	require.ErrorContains(t, err, "somebody unknown")
	for _, example := range []string{`{"payer":"Ada","amount":1,"currency":"EUR"}`, `{"payer":"Ada Byron"`, `{"payer":"Ada Byron","amount":1,"currency":"EUR"}}`} {
		_, err = typ.NewGolden(typ.Versions[1], [][]byte{[]byte(example)})
		require.Error(t, err, example)
	}
	raw, err := typ.NewGolden(typ.Versions[1], [][]byte{[]byte(`{"payer":"Ada Byron","amount":1,"currency":"EUR"}`)})
	require.NoError(t, err)
	require.Contains(t, string(raw), "Ada Byron")
}

func fingerprintIn(t *testing.T, file []byte) string {
	t.Helper()
	var g avro.Golden
	require.NoError(t, json.Unmarshal(file, &g))
	return g.Fingerprint
}
