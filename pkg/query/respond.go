package query

import (
	"hash/fnv"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/refoldhq/refold/pkg/readmodel"
)

// describe sets the headers that say where an answer comes from.
func describe(h http.Header, from readmodel.Answer) {
	values := [...]string{strconv.Itoa(from.Version.Number), from.TokenText(), ""} // in one piece of memory
	// Canonical names, set without looking at them again.
	h["Refold-Projection-Version"], h["Refold-Token"] = values[0:1:1], values[1:2:2]
	if !from.AsOf.IsZero() {
		values[2] = staleness(from.AsOf)
		h["Refold-Staleness"] = values[2:3:3]
	}
}

// staleness returns how old an answer may be, as a duration in the form that
// Refold-Max-Staleness takes.
func staleness(asOf time.Time) string {
	return strconv.FormatInt(max(0, time.Since(asOf).Milliseconds()), 10) + "ms"
}

// An answer may be kept by caches on the way, which must ask whether it is still
// good: rows change at any time, and an answer with a token is for its sender.
var (
	cacheControl = []string{"private, no-cache"}
	vary         = []string{"Refold-Token"}
	jsonType     = []string{"application/json"}
)

// respond answers with where the answer comes from, or 304.
func respond(w http.ResponseWriter, r *http.Request, from readmodel.Answer, body []byte) error {
	values := [...]string{etagOf(from.Version.Number, body), ""}
	h := w.Header()
	describe(h, from)
	h["Etag"] = values[0:1:1]
	h["Cache-Control"], h["Vary"], h["Content-Type"] = cacheControl, vary, jsonType
	if matches(r.Header["If-None-Match"], values[0]) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	values[1] = strconv.Itoa(len(body) + 1)
	h["Content-Length"] = values[1:2:2]
	w.Write(body) // a client that has gone needs no answer
	w.Write(newline)
	return nil
}

var newline = []byte{'\n'}

// etagOf identifies an answer by its content and the version it comes from.
func etagOf(version int, body []byte) string {
	h := fnv.New64a()
	h.Write(body)
	var b [40]byte
	out := strconv.AppendInt(append(b[:0], '"'), int64(version), 10)
	out = strconv.AppendUint(append(out, '-'), h.Sum64(), 16)
	return string(append(out, '"'))
}

// matches is RFC 9110's If-None-Match: any of a list, compared weakly.
func matches(values []string, etag string) bool {
	for _, value := range values {
		for item := range strings.SplitSeq(value, ",") {
			item = strings.TrimPrefix(strings.TrimSpace(item), "W/")
			if item == etag || item == "*" {
				return true
			}
		}
	}
	return false
}
