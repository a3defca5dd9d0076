package rebuilder

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
)

// Topics that Kafka's own tools have changed are refused, with the first event
// that is missing, and read from the event table where that is allowed.
func TestTopicsThatKafkasToolsHaveChanged(t *testing.T) {
	t.Parallel()
	kafka := devstack.OwnKafka(t, devstack.KafkaConfig{Nodes: 1})
	brokers := strings.Join(kafka.Brokers(), ",")
	tool := func(t *testing.T, class string, args ...string) {
		t.Helper()
		_, err := kafka.Tool(t.Context(), class, append([]string{"--bootstrap-server", brokers}, args...)...)
		require.NoError(t, err)
	}
	for name, c := range map[string]struct {
		change func(*testing.T, *world)
		why    string
	}{
		"truncated": {func(t *testing.T, w *world) {
			file := filepath.Join(t.TempDir(), "offsets.json")
			require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `{"version": 1, "partitions": [{"topic": %q, "partition": 2, "offset": 6}]}`, w.topic()), 0o600))
			tool(t, "org.apache.kafka.tools.DeleteRecordsCommand", "--offset-json-file", file)
		}, "goes on with seq"},
		"made anew": {func(t *testing.T, w *world) {
			tool(t, "org.apache.kafka.tools.TopicCommand", "--delete", "--topic", w.topic())
			require.Eventually(t, func() bool {
				_, err := kafka.Tool(t.Context(), "org.apache.kafka.tools.TopicCommand", "--bootstrap-server", brokers, "--create", "--topic", w.topic(), "--partitions", "4", "--replication-factor", "1")
				return err == nil
			}, 2*time.Minute, time.Second)
		}, "the relay had sent"},
		"compacted": {func(t *testing.T, w *world) {
			tool(t, "kafka.admin.ConfigCommand", "--alter", "--entity-type", "topics", "--entity-name", w.topic(), "--add-config",
				"cleanup.policy=compact,segment.ms=200,min.cleanable.dirty.ratio=0.001,max.compaction.lag.ms=200")
			require.Eventually(t, func() bool { // it takes another record to begin another segment
				for s := range 40 {
					w.append(w.event(fmt.Sprintf("user-%d", s), "again@example.com"))
				}
				plan, err := w.rebuilder().Plan(w.ctx, "own", Options{}, true)
				return err == nil && !plan.Complete
			}, 5*time.Minute, 3*time.Second)
		}, "goes on with seq"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setupOn(t, devstack.MigratedDatabase(t), kafka.Brokers(), ownYAML)
			w.history(40, 4)
			stop := w.live()
			w.settle("own", 1)
			stop()
			w.relayed()
			c.change(t, w)
			_, err := w.run("own", Options{})
			var missing *Incomplete
			require.ErrorAs(t, err, &missing)
			require.Positive(t, missing.First)
			require.ErrorContains(t, err, c.why)
			require.Equal(t, 1, w.active("own"))
			events := w.number(`select count(*) from refold.event`)
			done, err := w.run("own", Options{Source: FromEventStore, Promote: "manual"})
			require.NoError(t, err)
			require.Equal(t, Waiting, done.State)
			require.EqualValues(t, events, w.number(`select sum((data->>'events')::bigint)::bigint from refold.rows_own_v`+fmt.Sprint(done.Version)))
		})
	}
}
