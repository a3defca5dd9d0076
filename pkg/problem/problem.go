// Package problem is the one form of refold's HTTP errors: RFC 9457's
// application/problem+json, with a stable type for each class of errors.
//
// A problem says what was wrong and where, in words that are safe for anybody:
// never SQL, a stack, or somebody else's ids.
package problem

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Problem is one error as a client sees it.
type Problem struct {
	// Type is the slug behind /problems/.
	Type   string
	Title  string
	Status int
	Detail string
	// Pointer is the place in the request's body (RFC 6901); empty for none.
	Pointer string
	// RetryAfter is sent with a 503, at least one second.
	RetryAfter time.Duration
	// Extra are members of the class.
	Extra map[string]any
}

func (p *Problem) Error() string { return p.Title + ": " + p.Detail }

// New returns a problem of a class.
func New(status int, slug, title, detail string) *Problem {
	return &Problem{Type: slug, Title: title, Status: status, Detail: detail}
}

// BadRequest returns a 400.
func BadRequest(detail string) *Problem {
	return New(http.StatusBadRequest, "bad-request", "The request is malformed", detail)
}

// BadParameter returns a 400 about a parameter of the URL, or the member of a body
// that stands for it.
func BadParameter(name, reason string) *Problem {
	return BadRequest(name+": "+reason).At("/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(name)).With("parameter", name)
}

// CheckPath returns a 400 for a path that is no text, which nothing can be named
// by; else nil.
func CheckPath(r *http.Request) error {
	if !utf8.ValidString(r.URL.Path) || strings.Contains(r.URL.Path, "\x00") {
		return BadRequest("the path is no text: it is to be valid UTF-8 without NUL")
	}
	return nil
}

// At returns the problem with a pointer.
func (p *Problem) At(pointer string) *Problem {
	p.Pointer = pointer
	return p
}

// With returns the problem with another member.
func (p *Problem) With(name string, value any) *Problem {
	if p.Extra == nil {
		p.Extra = make(map[string]any)
	}
	p.Extra[name] = value
	return p
}

// MarshalJSON returns the document of RFC 9457.
func (p *Problem) MarshalJSON() ([]byte, error) {
	doc := map[string]any{"type": "/problems/" + p.Type, "title": p.Title, "status": p.Status}
	if p.Detail != "" {
		doc["detail"] = p.Detail
	}
	if p.Pointer != "" {
		doc["pointer"] = p.Pointer
	}
	for name, value := range p.Extra {
		doc[name] = value
	}
	return json.Marshal(doc)
}

// Write answers with the problem.
func (p *Problem) Write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/problem+json")
	if p.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(p.RetryAfter/time.Second))))
	}
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p) // a client that has gone needs no answer
}
