package api_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// command sends a command to an account.
func command(t testing.TB, server *httptest.Server, id, name, body string, header map[string]string) answer {
	t.Helper()
	return send(t, server, "POST", "/v1/commands/User/"+id+"/"+name, header, body)
}

func TestCommandsOverHTTP(t *testing.T) {
	t.Parallel()
	server := setup(t)
	key := map[string]string{"Idempotency-Key": "k1", "Refold-Actor": "ada", "Refold-Correlation-Id": "signup-7"}
	created := command(t, server, "42", "create", `{"email":"ada@example.com","name":"Ada"}`, key)
	require.Equal(t, 201, created.status, created.raw)
	require.EqualValues(t, 1, created.body["version"])
	require.NotEmpty(t, created.body["token"])
	require.Len(t, created.body["events"], 1)
	again := command(t, server, "42", "create", `{"email":"ada@example.com","name":"Ada"}`, key)
	require.Equal(t, 200, again.status, again.raw)
	require.Equal(t, "true", again.header.Get("Idempotent-Replayed"))
	require.Equal(t, created.body, again.body)
	reused := command(t, server, "42", "create", `{"email":"other@example.com"}`, key)
	require.Equal(t, "/problems/idempotency-key-reused", reused.body["type"])

	require.Equal(t, 201, command(t, server, "42", "activate", "", nil).status)
	nothing := command(t, server, "42", "activate", "{}", nil)
	require.Equal(t, 200, nothing.status)
	require.Empty(t, nothing.body["events"])
	require.EqualValues(t, 2, nothing.body["version"])

	key["Idempotency-Key"] = "k2" // of a command that raises nothing now, and would later
	kept := command(t, server, "42", "changeEmail", `{"email":"ada@example.com"}`, key)
	require.Equal(t, 200, kept.status, kept.raw)
	require.Empty(t, kept.header.Get("Idempotent-Replayed"))
	require.Equal(t, 201, command(t, server, "42", "changeEmail", `{"email":"byron@example.com"}`, nil).status)
	late := command(t, server, "42", "changeEmail", `{"email":"ada@example.com"}`, key)
	require.Equal(t, 200, late.status, late.raw)
	require.Equal(t, "true", late.header.Get("Idempotent-Replayed"))
	require.Equal(t, kept.body, late.body)
	require.Equal(t, kept.header.Get("ETag"), late.header.Get("ETag"))
	require.Equal(t, "/problems/idempotency-key-reused", command(t, server, "42", "changeEmail", `{"email":"x@example.com"}`, key).body["type"])

	for range 5 {
		require.Equal(t, 201, command(t, server, "42", "logIn", `{"succeeded":false}`, nil).status)
	}
	refused := command(t, server, "42", "logIn", `{"succeeded":true}`, nil)
	require.Equal(t, 422, refused.status)
	require.Equal(t, "/problems/account-locked", refused.body["type"])
	require.Equal(t, "the account is locked", refused.body["detail"])
}

// Which of two keys a retry would bring is not known.
func TestTwoIdempotencyKeysAreRefused(t *testing.T) {
	t.Parallel()
	server := setup(t)
	for path, body := range map[string]string{"/v1/commands/User/42/create": `{"email":"ada@example.com"}`, stream: created("")} {
		req, err := http.NewRequest(http.MethodPost, server.URL+path, strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header["Idempotency-Key"] = []string{"k1", "k2"}
		res, err := server.Client().Do(req)
		require.NoError(t, err)
		res.Body.Close()
		require.Equal(t, http.StatusBadRequest, res.StatusCode, path)
	}
}

func TestBadCommands(t *testing.T) {
	t.Parallel()
	server := setup(t)
	require.Equal(t, 201, command(t, server, "a", "create", `{"email":"a@example.com"}`, nil).status)
	for _, c := range []struct {
		name, path, body string
		header           map[string]string
		status           int
		typ, pointer     string
	}{
		{"no such category", "Nope/a/create", `{}`, nil, 404, "unknown-category", ""},
		{"no such command", "User/a/explode", `{}`, nil, 404, "unknown-command", ""},
		{"bad id", "User/a%20b/create", `{}`, nil, 400, "bad-request", ""},
		{"missing aggregate", "User/b/activate", `{}`, nil, 404, "missing-aggregate", ""},
		{"aggregate exists", "User/a/create", `{"email":"c@example.com"}`, nil, 409, "aggregate-exists", ""},
		{"taken claim", "User/b/create", `{"email":"A@example.com"}`, nil, 409, "claim-taken", ""},
		{"another version", "User/a/activate", `{}`, map[string]string{"If-Match": `"7"`}, 409, "version-conflict", ""},
		{"malformed If-Match", "User/a/activate", `{}`, map[string]string{"If-Match": `7`}, 400, "bad-request", ""},
		{"If-Match * of what is not there", "User/b/create", `{"email":"b@example.com"}`, map[string]string{"If-Match": "*"}, 409, "version-conflict", ""},
		{"a reaction's key", "User/a/activate", `{}`, map[string]string{"Idempotency-Key": "reaction/x/1/1"}, 400, "bad-request", ""},
		{"missing member", "User/b/create", `{}`, nil, 422, "invalid-command", ""},
		{"another type", "User/b/create", `{"email":7}`, nil, 422, "invalid-command", "/email"},
		{"null", "User/b/create", `{"email":null}`, nil, 422, "invalid-command", "/email"},
		{"no object", "User/b/create", `[]`, nil, 422, "invalid-command", ""},
		{"unknown member", "User/b/create", `{"email":"b@example.com","x":1}`, nil, 400, "bad-request", "/x"},
		{"another case", "User/b/create", `{"Email":"b@example.com"}`, nil, 400, "bad-request", "/Email"},
		{"twice", "User/b/create", `{"email":"b@example.com","email":"c@example.com"}`, nil, 400, "bad-request", "/email"},
		{"trailing data", "User/b/create", `{"email":"b@example.com"} x`, nil, 400, "bad-request", ""},
		{"NUL", "User/b/create", `{"email":"b@example.com\u0000"}`, nil, 400, "bad-request", "/email"},
		{"no JSON", "User/b/create", `email`, nil, 400, "bad-request", ""},
		{"another content type", "User/b/create", `{}`, map[string]string{"Content-Type": "text/plain"}, 415, "unsupported-media-type", ""},
		{"bad key", "User/a/activate", `{}`, map[string]string{"Idempotency-Key": strings.Repeat("k", 256)}, 400, "bad-request", ""},
		{"bad actor", "User/a/activate", `{}`, map[string]string{"Refold-Actor": "\xff"}, 400, "bad-request", ""},
		{"too large", "User/a/create", `{"email":"` + strings.Repeat("a", 2<<20) + `"}`, nil, 413, "too-large", ""},
		{"broken rule", "User/b/create", `{"email":"nobody"}`, nil, 422, "email-malformed", ""},
		{"mistake in the domain", "User/a/panic", ``, nil, 503, "command-failed", ""},
		{"and nothing has happened", "User/a/logIn", `{"succeeded":true}`, nil, 422, "account-inactive", ""},
	} {
		a := send(t, server, "POST", "/v1/commands/"+c.path, c.header, c.body)
		require.Equal(t, c.status, a.status, "%s: %s", c.name, a.raw)
		require.Equal(t, "/problems/"+c.typ, a.body["type"], c.name)
		if c.pointer != "" {
			require.Equal(t, c.pointer, a.body["pointer"], c.name)
		}
	}
	require.Equal(t, 405, send(t, server, "GET", "/v1/commands/User/a/create", nil, "").status)
	var list []map[string]any
	require.NoError(t, json.Unmarshal([]byte(send(t, server, "GET", "/v1/commands", nil, "").raw), &list))
	require.Len(t, list, 7)
	require.Equal(t, "create", list[2]["name"])
	require.Equal(t, []any{"email"}, list[2]["schema"].(map[string]any)["required"])
	paths := send(t, server, "GET", "/openapi.json", nil, "").body["paths"].(map[string]any)
	for _, c := range list {
		operation := paths["/v1/commands/User/{id}/"+c["name"].(string)].(map[string]any)["post"].(map[string]any)
		require.Equal(t, c["schema"], operation["requestBody"].(map[string]any)["content"].(map[string]any)["application/json"].(map[string]any)["schema"])
	}
	require.Contains(t, paths, "/v1/append")
}

func TestTimeTravelAndAudit(t *testing.T) {
	t.Parallel()
	server := setup(t)
	require.Equal(t, 201, command(t, server, "42", "create", `{"email":"ada@example.com"}`, map[string]string{"Refold-Actor": "ada"}).status)
	changed := command(t, server, "42", "changeEmail", `{"email":"b@example.com"}`, map[string]string{"Refold-Actor": "bob", "Refold-Correlation-Id": "ticket-9"})
	require.Equal(t, 201, changed.status)
	recorded := changed.body["events"].([]any)[0].(map[string]any)["recorded"].(string)
	require.Equal(t, 201, command(t, server, "42", "delete", ``, nil).status)

	get := func(path string) answer { return send(t, server, "GET", "/v1/aggregates/User/42"+path, nil, "") }
	state := func(a answer) map[string]any {
		require.Equal(t, 200, a.status, a.raw)
		return a.body["state"].(map[string]any)
	}
	require.Equal(t, true, state(get(""))["deleted"])
	require.Equal(t, "ada@example.com", state(get("?version=1"))["email"])
	then := get("?at=" + url.QueryEscape(recorded))
	require.Equal(t, "b@example.com", state(then)["email"])
	require.EqualValues(t, 2, then.body["version"])
	require.Equal(t, "/problems/unknown-version", get("?version=4").body["type"])
	require.Equal(t, "/problems/unknown-version", get("?at=2001-01-01T00:00:00Z").body["type"])
	require.Equal(t, 400, get("?version=0").status)
	require.Equal(t, 400, get("?version=1&at=2001-01-01T00:00:00Z").status)
	require.Equal(t, 400, get("?at=yesterday").status)
	require.Equal(t, 404, send(t, server, "GET", "/v1/aggregates/User/43", nil, "").status)

	diff := get("/diff?from=1&to=3")
	require.Equal(t, []any{map[string]any{"path": "/deleted", "from": false, "to": true},
		map[string]any{"path": "/email", "from": "ada@example.com", "to": "b@example.com"}}, diff.body["changes"])
	require.Equal(t, []any{map[string]any{"path": "/email", "from": "", "to": "ada@example.com"}}, get("/diff?from=0&to=1").body["changes"])
	require.Equal(t, 400, get("/diff").status)
	require.Equal(t, 404, get("/diff?from=1&to=9").status)

	audit := get("/audit?limit=2")
	require.Equal(t, 200, audit.status, audit.raw)
	require.EqualValues(t, 2, audit.body["next"])
	entries := audit.body["entries"].([]any)
	second := entries[1].(map[string]any)
	require.Equal(t, "UserEmailChanged", second["type"])
	require.Equal(t, map[string]any{"actor": "bob", "correlationId": "ticket-9"}, second["metadata"])
	require.Equal(t, []any{map[string]any{"path": "/email", "from": "ada@example.com", "to": "b@example.com"}}, second["changes"])
	rest := get("/audit?after=2")
	require.Nil(t, rest.body["next"])
	require.Equal(t, []any{map[string]any{"path": "/deleted", "from": false, "to": true}}, rest.body["entries"].([]any)[0].(map[string]any)["changes"])
	require.Equal(t, 404, send(t, server, "GET", "/v1/aggregates/User/43/audit", nil, "").status)
}

func TestCausationAcrossStreams(t *testing.T) {
	t.Parallel()
	server := setup(t)
	act := func(id, cause string) string {
		a := command(t, server, id, "create", `{"email":"`+id+`@example.com"}`, map[string]string{"Refold-Causation-Id": cause})
		require.Equal(t, 201, a.status, a.raw)
		return a.body["events"].([]any)[0].(map[string]any)["id"].(string)
	}
	first := act("a", "order 7")
	second := act("b", first)
	third := act("c", second)
	act("d", second)
	chain := send(t, server, "GET", "/v1/events/"+second+"/causation", nil, "")
	require.Equal(t, 200, chain.status, chain.raw)
	require.Equal(t, "order 7", chain.body["origin"])
	require.Equal(t, first, chain.body["causes"].([]any)[0].(map[string]any)["id"])
	require.Len(t, chain.body["effects"], 2)
	require.Equal(t, false, chain.body["truncated"])
	all := send(t, server, "GET", "/v1/events/"+first+"/causation", nil, "")
	effects := all.body["effects"].([]any)
	require.Len(t, effects, 3)
	require.EqualValues(t, 1, effects[0].(map[string]any)["depth"])
	require.EqualValues(t, 2, effects[2].(map[string]any)["depth"])
	leaf := send(t, server, "GET", "/v1/events/"+third+"/causation", nil, "")
	require.Len(t, leaf.body["causes"], 2)
	require.Empty(t, leaf.body["effects"])
	require.Equal(t, 404, send(t, server, "GET", "/v1/events/0190a8c0-0000-7000-8000-000000000000/causation", nil, "").status)

	// Clients may write circles.
	one, other := "0190a8c0-0000-7000-8000-000000000001", "0190a8c0-0000-7000-8000-000000000002"
	for id, cause := range map[string]string{one: other, other: one} {
		body := `{"events":[{"type":"UserActivated","data":{},"id":"` + id + `"}],"metadata":{"causationId":"` + cause + `"}}`
		require.Equal(t, 201, send(t, server, "POST", "/v1/streams/User/circle/events", nil, body).status)
	}
	circle := send(t, server, "GET", "/v1/events/"+one+"/causation", nil, "")
	require.Equal(t, 200, circle.status)
	require.Len(t, circle.body["causes"], 1)
	require.Empty(t, circle.body["effects"])
}
