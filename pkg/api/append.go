package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/strictjson"
)

func urlQuery(r *http.Request) (url.Values, error) { return url.ParseQuery(r.URL.RawQuery) }

// appendToStream appends to the stream that the path names.
func (a *API) appendToStream(w http.ResponseWriter, r *http.Request) error {
	category, id, err := a.stream(r)
	if err != nil {
		return err
	}
	if err := jsonBody(r); err != nil {
		return err
	}
	body, release, err := a.body(w, r)
	if err != nil {
		return err
	}
	defer release()
	p := parser{api: a, r: strictjson.NewReader(body)}
	one := eventstore.Append{Category: category.Name, Stream: id}
	if err := p.single(&one); err != nil {
		return refuseData(err)
	}
	if err := ifMatch(r, &one, p.expectedGiven); err != nil {
		return err
	}
	req := &eventstore.Request{Appends: []eventstore.Append{one}, Metadata: p.metadata}
	if err := idempotency(r, req, body); err != nil {
		return err
	}
	result, err := a.append(r, req)
	if err != nil {
		return err
	}
	out := appendAppend(nil, &result.Appends[0], true)
	write(w, result, append(out, '}', '\n'))
	return nil
}

// appendToMany appends to several streams together, or imports lines.
func (a *API) appendToMany(w http.ResponseWriter, r *http.Request) error {
	if media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media == "application/x-ndjson" {
		return a.importLines(w, r)
	}
	if err := jsonBody(r); err != nil {
		return err
	}
	body, release, err := a.body(w, r)
	if err != nil {
		return err
	}
	defer release()
	req, err := a.parseMany(body, false)
	if err != nil {
		return err
	}
	if err := idempotency(r, req, body); err != nil {
		return err
	}
	result, err := a.append(r, req)
	if err != nil {
		return err
	}
	write(w, result, append(appendResult([]byte{'{'}, result), '}', '\n'))
	return nil
}

func (a *API) append(r *http.Request, req *eventstore.Request) (*eventstore.Result, error) {
	if req.Metadata.Traceparent == "" {
		req.Metadata.Traceparent = traceparent(r)
	}
	return a.deps.Store.Append(r.Context(), req)
}

// traceparent returns the request's W3C trace context if it is well formed.
func traceparent(r *http.Request) string {
	s := r.Header.Get("Traceparent")
	if len(s) != 55 || strings.Trim(s, "0123456789abcdef-") != "" {
		return ""
	}
	return s
}

func write(w http.ResponseWriter, result *eventstore.Result, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	status := http.StatusCreated
	if result.Replayed {
		w.Header().Set("Idempotent-Replayed", "true")
		status = http.StatusOK
	}
	w.WriteHeader(status)
	w.Write(body) // a client that has gone needs no answer
}

// jsonBody refuses bodies of other types.
func jsonBody(r *http.Request) error {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/json" {
		return problem.New(http.StatusUnsupportedMediaType, "unsupported-media-type", "The body's type is not supported", "want Content-Type: application/json")
	}
	return nil
}

// body reads the body, decompressed, up to its limit. What large bodies take in
// all is bounded: one that finds no room within a second is refused. They are read
// in growing steps, so that a client takes only as much room as it has sent. The
// caller calls release when the body is needed no longer.
func (a *API) body(w http.ResponseWriter, r *http.Request) (body []byte, release func(), err error) {
	taken := int64(0)
	free := func() { a.room.Release(taken) }
	defer func() {
		if err != nil {
			free()
		}
	}()
	limit := int64(a.cfg.MaxBodyBytes)
	in, err := decoded(strings.ToLower(r.Header.Get("Content-Encoding")), http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return nil, nil, err
	}
	buf := make([]byte, 0, min(max(r.ContentLength, 512), freeBody, limit)+1)
	for {
		n, err := in.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		var tooLarge *http.MaxBytesError
		switch {
		case int64(len(buf)) > limit || errors.As(err, &tooLarge):
			return nil, nil, problem.New(http.StatusRequestEntityTooLarge, "too-large", "The body is too large", "at most "+strconv.Itoa(a.cfg.MaxBodyBytes)+" bytes")
		case errors.Is(err, io.EOF):
			return buf, free, nil
		case err != nil:
			return nil, nil, problem.BadRequest("the body could not be read")
		}
		if len(buf) < cap(buf) {
			continue
		}
		more := min(int64(cap(buf)), limit+1-int64(cap(buf)))
		if err := a.takeRoom(r.Context(), more); err != nil {
			return nil, nil, err
		}
		taken += more
		buf = append(make([]byte, 0, int64(cap(buf))+more), buf...)
	}
}

// freeBody is how much of a body is read without asking for room: about what a
// connection takes anyway.
const freeBody = 16 << 10

func (a *API) takeRoom(ctx context.Context, n int64) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if a.room.Acquire(ctx, n) != nil {
		return problem.New(http.StatusServiceUnavailable, "unavailable", "Too many large requests are under way", "nothing has happened; try again")
	}
	return nil
}

// ifMatch reads the other way to say the expected version.
func ifMatch(r *http.Request, one *eventstore.Append, given bool) error {
	text := r.Header.Get("If-Match")
	if text == "" {
		return nil
	}
	expected := eventstore.Exists
	if text != "*" {
		n, err := strconv.ParseInt(strings.Trim(text, `"`), 10, 64)
		if err != nil || n < 0 || len(text) < 3 || text[0] != '"' || text[len(text)-1] != '"' {
			return problem.BadRequest(`If-Match is malformed: want "<version>" or *`)
		}
		expected = eventstore.Exactly(n)
	}
	if given && one.Expected != expected {
		return problem.BadRequest("If-Match and expectedVersion say different things").At("/expectedVersion")
	}
	one.Expected = expected
	return nil
}

// maxKey bounds an idempotency key.
const maxKey = 255

func checkKey(key string) error {
	if key == "" || len(key) > maxKey || strings.IndexFunc(key, func(c rune) bool { return c < 0x20 || c > 0x7e }) >= 0 {
		return problem.BadRequest("an idempotency key has 1 to 255 printable ASCII characters")
	}
	if strings.HasPrefix(key, aggregate.ReactionKeys) {
		return problem.BadRequest("idempotency keys that begin with " + aggregate.ReactionKeys + " are those of reactions")
	}
	return nil
}

// keyOf returns the Idempotency-Key and whether there is one.
func keyOf(r *http.Request) (key string, given bool, err error) {
	switch values := r.Header["Idempotency-Key"]; len(values) {
	case 0:
		return "", false, nil
	case 1:
		return values[0], true, checkKey(values[0])
	default:
		return "", false, problem.BadRequest("there are several Idempotency-Key headers")
	}
}

// idempotency reads the Idempotency-Key. Path, If-Match and body make the request.
func idempotency(r *http.Request, req *eventstore.Request, body []byte) error {
	key, given, err := keyOf(r)
	if !given || err != nil {
		return err
	}
	req.Key, req.Hash = key, digest(r.URL.Path, r.Header.Get("If-Match"), body)
	return nil
}

func digest(path, match string, body []byte) []byte {
	h := sha256.New()
	io.WriteString(h, path+"\n"+match+"\n")
	h.Write(body)
	return h.Sum(nil)
}

// parseMany reads a body with several appends. A line of an import may hold its
// own idempotency key.
func (a *API) parseMany(body []byte, line bool) (*eventstore.Request, error) {
	p := parser{api: a, r: strictjson.NewReader(body), line: line}
	appends, err := p.many()
	if err != nil {
		return nil, refuseData(err)
	}
	req := &eventstore.Request{Appends: appends, Metadata: p.metadata, Key: p.key}
	if req.Key != "" {
		req.Hash = digest("line", "", body)
	}
	return req, nil
}

// refuseData maps errors of reading a body.
func refuseData(err error) error {
	var data *avro.DataError
	var syntax *strictjson.Error
	switch {
	case errors.As(err, &data):
		return problem.New(http.StatusUnprocessableEntity, "invalid-event-data", "The data does not fit the event's schema", data.Msg).At(data.Pointer)
	case errors.As(err, &syntax):
		return problem.BadRequest(syntax.Msg).At(syntax.Pointer)
	default:
		return err
	}
}

// appendAppend appends the answer for one stream, without its closing brace.
func appendAppend(dst []byte, r *eventstore.AppendResult, token bool) []byte {
	dst = append(dst, `{"category":"`...)
	dst = append(dst, r.Category...) // names, ids and streams are ASCII that needs no quoting
	dst = append(dst, `","stream":"`...)
	dst = append(dst, r.Stream...)
	dst = append(dst, `","firstVersion":`...)
	dst = strconv.AppendInt(dst, r.FirstVersion, 10)
	dst = append(dst, `,"lastVersion":`...)
	dst = strconv.AppendInt(dst, r.LastVersion, 10)
	if token {
		dst = append(dst, `,"token":"`...)
		dst = append(dst, r.Token().String()...)
		dst = append(dst, '"')
	}
	dst = append(dst, `,"events":[`...)
	for i := range r.Events {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendAppended(dst, &r.Events[i])
	}
	return append(dst, ']')
}

func appendAppended(dst []byte, e *eventstore.Appended) []byte {
	dst = append(dst, `{"id":"`...)
	dst = e.ID.Append(dst)
	dst = append(dst, `","version":`...)
	dst = strconv.AppendInt(dst, e.Version, 10)
	dst = append(dst, `,"position":"`...)
	dst = append(dst, e.Position.String()...)
	dst = append(dst, `","recorded":"`...)
	dst = e.Recorded.Append(dst)
	return append(dst, `"}`...)
}

// appendResult appends the members of an answer for several streams.
func appendResult(dst []byte, r *eventstore.Result) []byte {
	dst = append(dst, `"appends":[`...)
	for i := range r.Appends {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendAppend(dst, &r.Appends[i], false), '}')
	}
	dst = append(dst, `],"token":"`...)
	dst = append(dst, r.Token().String()...)
	return append(dst, '"')
}

// readTime parses a client's time.
func readTime(text string) (event.Time, error) { return event.ParseTime(text) }
