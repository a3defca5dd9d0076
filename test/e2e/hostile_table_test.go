package e2e_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// hostile is one thing that a client may send and must not get away with.
type hostile struct {
	row          string // of the table "Bad input over HTTP"
	name         string
	method, path string
	header       http.Header
	body         string
	status       int
	problem      string // the type without /problems/; empty where it is not ours to say
	pointer      string
}

const (
	victimPath = "/v1/streams/Probe/victim/events"
	manyPath   = "/v1/append"
	probesPath = "/v1/read-models/probes"
)

// event returns a body for one stream, and many one for POST /v1/append.
func event(data string) string { return `{"events": [{"type": "Probed", "data": ` + data + `}]}` }

func many(members string) string {
	return `{"appends": [{"category": "Probe", "stream": "victim", ` + members + `}]}`
}

func packed(text string) string {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	io.WriteString(w, text)
	w.Close()
	return out.String()
}

// hostiles are the rows of reliability.md's table, and what else was thought of.
func hostiles() []hostile {
	var list []hostile
	var row string
	post := func(name, path, body string, status int, problem, pointer string, header ...string) {
		h := http.Header{}
		for i := 0; i+1 < len(header); i += 2 {
			h[header[i]] = append(h[header[i]], header[i+1])
		}
		list = append(list, hostile{row, name, http.MethodPost, path, h, body, status, problem, pointer})
	}
	other := func(name, method, path string, status int, problem, pointer string, header ...string) {
		post(name, path, "", status, problem, pointer, header...)
		list[len(list)-1].method = method
	}
	get := func(name, path, pointer string) { other(name, http.MethodGet, path, 400, "bad-request", pointer) }
	bad := func(name, body, pointer string) { post(name, victimPath, body, 400, "bad-request", pointer) }
	data := func(name, text, pointer string) { bad(name, event(text), "/events/0/data"+pointer) }
	wrong := func(name, text, pointer string) {
		post(name, victimPath, event(text), 422, "invalid-event-data", "/events/0/data"+pointer)
	}
	deep := func(open, shut string, n int) string { return strings.Repeat(open, n) + "1" + strings.Repeat(shut, n) }

	row = "body over the limit"
	post("plain", victimPath, event(`{"n": 1, "s": "`+strings.Repeat("x", 1<<20)+`"}`), 413, "too-large", "")
	post("no JSON, so it was not parsed", victimPath, strings.Repeat("x", 1<<20+1), 413, "too-large", "")
	post("packed", victimPath, packed(strings.Repeat(" ", 64<<20)), 413, "too-large", "", "Content-Encoding", "gzip")
	post("of several streams", manyPath, strings.Repeat(" ", 1<<20+1), 413, "too-large", "")
	post("a record beyond the topic's limit", victimPath, event(`{"n": 1, "s": "`+strings.Repeat("x", 950_000)+`"}`), 413, "too-large", "")
	post("broken gzip", victimPath, packed(event(`{"n": 1}`))[:30], 400, "bad-request", "", "Content-Encoding", "gzip")

	row = "nesting, trailing data, duplicate and unknown keys"
	bad("arrays", event(`{"n": 1, "a": `+deep("[", "]", 33)+`}`), "")
	bad("a hundred thousand levels", event(`{"n": 1, "a": `+deep("[", "]", 100_000)+`}`), "")
	bad("before the type", `{"events": [{"data": `+deep(`{"x":`, "}", 40)+`, "type": "Probed"}]}`, "")
	bad("trailing data", event(`{"n": 1}`)+`{}`, "")
	bad("trailing NUL", event(`{"n": 1}`)+"\x00", "")
	bad("a byte order mark", "\ufeff"+event(`{"n": 1}`), "")
	bad("UTF-16", "\xff\xfe{\x00}\x00", "")
	data("a key twice", `{"n": 1, "n": 2}`, "/n")
	data("a key twice, once escaped", `{"n": 1, "\u006e": 2}`, "/n")
	bad("events twice", `{"events": [{"type": "Probed", "data": {"n": 1}}], "events": [{"type": "Probed", "data": {"n": 2}}]}`, "/events")
	bad("unknown member", `{"events": [{"type": "Probed", "data": {"n": 1}}], "__proto__": {}}`, "/__proto__")
	bad("another case", `{"Events": [{"type": "Probed", "data": {"n": 1}}]}`, "/Events")
	bad("another case in an event", `{"events": [{"Type": "Probed", "data": {"n": 1}}]}`, "/events/0/Type")
	bad("no object", `[]`, "")
	bad("nothing", ``, "")
	bad("half", `{"events": [{"type": "Probed", "data": {"n": 1`, "/events/0/data/n")

	row = "invalid UTF-8, lone surrogates, NUL"
	data("invalid UTF-8", "{\"n\": 1, \"s\": \"\xff\"}", "/s")
	data("overlong", "{\"n\": 1, \"s\": \"\xc0\x80\"}", "/s")
	data("a surrogate in UTF-8", "{\"n\": 1, \"s\": \"\xed\xa0\x80\"}", "/s")
	data("a high surrogate alone", `{"n": 1, "s": "\ud800"}`, "/s")
	data("a low surrogate alone", `{"n": 1, "s": "\udc00x"}`, "/s")
	data("NUL", `{"n": 1, "s": "a\u0000b"}`, "/s")
	data("a raw control character", "{\"n\": 1, \"s\": \"a\nb\"}", "/s")
	bad("NUL in a key", `{"events": [{"type": "Probed", "data": {"n": 1, "\u0000": 1}}]}`, "")
	bad("NUL in a type", `{"events": [{"type": "Probed\u0000", "data": {"n": 1}}]}`, "/events/0/type")
	bad("NUL in metadata", `{"events": [{"type": "Probed", "data": {"n": 1}}], "metadata": {"actor": "\u0000"}}`, "/metadata/actor")
	bad("NUL in a claim", `{"events": [{"type": "Probed", "data": {"n": 1}}], "claims": [{"namespace": "a\u0000", "value": "b"}]}`, "/claims/0/namespace")

	row = "integers beyond the type, 1.0 and 1e3, unknown symbols"
	wrong("int and one more", `{"n": 1, "i": 2147483648}`, "/i")
	wrong("int and one less", `{"n": 1, "i": -2147483649}`, "/i")
	wrong("long and one more", `{"n": 9223372036854775808}`, "/n")
	wrong("long and one more, as text", `{"n": "9223372036854775808"}`, "/n")
	wrong("1.0", `{"n": 1.0}`, "/n")
	wrong("1e3", `{"n": 1e3}`, "/n")
	wrong("text that is no number", `{"n": "0x10"}`, "/n")
	wrong("text with a space", `{"n": " 1"}`, "/n")
	wrong("true", `{"n": true}`, "/n")
	wrong("null", `{"n": null}`, "/n")
	wrong("unknown symbol", `{"n": 1, "e": "GREEN"}`, "/e")
	wrong("symbol in another case", `{"n": 1, "e": "red"}`, "/e")
	wrong("a double that is infinite", `{"n": 1, "d": 1e400}`, "/d")
	wrong("a year beyond", `{"n": 1, "t": "99999-01-01T00:00:00Z"}`, "/t")
	wrong("a day that is not", `{"n": 1, "t": "2023-02-30T00:00:00Z"}`, "/t")
	wrong("five bytes in four", `{"n": 1, "f": "AAAAAAA="}`, "/f")
	wrong("unknown field", `{"n": 1, "constructor": 1}`, "/constructor")
	wrong("no field", `{}`, "")
	data("NaN", `{"n": 1, "d": NaN}`, "/d")
	data("a leading zero", `{"n": 01}`, "/n")
	data("a plus", `{"n": +1}`, "/n")

	row = "numbers of more than 34 digits or an exponent beyond 400"
	data("40 digits", `{"n": 1, "d": `+strings.Repeat("9", 40)+`}`, "/d")
	data("9 kB of digits", `{"n": 1, "d": `+strings.Repeat("9", 9000)+`}`, "/d")
	data("an exponent of 401", `{"n": 1, "d": 1e401}`, "/d")
	data("an exponent of 131,071", `{"n": 1, "d": 1e131071}`, "/d")
	data("a negative one", `{"n": 1, "d": 1e-401}`, "/d")
	data("an exponent of 9 kB", `{"n": 1, "d": 1e`+strings.Repeat("9", 9000)+`}`, "/d")

	row = "decimals at another scale"
	wrong("fewer digits", `{"n": 1, "m": "1.5"}`, "/m")
	wrong("more digits", `{"n": 1, "m": "1.500"}`, "/m")
	wrong("beyond the precision", `{"n": 1, "m": "123456789.00"}`, "/m")
	wrong("an exponent", `{"n": 1, "m": "1e2"}`, "/m")

	row = "stream ids"
	for name, id := range map[string]string{"a space": "a%20b", "a slash": "a%2Fb", "NUL": "a%00", "a letter beyond ASCII": "%C3%A4", "invalid UTF-8": "%FF", "a percent sign": "%2525", "401 characters": strings.Repeat("a", 401), "a quote": "a'b"} {
		post(name, "/v1/streams/Probe/"+id+"/events", event(`{"n": 1}`), 400, "bad-request", "")
	}
	for _, id := range []string{".", "..", "", "a b", "é", "a\\nb"} {
		post(fmt.Sprintf("%q in a body", id), manyPath, `{"appends": [{"category": "Probe", "stream": "`+id+`", "events": [{"type": "Probed", "data": {"n": 1}}]}]}`, 400, "bad-request", "/appends/0/stream")
	}
	post("unknown category", "/v1/streams/pg_catalog/a/events", event(`{"n": 1}`), 404, "unknown-category", "")
	post("a category in another case", "/v1/streams/probe/a/events", event(`{"n": 1}`), 404, "unknown-category", "")
	post("unknown type", victimPath, `{"events": [{"type": "DROP", "data": {"n": 1}}]}`, 422, "unknown-event-type", "/events/0/data")

	row = "wrong expected version"
	post("ahead", victimPath, `{"expectedVersion": 1000000, "events": [{"type": "Probed", "data": {"n": 1}}]}`, 409, "version-conflict", "")
	post("none", victimPath, `{"expectedVersion": "none", "events": [{"type": "Probed", "data": {"n": 1}}]}`, 409, "version-conflict", "")
	post("If-Match", victimPath, event(`{"n": 1}`), 409, "version-conflict", "", "If-Match", `"1000000"`)
	bad("negative", `{"expectedVersion": -1, "events": [{"type": "Probed", "data": {"n": 1}}]}`, "/expectedVersion")
	bad("beyond a long", `{"expectedVersion": 9223372036854775808, "events": [{"type": "Probed", "data": {"n": 1}}]}`, "/expectedVersion")
	bad("1.0", `{"expectedVersion": 1.0, "events": [{"type": "Probed", "data": {"n": 1}}]}`, "/expectedVersion")
	post("weak If-Match", victimPath, event(`{"n": 1}`), 400, "bad-request", "", "If-Match", `W/"1"`)

	row = "batch of 0 or more than 1,000 events"
	bad("none", `{"events": []}`, "/events")
	bad("1,001", `{"events": [`+strings.Repeat(`{"type": "Probed", "data": {"n": 1}},`, 1000)+`{"type": "Probed", "data": {"n": 1}}]}`, "/events/1000")
	half := `"events": [` + strings.TrimSuffix(strings.Repeat(`{"type": "Probed", "data": {"n": 1}},`, 501), ",") + `]`
	post("1,002 in two streams", manyPath, `{"appends": [{"category": "Probe", "stream": "victim", `+half+`}, {"category": "Probe", "stream": "other", `+half+`}]}`, 400, "bad-request", "/appends/1/events/499")
	post("one stream twice", manyPath, `{"appends": [`+strings.TrimSuffix(strings.Repeat(`{"category": "Probe", "stream": "victim", "events": [{"type": "Probed", "data": {"n": 1}}]},`, 2), ",")+`]}`, 400, "bad-request", "/appends/1")
	post("no appends", manyPath, `{"appends": []}`, 400, "bad-request", "/appends")
	post("one good and one bad", manyPath, `{"appends": [{"category": "Probe", "stream": "other", "events": [{"type": "Probed", "data": {"n": 1}}]}, {"category": "Probe", "stream": "victim", "events": [{"type": "Probed", "data": {"n": "x"}}]}]}`,
		422, "invalid-event-data", "/appends/1/events/0/data/n")
	post("an id twice", victimPath, `{"events": [`+strings.TrimSuffix(strings.Repeat(`{"id": "01900000-0000-7000-8000-000000000001", "type": "Probed", "data": {"n": 1}},`, 2), ",")+`]}`, 409, "event-id-taken", "")

	row = "unknown field in filter, order or select; a cursor that was changed"
	get("filter", probesPath+"?nothing=eq.1", "/nothing")
	get("filter by a column of ours", probesPath+"?projection_name=eq.x", "/projection_name")
	get("filter that would be SQL", probesPath+"?"+url.QueryEscape("sum'; drop table event; --")+"=eq.1", "/sum'; drop table event; --")
	get("operator", probesPath+"?sum=almost.1", "/sum")
	get("value", probesPath+"?sum=eq."+strings.Repeat("9", 400), "/sum")
	get("NUL in a value", probesPath+"?text=eq.%00", "/text")
	get("order", probesPath+"?order=nothing", "/order")
	get("select", probesPath+"?select=nothing", "/select")
	get("cursor", probesPath+"?cursor=AAAA", "/cursor")
	get("token", probesPath+"/victim?token=x", "/token")

	row = "limit above 1,000, negative values"
	get("1,001", probesPath+"?limit=1001", "/limit")
	get("-1", probesPath+"?limit=-1", "/limit")
	get("0 events", victimPath+"?limit=0", "/limit")
	get("1,001 events", victimPath+"?limit=1001", "/limit")
	get("after -1", victimPath+"?after=-1", "/after")
	get("after beyond a long", victimPath+"?after=9223372036854775808", "/after")
	get("unknown parameter", victimPath+"?limits=1", "/limits")
	get("a broken escape", victimPath+"?limit=%zz", "")
	other("an event id", http.MethodGet, "/v1/events/x", 400, "bad-request", "")
	other("a slot", http.MethodGet, "/v1/categories/Probe/slots/64/events", 404, "unknown-slot", "")

	row = "wrong method, content type or accept"
	other("method", http.MethodPut, victimPath, 405, "method-not-allowed", "")
	other("method of a read", http.MethodDelete, probesPath, 405, "method-not-allowed", "")
	other("an invented one", "BREW", victimPath, 405, "method-not-allowed", "")
	post("content type", victimPath, event(`{"n": 1}`), 415, "unsupported-media-type", "", "Content-Type", "application/xml")
	post("content type of several", manyPath, many(`"events": [{"type": "Probed", "data": {"n": 1}}]`), 415, "unsupported-media-type", "", "Content-Type", "text/plain")
	post("broken content type", victimPath, event(`{"n": 1}`), 415, "unsupported-media-type", "", "Content-Type", "application/json; charset")
	post("encoding", victimPath, event(`{"n": 1}`), 415, "unsupported-media-type", "", "Content-Encoding", "zstd, gzip")
	post("accept", victimPath, event(`{"n": 1}`), 406, "not-acceptable", "", "Accept", "text/html")
	other("nothing there", http.MethodGet, "/v1/nothing", 404, "not-found", "")

	row = "keys, claims and metadata"
	post("empty key", victimPath, event(`{"n": 1}`), 400, "bad-request", "", "Idempotency-Key", "")
	post("long key", victimPath, event(`{"n": 1}`), 400, "bad-request", "", "Idempotency-Key", strings.Repeat("k", 256))
	post("key beyond ASCII", victimPath, event(`{"n": 1}`), 400, "bad-request", "", "Idempotency-Key", "ä")
	post("two keys", victimPath, event(`{"n": 1}`), 400, "bad-request", "", "Idempotency-Key", "a", "Idempotency-Key", "b")
	post("a reserved key", victimPath, event(`{"n": 1}`), 400, "bad-request", "", "Idempotency-Key", "reaction/x/1/1")
	bad("claim without a value", `{"events": [{"type": "Probed", "data": {"n": 1}}], "claims": [{"namespace": "n"}]}`, "/claims/0")
	bad("1,001 claims", `{"events": [{"type": "Probed", "data": {"n": 1}}], "claims": [`+strings.TrimSuffix(strings.Repeat(`{"namespace": "n", "value": "v"},`, 1001), ",")+`]}`, "/claims/1000")
	bad("long actor", `{"events": [{"type": "Probed", "data": {"n": 1}}], "metadata": {"actor": "`+strings.Repeat("a", 100_000)+`"}}`, "/metadata/actor")
	bad("malformed id", `{"events": [{"id": "1", "type": "Probed", "data": {"n": 1}}]}`, "/events/0/id")
	post("malformed time", victimPath, `{"events": [{"time": "-1", "type": "Probed", "data": {"n": 1}}]}`, 422, "invalid-event-data", "/events/0/time")
	return list
}
