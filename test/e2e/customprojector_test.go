package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/test/platform"
)

// The program in customprojector stands where a user's would: rows of a struct and
// of a function in Go are fed, queried and rebuilt as those of the contracts are.
// A stock query server shows them too.
func TestProjectionsInGoAreFedQueriedAndRebuilt(t *testing.T) {
	stack := platform.New(t, devstack.Database(t), devstack.FakeKafka(t))
	dir := t.TempDir()
	for program, source := range map[string]string{"writer": "./writer", "projector": "./test/e2e/customprojector"} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, program), source)
		build.Dir = platform.Root()
		out, err := build.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	stack.UseBinaries(dir)
	client := platform.NewClient(t, stack.Writer().URL())
	stack.Projector()
	queries := platform.NewClient(t, stack.Queries().URL())

	add := func(stream, typ, data string) {
		answer, err := client.Do("POST", "/v1/streams/User/"+stream+"/events", nil, fmt.Appendf(nil, `{"events": [{"type": %q, "data": %s, "time": "2026-01-31T12:00:00Z"}]}`, typ, data))
		require.NoError(t, err)
		require.Equal(t, http.StatusCreated, answer.Status, string(answer.Body))
	}
	add("1", "UserCreated", `{"id": "1", "email": "ada@old.example", "isActive": true, "name": "Ada"}`)
	add("1", "UserEmailChanged", `{"newEmail": "ada@new.example"}`)
	add("2", "UserCreated", `{"id": "2", "email": "bob@x.example", "isActive": true, "name": "Bob"}`)
	add("2", "UserDeleted", `{}`)

	row := func(model, key string) func() string {
		return func() string {
			answer, err := queries.Do("GET", "/v1/read-models/"+model+"/"+key, nil, nil)
			if err != nil || answer.Status != http.StatusOK {
				return fmt.Sprint(answer.Status, err)
			}
			return string(answer.Body)
		}
	}
	shows := func(want string, row func() string) {
		t.Helper()
		require.True(t, platform.Eventually(60*time.Second, func() bool {
			got := row()
			var a, b any
			return json.Unmarshal([]byte(got), &a) == nil && json.Unmarshal([]byte(want), &b) == nil && fmt.Sprint(a) == fmt.Sprint(b)
		}), "want %s", want)
	}
	contact := `{"id": "1", "email": "ada@new.example", "changes": 1, "since": "2026-01-31T12:00:00Z"}`
	domain := `{"name": "new.example", "former": ["old.example"]}`
	shows(contact, row("contacts", "1"))
	shows(domain, row("domains", "1"))
	require.True(t, platform.Eventually(60*time.Second, func() bool {
		answer, err := queries.Do("GET", "/v1/read-models/domains/2", nil, nil)
		return err == nil && answer.Status == http.StatusNotFound
	}), "the row that the fold removed is there")

	for _, model := range []string{"contacts", "domains"} {
		answer, err := queries.Do("POST", "/v1/projections/"+model+"/rebuilds", nil, []byte(`{"promote": "auto"}`))
		require.NoError(t, err)
		require.Equal(t, http.StatusAccepted, answer.Status, string(answer.Body))
		require.True(t, platform.Eventually(120*time.Second, func() bool {
			answer, err := queries.Do("GET", "/v1/read-models/"+model+"/1", nil, nil)
			return err == nil && answer.Status == http.StatusOK && answer.Header.Get("Refold-Projection-Version") == "2"
		}), "%s was not rebuilt", model)
	}
	shows(contact, row("contacts", "1"))
	shows(domain, row("domains", "1"))
	add("1", "UserEmailChanged", `{"newEmail": "ada@third.example"}`)
	shows(`{"name": "third.example", "former": ["old.example", "new.example"]}`, row("domains", "1"))
}
