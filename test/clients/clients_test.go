// Package clients_test reads refold's topics and registry with other people's
// tools, unchanged: Confluent's Python client (librdkafka, AvroDeserializer,
// registry client) and kcat.
package clients_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/test/platform"
)

const users = 40

// record is one line of consume.py.
type record struct {
	Key       string            `json:"key"`
	Partition int               `json:"partition"`
	Timestamp int64             `json:"timestamp"`
	Value     map[string]any    `json:"value"`
	Headers   map[string]string `json:"headers"`
}

func TestConfluentsPythonClientReadsTheTopicsAndUsesTheRegistry(t *testing.T) {
	python := prerequisite(t, "python3", "-c", "import confluent_kafka.schema_registry.avro")
	stack, writer, appended := appendUsers(t)

	cmd := exec.Command(python, "consume.py", strings.Join(stack.Brokers, ","), writer.URL()+"/schema-registry", stack.Prefix+".user", strconv.Itoa(users))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	require.NoError(t, err, "%s", errs.String())
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	require.Len(t, lines, users+1)

	for _, line := range lines[:users] {
		var r record
		require.NoError(t, json.Unmarshal(line, &r))
		want, ok := appended[r.Key]
		require.True(t, ok, "a record of an unknown stream: %s", line)
		delete(appended, r.Key)
		requireRecord(t, want, r)
	}
	require.Empty(t, appended, "streams that did not arrive")
	requireRegistered(t, lines[users])
}

func requireRecord(t *testing.T, want platform.Appended, r record) {
	t.Helper()
	require.Equal(t, map[string]any{"id": want.Stream, "email": want.Stream + "@example.com", "isActive": true, "name": ""}, r.Value)
	position := strings.Split(want.Events[0].Position, "/")
	slot, err := strconv.Atoi(position[1])
	require.NoError(t, err)
	require.Equal(t, slot%8, r.Partition)
	recorded, err := time.Parse(time.RFC3339, want.Events[0].Recorded)
	require.NoError(t, err)
	require.Equal(t, recorded.UnixMilli(), r.Timestamp)
	for name, value := range map[string]string{"ce_id": want.Events[0].ID, "ce_type": "UserCreated", "ce_subject": want.Stream, "ce_specversion": "1.0",
		"ce_slot": position[1], "ce_seq": position[2], "ce_streamversion": "1", "ce_recorded": want.Events[0].Recorded,
		"ce_actor": "tests", "content-type": "application/avro"} {
		require.Equal(t, value, r.Headers[name], name)
	}
	require.Equal(t, position[2] != "1", r.Headers["ce_previd"] != "", "the first of a slot has no predecessor, all others have")
}

func requireRegistered(t *testing.T, line []byte) {
	t.Helper()
	var got struct {
		ID, Again, Latest, Version, Missing int
		Subjects                            []string
		ByID                                string `json:"by_id"`
	}
	require.NoError(t, json.Unmarshal(line, &got))
	require.Positive(t, got.ID)
	require.Equal(t, got.ID, got.Again, "the same schema has the same id")
	require.Equal(t, got.ID, got.Latest)
	require.Equal(t, 1, got.Version)
	require.Equal(t, "OrderPlaced", got.ByID)
	require.Contains(t, got.Subjects, "shop.orders-value")
	require.Equal(t, 40401, got.Missing)
}

func TestKcatReadsKeysAndHeaders(t *testing.T) {
	kcat := prerequisite(t, "kcat", "-V")
	stack, _, appended := appendUsers(t)
	out, err := exec.Command(kcat, "-b", strings.Join(stack.Brokers, ","), "-C", "-t", stack.Prefix+".user", "-o", "beginning", "-e", "-q",
		"-c", strconv.Itoa(users), "-f", `%k|%h\n`).Output()
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	require.Len(t, lines, users)
	for _, line := range lines {
		key, headers, _ := strings.Cut(line, "|")
		want, ok := appended[key]
		require.True(t, ok, "a key of no stream: %s", line)
		require.Contains(t, headers, "ce_id="+want.Events[0].ID)
		require.Contains(t, headers, "ce_type=UserCreated")
	}
}

// appendUsers creates users on a stack of its own and returns what was answered,
// by stream, once all are in the topic.
func appendUsers(t *testing.T) (*platform.Stack, *platform.Program, map[string]platform.Appended) {
	t.Helper()
	stack := platform.New(t, devstack.Database(t), devstack.RealKafka(t))
	writer := stack.Writer()
	client := platform.NewClient(t, writer.URL())
	appended := make(map[string]platform.Appended)
	for i := range users {
		id := fmt.Sprintf("user-%d", i)
		body := fmt.Sprintf(`{"expectedVersion": "none", "events": [{"type": "UserCreated", "data": {"id": %q, "email": %q, "isActive": true}}], "metadata": {"actor": "tests"}}`,
			id, id+"@example.com")
		answer, err := client.Do(http.MethodPost, "/v1/streams/User/"+id+"/events", nil, []byte(body))
		require.NoError(t, err)
		require.Equal(t, http.StatusCreated, answer.Status, "%s", answer.Body)
		var a platform.Appended
		require.NoError(t, answer.Decode(&a))
		appended[id] = a
	}
	out, errs, code := stack.Run("writer", "verify")
	require.Zero(t, code, "%s%s", out, errs)
	return stack, writer, appended
}

// prerequisite finds a program that works with the given arguments. Without it
// the suite says so loudly, and fails in CI.
func prerequisite(t *testing.T, name string, probe ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		var out []byte
		if out, err = exec.Command(path, probe...).CombinedOutput(); err == nil {
			return path
		}
		err = fmt.Errorf("%w: %s", err, out)
	}
	message := fmt.Sprintf("PREREQUISITE MISSING: %s %v: %v (Debian: kcat; PyPI: confluent-kafka[avro,schemaregistry])", name, probe, err)
	if os.Getenv("CI") == "true" {
		t.Fatal(message)
	}
	fmt.Fprintln(os.Stderr, message)
	t.Skip(message)
	return ""
}
