// Package query serves read models over HTTP: by key and as lists with filters,
// order and keyset cursors, each answer from one snapshot that contains the
// tokens that the client sent.
//
// Names in a request are looked up in the plan of the version that answers, and
// values are bound: nothing of a client becomes SQL.
package query

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// API serves queries. It is safe for concurrent use.
type API struct {
	reader    *readmodel.Reader
	catalogue *readmodel.Catalogue
	plans     Plans
}

// Plans compiles the definition of a version; it may be called often.
type Plans func(readmodel.Version) (*projection.Plan, error)

// New returns the API.
func New(reader *readmodel.Reader, catalogue *readmodel.Catalogue, plans Plans) *API {
	return &API{reader, catalogue, plans}
}

// Register adds the API's routes to mux.
func (a *API) Register(mux *http.ServeMux) {
	for pattern, f := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /v1/read-models":              a.listModels,
		"GET /v1/read-models/{name}":       a.list,
		"GET /v1/read-models/{name}/{key}": a.get,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := f(w, r); err != nil {
				toProblem(err).Write(w)
			}
		})
	}
	for _, path := range []string{"/v1/read-models", "/v1/read-models/{name}", "/v1/read-models/{name}/{key}"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Allow", "GET")
			problem.New(http.StatusMethodNotAllowed, "method-not-allowed", "The method is not allowed here", "allowed: GET").Write(w)
		})
	}
}

func toProblem(err error) *problem.Problem {
	var p *problem.Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, readmodel.ErrUnknownProjection):
		return problem.New(http.StatusNotFound, "unknown-read-model", "There is no such read model", "")
	case errors.Is(err, readmodel.ErrNoRow):
		return problem.New(http.StatusNotFound, "unknown-row", "There is no row with this key", "")
	case errors.Is(err, readmodel.ErrBadKey):
		return problem.BadRequest(err.Error())
	case errors.Is(err, readmodel.ErrTooStale):
		return problem.New(http.StatusServiceUnavailable, "not-caught-up", "The rows are older than Refold-Max-Staleness allows", "wait and ask again")
	case errors.Is(err, readmodel.ErrNotCaughtUp):
		return problem.New(http.StatusServiceUnavailable, "not-caught-up", "The rows do not contain the token yet", "wait and ask again")
	case errors.Is(err, readmodel.ErrParked):
		return problem.New(http.StatusServiceUnavailable, "not-caught-up", "The rows do not contain the token", "an event of the token waits in a parked stream")
	case errors.Is(err, readmodel.ErrTooExpensive):
		return problem.New(http.StatusServiceUnavailable, "query-timeout", "The query took too long", "narrow it, or declare an index that serves it")
	default:
		return problem.New(http.StatusServiceUnavailable, "unavailable", "The database is not available", "try again")
	}
}

const (
	defaultWait = time.Second
	maxWait     = 30 * time.Second
)

// fresh reads what the client asks an answer to contain.
func fresh(r *http.Request) (f readmodel.Fresh, err error) {
	if f.Token, err = event.ParseTokens(strings.Join(r.Header.Values("Refold-Token"), ",")); err != nil {
		return f, problem.BadRequest("Refold-Token: " + err.Error())
	}
	f.Wait = defaultWait
	if text := r.Header.Get("Refold-Wait"); text != "" {
		if f.Wait, err = time.ParseDuration(text); err != nil || f.Wait < 0 || f.Wait > maxWait {
			return f, problem.BadRequest("Refold-Wait is a duration up to 30s")
		}
	}
	if text := r.Header.Get("Refold-Max-Staleness"); text != "" {
		if f.MaxStaleness, err = time.ParseDuration(text); err != nil || f.MaxStaleness <= 0 {
			return f, problem.BadRequest("Refold-Max-Staleness is a duration greater than 0, as 500ms or 5s")
		}
	}
	return f, nil
}

func (a *API) get(w http.ResponseWriter, r *http.Request) error {
	f, err := fresh(r)
	if err != nil {
		return err
	}
	row, from, err := a.reader.Get(r.Context(), r.PathValue("name"), r.PathValue("key"), f)
	if errors.Is(err, readmodel.ErrNoRow) {
		describe(w.Header(), from)
	}
	if err != nil {
		return err
	}
	return respond(w, r, from, row)
}

func (a *API) listModels(w http.ResponseWriter, r *http.Request) error {
	versions, err := a.catalogue.All(r.Context())
	if err != nil {
		return err
	}
	models := []map[string]any{}
	for _, v := range versions {
		if v.State != "active" {
			continue
		}
		plan, err := a.plans(v)
		if err != nil {
			return err
		}
		fields := []map[string]any{}
		for _, f := range plan.Fields() {
			fields = append(fields, map[string]any{"name": f.Name, "type": f.Kind.String()})
		}
		indexes := []map[string]any{}
		for _, x := range plan.Indexes() {
			indexes = append(indexes, map[string]any{"fields": x.Fields, "unique": x.Unique})
		}
		models = append(models, map[string]any{"name": v.Projection, "version": v.Number, "fields": fields, "indexes": indexes})
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(models)
}

func (a *API) list(w http.ResponseWriter, r *http.Request) error {
	f, err := fresh(r)
	if err != nil {
		return err
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return problem.BadRequest("the query string is malformed")
	}
	var c *compiled
	page, from, err := a.reader.List(r.Context(), r.PathValue("name"), f, func(m *readmodel.Model) (_ readmodel.Query, err error) {
		c, err = compile(m.Plan, values)
		if err != nil {
			return readmodel.Query{}, err
		}
		return c.query, nil
	})
	if err != nil {
		return err
	}
	return respond(w, r, from, c.render(page))
}

// render makes the body of a list; one row more than the limit was read to know
// whether another page follows.
func (c *compiled) render(page readmodel.Page) []byte {
	next := []byte("null")
	if len(page.Rows) > c.limit {
		page.Rows, page.Keys = page.Rows[:c.limit], page.Keys[:c.limit]
		next, _ = json.Marshal(c.cursorAfter(page.Rows[c.limit-1], page.Keys[c.limit-1])) // a string
	}
	var b bytes.Buffer
	b.WriteString(`{"rows":[`)
	for i, row := range page.Rows {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(c.project(row, page.Keys[i]))
	}
	b.WriteString(`],"next":`)
	b.Write(next)
	if page.Count != nil {
		fmt.Fprintf(&b, `,"count":%d`, *page.Count)
	}
	b.WriteByte('}')
	return b.Bytes()
}

// project keeps the fields that were asked for.
func (c *compiled) project(row json.RawMessage, key string) []byte {
	if c.fields == nil {
		return row
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(row, &members); err != nil {
		return row // what the database gave is JSON
	}
	out := []byte{'{'}
	for i, name := range c.fields {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(avro.AppendQuoted(out, []byte(name)), ':')
		if name == "key" {
			out = avro.AppendQuoted(out, []byte(key))
		} else {
			out = append(out, members[name]...)
		}
	}
	return append(out, '}')
}
