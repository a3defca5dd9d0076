package avro_test

import (
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
)

// Kubernetes mounts a ConfigMap as links beside the folder that they lead to.
func TestContractsOfAMountedConfigMapAreRead(t *testing.T) {
	schema := &fstest.MapFile{Data: []byte(`{"type":"record","name":"UserCreated","fields":[{"name":"email","type":"string"}]}`)}
	contracts, err := avro.LoadContracts(fstest.MapFS{
		"events/User/UserCreated.v1.avsc":                         schema,
		"events/User/..2026_11_25_23_24_58.1028253039/Other.avsc": schema,
		"events/User/..data":                                      &fstest.MapFile{},
	})
	require.NoError(t, err)
	require.Len(t, contracts.Categories(), 1)
	require.Len(t, contracts.Categories()[0].Types, 1)
}
