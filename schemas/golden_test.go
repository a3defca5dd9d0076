package schemas_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
)

// What was shipped in the demo domain and that of the git histories is in logs, and
// stays readable.
func TestShippedVersionsStay(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{".", "../test/githistory"} {
		fsys := os.DirFS(dir)
		contracts, err := avro.LoadContracts(fsys)
		require.NoError(t, err)
		payloads, err := contracts.CheckGolden(fsys)
		require.NoError(t, err, dir)
		require.NotZero(t, payloads, dir)
	}
}
