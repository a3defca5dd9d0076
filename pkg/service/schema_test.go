package service

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/schemas"
)

// `writer schema go --check` passes on what the command wrote, and on nothing else.
func TestSchemaGoChecksWhatItWrote(t *testing.T) {
	t.Parallel()
	s := &Settings{contracts: schemas.FS}
	file := filepath.Join(t.TempDir(), "events.go")
	check := goCommand{Package: "events", Out: file, Check: true}
	require.ErrorIs(t, check.Run(s), os.ErrNotExist)
	write := goCommand{Package: "events", Out: file}
	require.NoError(t, write.Run(s))
	require.NoError(t, check.Run(s))

	stale, err := os.ReadFile(file)
	require.NoError(t, err)
	stale = append(stale, "\n"...)
	require.NoError(t, os.WriteFile(file, stale, 0o600))
	require.ErrorContains(t, check.Run(s), file+" is not what the schemas make")
	after, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, stale, after, "a check writes nothing")
}
