package eventstore_test

import (
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/registry"
)

func folder(t testing.TB, files map[string]string) *avro.Contracts {
	t.Helper()
	fsys := fstest.MapFS{}
	for name, schema := range files {
		fsys["events/User/"+name] = &fstest.MapFile{Data: []byte(schema)}
	}
	contracts, err := avro.LoadContracts(fsys)
	require.NoError(t, err)
	return contracts
}

// The log holds events of two versions, of a type that the new contracts lack, and
// of a schema that nobody knows; what fails is told by type and version.
func TestTheHistoryIsReadWithNewContracts(t *testing.T) {
	t.Parallel()
	const v1, v2, v3 = `{"type":"record","name":"Renamed","fields":[{"name":"n","type":"int"}]}`,
		`{"type":"record","name":"Renamed","fields":[{"name":"n","type":"long"}]}`,
		`{"type":"record","name":"Renamed","fields":[{"name":"n","type":"string"}]}`
	const gone = `{"type":"record","name":"Gone","fields":[]}`
	pool := devstack.MigratedDatabase(t)
	store := open(t, pool)
	schemas := registry.New(pool)
	id := func(schema string) int {
		parsed, err := avro.Parse([]byte(schema))
		require.NoError(t, err)
		id, err := schemas.Register(ctx, schema, parsed)
		require.NoError(t, err)
		return id
	}
	write := func(stream, typ string, schema, n int, body ...byte) {
		a := eventstore.Append{Category: "User", Stream: stream}
		for range n {
			a.Events = append(a.Events, eventstore.NewEvent{Type: typ, Value: append(avro.AppendFrame(nil, schema), body...)})
		}
		_, err := store.Append(ctx, request(a))
		require.NoError(t, err)
	}
	write("a", "Renamed", id(v1), 1500, 2)
	write("a", "Renamed", id(v2), 700, 4)
	write("a", "Renamed", id(v2), 1) // its payload is cut off
	write("b", "Gone", id(gone), 3)
	write("c", "Gone", 999, 1, 2)

	check := func(contracts *avro.Contracts, sample int) map[string]eventstore.History {
		lines, err := eventstore.CheckHistory(ctx, pool, schemas, contracts, sample)
		require.NoError(t, err)
		byName := make(map[string]eventstore.History)
		for _, line := range lines {
			byName[line.Type+string(rune('0'+line.SchemaVersion))] = line
		}
		return byName
	}
	all := check(folder(t, map[string]string{"Renamed.v1.avsc": v1, "Renamed.v2.avsc": v2}), 0)
	require.Len(t, all, 3)
	require.EqualValues(t, 1500, all["Renamed1"].Events)
	require.Zero(t, all["Renamed1"].Failed)
	require.EqualValues(t, 701, all["Renamed2"].Events)
	require.EqualValues(t, 1, all["Renamed2"].Failed)
	require.Contains(t, all["Renamed2"].Error, "ends inside a value")
	require.Contains(t, all["Renamed2"].Position, "/2201")
	require.EqualValues(t, 4, all["Gone0"].Failed)

	some := check(folder(t, map[string]string{"Renamed.v1.avsc": v1, "Renamed.v2.avsc": v2}), 64*32*4)
	require.Less(t, some["Renamed1"].Events, int64(1000))
	require.Greater(t, some["Renamed1"].Events, int64(30))
	require.EqualValues(t, 1, some["Renamed2"].Failed, "the last events are among a sample")
	require.EqualValues(t, 4, some["Gone0"].Events, "short slots are read whole")

	other := check(folder(t, map[string]string{"Renamed.v1.avsc": v3}), 0)
	require.EqualValues(t, 2201, other["Renamed0"].Failed)
	require.Contains(t, other["Renamed0"].Error, "n: int cannot be read as string")
}
