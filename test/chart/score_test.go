package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// kubeScore is a program of its own, so that the old types of Kubernetes that it
// was made with stay out of this module.
const kubeScore = "github.com/zegl/kube-score/cmd/kube-score@v1.20.0"

// ignored are kube-score's tests that the chart does not follow, with the reason.
var ignored = map[string]string{
	"container-image-pull-policy":                   "tags are versions, and a registry that is away must not keep pods from starting",
	"container-ephemeral-storage-request-and-limit": "the programs write nothing, and the root is read-only",
	"cronjob-has-deadline":                          "the CronJobs are suspended templates",
	"deployment-has-poddisruptionbudget":            "a projector that is away only lags",
	"deployment-has-host-podantiaffinity":           "pods are spread by topologySpreadConstraints, which can be tuned",
}

func TestKubeScoreFindsNothingElse(t *testing.T) {
	golden, err := filepath.Glob("testdata/profiles/*.golden.yaml")
	require.NoError(t, err)
	var objects bytes.Buffer
	for _, path := range golden {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		objects.Reset()
		objects.Write(text)
		// A limit on CPU only makes pods slower.
		args := []string{"run", kubeScore, "score", "--output-format", "ci", "--ignore-container-cpu-limit"}
		for name := range ignored {
			args = append(args, "--ignore-test", name)
		}
		cmd := exec.Command("go", append(args, "-")...)
		cmd.Dir = t.TempDir() // outside of this module
		cmd.Stdin = &objects
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s:\n%s", path, out)
		require.NotContains(t, string(out), "[WARNING]", path)
	}
}
