package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden renders anew")

// The three profiles are how the chart is used: to try it, beside CloudNativePG and
// Strimzi in production, and on brokers of a cloud. A change of the chart shows as
// a change of what they make.
func TestGoldenRenders(t *testing.T) {
	profiles, err := filepath.Glob("testdata/profiles/*.values.yaml")
	require.NoError(t, err)
	require.Len(t, profiles, 3)
	for _, path := range profiles {
		values, err := os.ReadFile(path)
		require.NoError(t, err)
		var b strings.Builder
		for _, o := range render(t, string(values)) {
			b.WriteString("---\n# " + o.file + "\n" + strings.TrimSpace(tidy(o.text)) + "\n")
		}
		golden := strings.TrimSuffix(path, ".values.yaml") + ".golden.yaml"
		if *update {
			require.NoError(t, os.WriteFile(golden, []byte(b.String()), 0o644))
		}
		want, err := os.ReadFile(golden)
		require.NoError(t, err)
		require.Equal(t, string(want), b.String(), "%s: `go test -run Golden . -update` writes it anew", path)
	}
}

// tidy takes out blank lines and the names of sources, which say nothing.
func tidy(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "# Source:") {
			b.WriteString(strings.TrimRight(line, " \n") + "\n")
		}
	}
	return b.String()
}
