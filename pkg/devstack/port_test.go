package devstack

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAFreeAddressIsGivenOnce(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for range 1000 {
		addr, err := FreeAddr()
		require.NoError(t, err)
		require.False(t, seen[addr], "%s went to two servers", addr)
		seen[addr] = true
	}
}
