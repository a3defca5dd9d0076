package service

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/rebuilder"
)

// The bars follow a total that is not known at first, and that changes.
func TestBarsFollowTheTotal(t *testing.T) {
	t.Parallel()
	out, err := os.Create(filepath.Join(t.TempDir(), "terminal"))
	require.NoError(t, err)
	defer out.Close()
	s := newRebuildShow(out, false)
	s.bars = true
	for _, p := range []rebuilder.Progress{{}, {Total: 1000}, {Done: 480, Total: 2000}, {Done: 1500, Total: 1500}, {Done: 1500, Total: 2000}} {
		p.Partitions = []rebuilder.PartitionProgress{{Category: "User", Partition: 3, Done: p.Done, Total: p.Total}}
		s.show(rebuilder.Rebuild{Projection: "users", Version: 2, Step: rebuilder.StepLoad, Progress: p})
	}
	s.end()
	shown, err := os.ReadFile(out.Name())
	require.NoError(t, err)
	require.Contains(t, string(shown), "users v2  75 %")
	require.Contains(t, string(shown), "1500 / 2000")
}
