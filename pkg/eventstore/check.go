package eventstore

import (
	"strings"
	"unicode/utf8"

	"github.com/refoldhq/refold/pkg/event"
)

// check refuses what the database would refuse, and with it the whole batch that
// the request came into, or what would break a promise of the log. The API has
// checked most of it; Go callers may have not.
func (r *Request) check() error {
	if len(r.Appends) == 0 {
		return &Invalid{"it has no appends"}
	}
	m := &r.Metadata
	if !plain(m.Actor, m.CorrelationID, m.CausationID, m.Traceparent, r.Key) {
		return &Invalid{"its metadata or key is no text"}
	}
	if r.Key != "" && len(r.Hash) == 0 {
		return &Invalid{"it has a key and no digest of what is asked under it"}
	}
	for i := range r.Appends {
		if err := r.Appends[i].check(); err != nil {
			return err
		}
		for j := range r.Appends[:i] {
			if r.Appends[j].Stream == r.Appends[i].Stream && r.Appends[j].Category == r.Appends[i].Category {
				return &Invalid{"the stream " + r.Appends[i].Stream + " is named twice"}
			}
		}
	}
	for i := range r.Guards {
		g := &r.Guards[i]
		if err := event.CheckStreamID(g.Stream); err != nil {
			return &Invalid{err.Error()}
		}
		for j := range r.Appends {
			if r.Appends[j].Stream == g.Stream && r.Appends[j].Category == g.Category {
				return &Invalid{"the stream " + g.Stream + " is guarded and appended to"}
			}
		}
	}
	return nil
}

func (a *Append) check() error {
	if err := event.CheckStreamID(a.Stream); err != nil {
		return &Invalid{err.Error()}
	}
	if len(a.Events) == 0 {
		return &Invalid{"the append to " + a.Stream + " has no events"}
	}
	if v, exact := a.Expected.Version(); exact && v < 0 {
		return &Invalid{"the expected version of " + a.Stream + " is negative"}
	}
	for i := range a.Events {
		e := &a.Events[i]
		if e.Type == "" || !plain(e.Type) {
			return &Invalid{"an event of " + a.Stream + " has no type that is text"}
		}
		if e.Value == nil {
			return &Invalid{"an event of " + a.Stream + " has no value"}
		}
	}
	for _, list := range [][]Claim{a.Claims, a.Releases} {
		for _, c := range list {
			if c.Namespace == "" || c.Value == "" || !plain(c.Namespace, c.Value) {
				return &Invalid{"a claim of " + a.Stream + " has no namespace and value that are text"}
			}
		}
	}
	return nil
}

// plain tells whether all are text that Postgres takes: UTF-8 without NUL.
func plain(texts ...string) bool {
	for _, s := range texts {
		if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
			return false
		}
	}
	return true
}
