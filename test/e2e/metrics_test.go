package e2e_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/test/platform"
)

// Alerts and dashboards stand on these names. All of them are there from the
// start, so that an alert on a missing series means a missing program.
func TestMetricsHaveTheirNames(t *testing.T) {
	stack := platform.New(t, devstack.Database(t), devstack.FakeKafka(t))
	dev := stack.Dev()
	client := platform.NewClient(t, dev.URL())
	answer, err := client.Do("POST", "/v1/streams/User/42/events", nil,
		[]byte(`{"events":[{"type":"UserCreated","data":{"id":"42","email":"ada@example.com","isActive":false,"name":"Ada"}}]}`))
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, answer.Status)
	var appended struct{ Token string }
	require.NoError(t, answer.Decode(&appended))
	for range 2 {
		var row map[string]any
		client.Get("/v1/read-models/rm_users/42", http.Header{"Refold-Token": {appended.Token}, "Refold-Wait": {"30s"}}, &row)
	}
	var missing []string
	require.True(t, platform.Eventually(60*time.Second, func() bool { // lag is measured every few seconds
		missing = lacking(t, metrics(t, dev))
		return len(missing) == 0
	}), "%v", missing)
	problems, err := promlint.New(bytes.NewReader(metrics(t, dev))).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
}

func metrics(t *testing.T, p *platform.Program) []byte {
	response, err := http.Get(p.AdminURL() + "/metrics")
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return text
}

// lacking returns the names that are promised and not there.
func lacking(t *testing.T, text []byte) (missing []string) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	require.NoError(t, err)
	for _, name := range []string{
		"refold_build_info",
		"refold_append_duration_seconds", "refold_append_batch_requests",
		"refold_relay_backlog_events", "refold_relay_backlog_seconds", "refold_relay_published_events_total", "refold_relay_fenced_total",
		"refold_relay_stopped_slots", "refold_old_snapshot_seconds",
		"refold_projection_lag_events", "refold_projection_lag_seconds", "refold_projection_applied_events_total", "refold_projection_apply_duration_seconds",
		"refold_projection_applied_timestamp_seconds", "refold_projection_parked_streams", "refold_projection_stopped_slots",
		"refold_projection_stopped_partitions", "refold_projection_fenced_total",
		"refold_query_duration_seconds", "refold_query_cache_lookups_total", "refold_query_followers",
	} {
		if families[name] == nil {
			missing = append(missing, name)
		}
	}
	return missing
}
