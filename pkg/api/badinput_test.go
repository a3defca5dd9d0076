package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/api"
)

// probes has an event with a field of every type that can be got wrong.
var probes = fstest.MapFS{"events/Probe/Probed.v1.avsc": &fstest.MapFile{Data: []byte(`{"type": "record", "name": "Probed", "namespace": "test", "fields": [
	{"name": "s", "type": "string", "default": ""},
	{"name": "i", "type": "int", "default": 0},
	{"name": "l", "type": "long", "default": 0},
	{"name": "d", "type": "double", "default": 0},
	{"name": "e", "type": {"type": "enum", "name": "Colour", "symbols": ["RED", "BLUE"]}, "default": "RED"},
	{"name": "m", "type": {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}, "default": "\u0000"},
	{"name": "t", "type": {"type": "long", "logicalType": "timestamp-millis"}, "default": 0},
	{"name": "b", "type": "bytes", "default": ""},
	{"name": "u", "type": ["null", "string", "long"], "default": null}
]}`)}}

// endpoint is one way to append: where a body's members and its first event stand
// in what is sent, and in pointers.
type endpoint struct {
	path, contentType string
	wrap              func(members string) string
	members           string // pointer to the members of an append
}

var endpoints = map[string]endpoint{
	"one stream":      {"/v1/streams/Probe/p/events", "application/json", func(m string) string { return "{" + m + "}" }, ""},
	"several streams": {"/v1/append", "application/json", func(m string) string { return `{"appends": [{"category": "Probe", "stream": "p", ` + m + `}]}` }, "/appends/0"},
	"line of an import": {"/v1/append", "application/x-ndjson", func(m string) string {
		return `{"appends": [{"category": "Probe", "stream": "p", ` + m + `}]}` + "\n"
	}, "/appends/0"},
}

// badInput is a row of the table: what is sent and how it is refused. The pointer
// is that below the members of the append; "-" stands for one that is not checked.
type badInput struct {
	name, members string
	status        int
	slug, pointer string
}

func withEvent(event string) string { return `"events": [` + event + `]` }

func withData(data string) string { return withEvent(`{"type": "Probed", "data": ` + data + `}`) }

func badInputs() []badInput {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	const data = "/events/0/data"
	return []badInput{
		{"nesting over 32 levels", withData(`{"s": ` + deep(40) + `}`), 400, "bad-request", "-"},
		{"duplicate key", withData(`{}`) + `, ` + withData(`{}`), 400, "bad-request", "/events"},
		{"duplicate key in data", withData(`{"s": "a", "s": "b"}`), 400, "bad-request", data + "/s"},
		{"unknown member", withData(`{}`) + `, "foo": 1`, 400, "bad-request", "/foo"},
		{"key in another case", withData(`{}`) + `, "Claims": []`, 400, "bad-request", "/Claims"},
		{"unknown member of an event", withEvent(`{"type": "Probed", "data": {}, "foo": 1}`), 400, "bad-request", "/events/0/foo"},
		{"invalid UTF-8", withData("{\"s\": \"\xff\"}"), 400, "bad-request", data + "/s"},
		{"invalid UTF-8 in a key", withData("{\"\xff\": 1}"), 400, "bad-request", "-"},
		{"lone surrogate", withData(`{"s": "\ud800"}`), 400, "bad-request", data + "/s"},
		{"NUL", withData(`{"s": "a\u0000"}`), 400, "bad-request", data + "/s"},
		{"NUL in a claim", withData(`{}`) + `, "claims": [{"namespace": "n", "value": "\u0000"}]`, 400, "bad-request", "/claims/0/value"},
		{"more than 34 digits", withData(`{"d": 1` + strings.Repeat("0", 40) + `}`), 400, "bad-request", data + "/d"},
		{"an exponent beyond 400", withData(`{"d": 1e401}`), 400, "bad-request", data + "/d"},
		{"int beyond its type", withData(`{"i": 2147483648}`), 422, "invalid-event-data", data + "/i"},
		{"long beyond its type", withData(`{"l": 9223372036854775808}`), 422, "invalid-event-data", data + "/l"},
		{"long beyond its type, as text", withData(`{"l": "9223372036854775808"}`), 422, "invalid-event-data", data + "/l"},
		{"1.0 for an integer", withData(`{"i": 1.0}`), 422, "invalid-event-data", data + "/i"},
		{"1e3 for an integer", withData(`{"l": 1e3}`), 422, "invalid-event-data", data + "/l"},
		{"infinite double", withData(`{"d": 1e400}`), 422, "invalid-event-data", data + "/d"},
		{"unknown symbol", withData(`{"e": "GREEN"}`), 422, "invalid-event-data", data + "/e"},
		{"decimal at another scale", withData(`{"m": "1.5"}`), 422, "invalid-event-data", data + "/m"},
		{"decimal beyond its precision", withData(`{"m": "123456789.00"}`), 422, "invalid-event-data", data + "/m"},
		{"too many digits of a second", withData(`{"t": "2023-11-08T16:12:44.1234Z"}`), 422, "invalid-event-data", data + "/t"},
		{"no base64", withData(`{"b": "%"}`), 422, "invalid-event-data", data + "/b"},
		{"no branch of a union", withData(`{"u": true}`), 422, "invalid-event-data", data + "/u"},
		{"unknown field", withData(`{"x": 1}`), 422, "invalid-event-data", data + "/x"},
		{"wrong type", withData(`{"s": 1}`), 422, "invalid-event-data", data + "/s"},
		{"data before the type", withEvent(`{"data": {"s": 1}, "type": "Probed"}`), 422, "invalid-event-data", data + "/s"},
		{"data is no object", withData(`[]`), 422, "invalid-event-data", data},
		{"unknown event type", withEvent(`{"type": "Nope", "data": {}}`), 422, "unknown-event-type", "-"},
		{"no type", withEvent(`{"data": {}}`), 400, "bad-request", "/events/0"},
		{"no data", withEvent(`{"type": "Probed"}`), 400, "bad-request", "/events/0"},
		{"malformed event id", withEvent(`{"type": "Probed", "data": {}, "id": "x"}`), 400, "bad-request", "/events/0/id"},
		{"malformed time", withEvent(`{"type": "Probed", "data": {}, "time": "yesterday"}`), 422, "invalid-event-data", "/events/0/time"},
		{"no events", `"events": []`, 400, "bad-request", "-"},
		{"1,001 events", `"events": [` + strings.Repeat(`{"type": "Probed", "data": {}},`, 1000) + `{"type": "Probed", "data": {}}]`, 400, "bad-request", "/events/1000"},
		{"negative version", withData(`{}`) + `, "expectedVersion": -1`, 400, "bad-request", "/expectedVersion"},
		{"version that is no integer", withData(`{}`) + `, "expectedVersion": 1.5`, 400, "bad-request", "/expectedVersion"},
		{"unknown word for a version", withData(`{}`) + `, "expectedVersion": "some"`, 400, "bad-request", "/expectedVersion"},
		{"wrong version", withData(`{}`) + `, "expectedVersion": 7`, 409, "version-conflict", "-"},
		{"an id twice", `"events": [` + strings.TrimSuffix(strings.Repeat(`{"type": "Probed", "data": {}, "id": "01900000-0000-7000-8000-000000000001"},`, 2), ",") + `]`, 409, "event-id-taken", "-"},
		{"claim without a value", withData(`{}`) + `, "claims": [{"namespace": "n"}]`, 400, "bad-request", "/claims/0"},
	}
}

func TestBadInputIsRefusedWithItsPlaceAndWritesNothing(t *testing.T) {
	t.Parallel()
	for name, at := range endpoints {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, api.Config{}, probes, false)
			for _, c := range badInputs() {
				t.Run(c.name, func(t *testing.T) {
					a := send(t, s.server, http.MethodPost, at.path, map[string]string{"Content-Type": at.contentType}, at.wrap(c.members))
					requireProblem(t, a, at, c)
				})
			}
			requireNothing(t, s)
		})
	}
}

func requireProblem(t *testing.T, a answer, at endpoint, c badInput) {
	t.Helper()
	status, doc := a.status, a.body
	if at.contentType == "application/x-ndjson" {
		var line struct {
			Line, Status int
			Problem      map[string]any
		}
		first, _, _ := strings.Cut(a.raw, "\n")
		require.Equal(t, http.StatusOK, a.status, a.raw)
		require.NoError(t, json.Unmarshal([]byte(first), &line), a.raw)
		require.Equal(t, 1, line.Line)
		status, doc = line.Status, line.Problem
	} else {
		require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
	}
	require.Equal(t, c.status, status, a.raw)
	require.Equal(t, "/problems/"+c.slug, doc["type"], a.raw)
	require.EqualValues(t, c.status, doc["status"])
	if c.pointer != "-" {
		require.Equal(t, at.members+c.pointer, doc["pointer"], a.raw)
	}
	for _, secret := range []string{"SQLSTATE", "goroutine", "refold.event"} {
		require.NotContains(t, a.raw, secret)
	}
}

// requireNothing wants a log, and all that keeps it unique, without a row.
func requireNothing(t *testing.T, s served) {
	t.Helper()
	for _, table := range []string{"event", "chosen_id", "idempotency_key", "claim"} {
		var n int
		require.NoError(t, s.pool.QueryRow(t.Context(), `select count(*) from refold.`+table).Scan(&n))
		require.Zero(t, n, table)
	}
}

// What concerns the request as a whole and not what is appended.
func TestBadRequestsAreRefused(t *testing.T) {
	t.Parallel()
	s := serve(t, api.Config{}, probes, false)
	good := "{" + withData(`{}`) + "}"
	const path = "/v1/streams/Probe/p/events"
	for name, c := range map[string]struct {
		method, path string
		header       map[string]string
		body         string
		status       int
		slug         string
	}{
		"no JSON":               {"POST", path, nil, `{`, 400, "bad-request"},
		"trailing data":         {"POST", path, nil, good + "x", 400, "bad-request"},
		"no object":             {"POST", path, nil, `[]`, 400, "bad-request"},
		"empty body":            {"POST", path, map[string]string{"Content-Type": "application/json"}, ``, 400, "bad-request"},
		"body over the limit":   {"POST", path, nil, `{"x": "` + strings.Repeat("x", 1<<20) + `"}`, 413, "too-large"},
		"unpacked over it":      {"POST", path, map[string]string{"Content-Encoding": "gzip"}, string(zipped(strings.Repeat(" ", 2<<20))), 413, "too-large"},
		"broken gzip":           {"POST", path, map[string]string{"Content-Encoding": "gzip"}, string(zipped(good)[:20]), 400, "bad-request"},
		"content type":          {"POST", path, map[string]string{"Content-Type": "text/plain"}, good, 415, "unsupported-media-type"},
		"content encoding":      {"POST", path, map[string]string{"Content-Encoding": "br"}, good, 415, "unsupported-media-type"},
		"accept":                {"POST", path, map[string]string{"Accept": "text/html"}, good, 406, "not-acceptable"},
		"method":                {"PUT", path, nil, good, 405, "method-not-allowed"},
		"method of append":      {"GET", "/v1/append", nil, "", 405, "method-not-allowed"},
		"empty key":             {"POST", path, map[string]string{"Idempotency-Key": ""}, good, 400, "bad-request"},
		"long key":              {"POST", path, map[string]string{"Idempotency-Key": strings.Repeat("k", 256)}, good, 400, "bad-request"},
		"a reaction's key":      {"POST", path, map[string]string{"Idempotency-Key": "reaction/x/1/1"}, good, 400, "bad-request"},
		"malformed If-Match":    {"POST", path, map[string]string{"If-Match": "3"}, good, 400, "bad-request"},
		"weak If-Match":         {"POST", path, map[string]string{"If-Match": `W/"3"`}, good, 400, "bad-request"},
		"contradiction":         {"POST", path, map[string]string{"If-Match": `"4"`}, `{"expectedVersion": 3, ` + withData(`{}`) + `}`, 400, "bad-request"},
		"If-Match refused":      {"POST", path, map[string]string{"If-Match": `"4"`}, good, 409, "version-conflict"},
		"unknown category":      {"POST", "/v1/streams/Nope/p/events", nil, good, 404, "unknown-category"},
		"stream id":             {"POST", "/v1/streams/Probe/a%20b/events", nil, good, 400, "bad-request"},
		"stream id of slashes":  {"POST", "/v1/streams/Probe/a%2Fb/events", nil, good, 400, "bad-request"},
		"long stream id":        {"POST", "/v1/streams/Probe/" + strings.Repeat("a", 401) + "/events", nil, good, 400, "bad-request"},
		"stream twice":          {"POST", "/v1/append", nil, `{"appends": [` + strings.TrimSuffix(strings.Repeat(`{"category": "Probe", "stream": "a", `+withData(`{}`)+`},`, 2), ",") + `]}`, 400, "bad-request"},
		"no appends":            {"POST", "/v1/append", nil, `{"appends": []}`, 400, "bad-request"},
		"unknown category too":  {"POST", "/v1/append", nil, `{"appends": [{"category": "Nope", "stream": "a", ` + withData(`{}`) + `}]}`, 404, "unknown-category"},
		"dots for a stream":     {"POST", "/v1/append", nil, `{"appends": [{"category": "Probe", "stream": "..", ` + withData(`{}`) + `}]}`, 400, "bad-request"},
		"key outside of import": {"POST", "/v1/append", nil, `{"idempotencyKey": "x"}`, 400, "bad-request"},
	} {
		t.Run(name, func(t *testing.T) {
			a := send(t, s.server, c.method, c.path, c.header, c.body)
			require.Equal(t, c.status, a.status, a.raw)
			require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
			require.Equal(t, "/problems/"+c.slug, a.body["type"], a.raw)
		})
	}
	requireNothing(t, s)
}

// int64 stays exact both ways, as a number and as text.
func TestLongsStayExact(t *testing.T) {
	t.Parallel()
	s := serve(t, api.Config{}, probes, false)
	for i, text := range []string{"9223372036854775807", `"9223372036854775807"`, "-9223372036854775808"} {
		path := fmt.Sprintf("/v1/streams/Probe/p%d/events", i)
		require.Equal(t, 201, send(t, s.server, http.MethodPost, path, nil, "{"+withData(`{"l": `+text+`}`)+"}").status)
		require.Contains(t, send(t, s.server, http.MethodGet, path, nil, "").raw, `"l":`+strings.Trim(text, `"`))
	}
}
