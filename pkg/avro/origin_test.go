package avro_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
)

func TestAnOriginOutlivesNewNames(t *testing.T) {
	t.Parallel()
	record := func(name, rest string) *avro.Schema {
		schema, err := avro.Parse([]byte(fmt.Sprintf(`{"type":"record","name":%q,%s}`, name, rest)))
		require.NoError(t, err)
		return schema
	}
	versions := []*avro.Schema{
		record("Paid", `"fields":[{"name":"payer","type":"string"},{"name":"at","type":{"type":"record","name":"Place","fields":[{"name":"zip","type":"string"}]}}]`),
		record("Payment", `"aliases":["Paid"],"fields":[{"name":"from","type":"string","aliases":["payer"]},{"name":"place","aliases":["at"],"type":{"type":"record","name":"Place","fields":[{"name":"code","aliases":["zip"],"type":"string"}]}}]`),
		record("Payment", `"aliases":["Paid"],"fields":[{"name":"sender","type":"string","default":"","aliases":["from"]},{"name":"payer","type":"string","default":""},{"name":"place","aliases":["at"],"type":{"type":"record","name":"Place","fields":[{"name":"code","aliases":["zip"],"type":"string"}]}}]`),
	}
	for n, want := range []map[string]string{
		{"payer": "payer", "at": "at", "at.zip": "at.zip"},
		{"from": "payer", "place": "at", "place.code": "at.zip"},
		{"sender": "payer", "payer": "payer (of version 3)", "place": "at", "place.code": "at.zip"}, // another payer than the first
	} {
		typ, err := avro.NewEventType("Payment", versions[n].Name(), avro.BackwardTransitive, versions[:n+1])
		require.NoError(t, err)
		require.Equal(t, "Paid", typ.Origin())
		for path, origin := range want {
			require.Equal(t, origin, typ.OriginOf(strings.Split(path, ".")...), "%s in version %d", path, n+1)
		}
	}
}
