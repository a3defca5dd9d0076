package projection_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// Generations of a contract: a field is added; the type and the field payer get
// other names; an amount in euros becomes one in cents.
var (
	paidV1 = `{"type":"record","name":"Paid","fields":[{"name":"payer","type":"string"},{"name":"amount","type":"double"}]}`
	paidV2 = `{"type":"record","name":"Paid","fields":[{"name":"payer","type":"string"},{"name":"amount","type":"double"},{"name":"currency","type":"string","default":"EUR"}]}`
	paidV3 = `{"type":"record","name":"PaymentReceived","aliases":["Paid"],"fields":[{"name":"from","type":"string","aliases":["payer"]},{"name":"amount","type":"double"},{"name":"currency","type":"string","default":"EUR"}]}`
	paidV4 = `{"type":"record","name":"PaymentReceived","aliases":["Paid"],"fields":[{"name":"from","type":"string","aliases":["payer"]},{"name":"cents","type":"long"},{"name":"currency","type":"string","default":"EUR"}]}`
)

type paid3 struct {
	From     string  `avro:"from"`
	Amount   float64 `avro:"amount"`
	Currency string  `avro:"currency"`
}

type paid4 struct {
	From     string `avro:"from"`
	Cents    int64  `avro:"cents"`
	Currency string `avro:"currency"`
}

func generation(t testing.TB, n int) *avro.Contracts {
	t.Helper()
	fsys := fstest.MapFS{}
	for i, name := range []string{"Paid.v1", "Paid.v2", "PaymentReceived.v3", "PaymentReceived.v4"}[:n] {
		fsys["events/Payment/"+name+".avsc"] = &fstest.MapFile{Data: []byte([]string{paidV1, paidV2, paidV3, paidV4}[i])}
	}
	var upcasters []avro.Upcaster
	if n == 4 {
		upcasters = append(upcasters, avro.Upcast("Payment", "PaymentReceived", 3, func(old paid3) (paid4, error) {
			return paid4{From: old.From, Cents: int64(old.Amount * 100), Currency: old.Currency}, nil
		}))
	}
	contracts, err := avro.LoadContracts(fsys, upcasters...)
	require.NoError(t, err)
	return contracts
}

func compileText(t testing.TB, contracts *avro.Contracts, text string) *projection.Plan {
	t.Helper()
	definitions, err := projection.ParseDefinitions("test.yaml", []byte(text))
	require.NoError(t, err)
	plan, err := projection.Compile(definitions[0], contracts)
	require.NoError(t, err)
	return plan
}

// rowOf folds one payment of each generation, as a log holds it, into a row.
func rowOf(t testing.TB, plan *projection.Plan, contracts *avro.Contracts) string {
	t.Helper()
	category, _ := contracts.Category("Payment")
	typ, ok := category.Type("Paid") // the name under which the first are stored
	require.True(t, ok)
	folder, row := plan.NewFolder(), plan.NewRow()
	for i, schema := range typ.Versions {
		data := []string{`{"payer":"Ada","amount":1.5}`, `{"payer":"Bob","amount":2,"currency":"USD"}`, `{"from":"Cher","amount":4}`, `{"from":"Dan","cents":800}`}[i]
		value, err := schema.EncodeJSON(avro.AppendFrame(nil, 1), strictjson.NewReader([]byte(data)))
		require.NoError(t, err)
		e := event.Event{ID: event.NewID(), Category: "Payment", Stream: "1", Version: int64(i + 1), Seq: int64(i + 1), Type: schema.Name(), Value: value}
		require.True(t, plan.Uses(e.Category, e.Type))
		_, err = folder.Begin(&e, schema)
		require.NoError(t, err)
		require.NoError(t, folder.Apply(row))
	}
	return string(row.AppendData(nil))
}

func TestADefinitionOutlivesNewNamesOfTypesAndFields(t *testing.T) {
	t.Parallel()
	const old = "projection: payments\ncategory: Payment\nfields:\n  payer: {from: [Paid]}\n  sum: {add: Paid.amount}\n  type: {from: [Paid.$type]}\n"
	const now = "projection: payments\ncategory: Payment\nfields:\n  payer: {from: [PaymentReceived.from]}\n  sum: {add: PaymentReceived.amount}\n  type: {from: [PaymentReceived.$type]}\n"
	third := generation(t, 3)
	written, renamed := compileText(t, third, old), compileText(t, third, now)
	require.Equal(t, renamed.Hash(), written.Hash(), "it is the same plan, so nothing is rebuilt")
	require.JSONEq(t, `{"payer":"Cher","sum":7.5,"type":"PaymentReceived"}`, rowOf(t, written, third))
}

// The catalogue keeps the hash of the plan that a version was made by, under the
// names of then: another one would stop the version until it is rebuilt.
func TestAPlanIsTheSameBeforeAndAfterARename(t *testing.T) {
	t.Parallel()
	before, after := generation(t, 2), generation(t, 3)
	for what, text := range map[string]string{
		"fields":   "fields:\n  payer: {from: [Paid]}\n  sum: {add: Paid.amount}\n  big: {count: {event: Paid, when: amount > 9.0}}\n  own: {count: {event: Paid, when: payer == \"Ada\"}}\nremove: [{event: Paid, when: amount < 0.0}]\n",
		"key":      "key: payer\nfields:\n  payer: {key: true}\n  n: {count: Paid}\n",
		"children": "fields:\n  payers:\n    children:\n      key: payer\n      fields:\n        last: {from: [Paid.currency]}\n",
		"maps":     "fields:\n  currencies: {put: {event: Paid, key: payer, value: currency}}\n",
	} {
		text = "projection: payments\ncategory: Payment\n" + text
		require.Equal(t, compileText(t, before, text).Hash(), compileText(t, after, text).Hash(), what)
	}
}

func TestAFoldSeesUpcastDataOnly(t *testing.T) {
	t.Parallel()
	contracts := generation(t, 4)
	plan := compileText(t, contracts, "projection: payments\ncategory: Payment\nfields:\n  payers: {first: PaymentReceived.from}\n  cents: {add: PaymentReceived.cents}\n  currency: {from: [PaymentReceived]}\n  n: {count: \"*\"}\n")
	require.JSONEq(t, `{"payers":"Ada","cents":1550,"currency":"EUR","n":4}`, rowOf(t, plan, contracts))

	definitions, err := projection.ParseDefinitions("test.yaml", []byte("projection: payments\ncategory: Payment\nfields:\n  sum: {add: Paid.amount}\n"))
	require.NoError(t, err)
	_, err = projection.Compile(definitions[0], contracts)
	require.ErrorContains(t, err, "PaymentReceived has no field amount")
}

func TestATypeThatIsRenamedGoesOnWhereTheOldNameEnds(t *testing.T) {
	t.Parallel()
	_, err := avro.LoadContracts(fstest.MapFS{
		"events/Payment/Paid.v1.avsc":            {Data: []byte(paidV1)},
		"events/Payment/PaymentReceived.v2.avsc": {Data: []byte(strings.Replace(paidV3, `"aliases":["Paid"],`, "", 1))},
	})
	require.ErrorContains(t, err, "PaymentReceived.v1.avsc: the version is missing")
	require.ErrorContains(t, err, "aliases of version 2")
}
