// Package api is refold's HTTP API of the write side: appending, importing and
// reading the log, commands and states of aggregates, parked streams, rebuilds, and the
// schema registry below /schema-registry.
//
// Bodies of appends are read by a strict reader and encoded to Avro in the same
// pass; whatever is ambiguous or does not fit is refused with a problem of
// package problem that names the place. Answers come after the COMMIT.
package api

import (
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/semaphore"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/registry"
)

// Config bounds requests. The zero value of each field takes its default.
type Config struct {
	// MaxBodyBytes bounds a body, decompressed, and a line of an import; 1 MiB.
	MaxBodyBytes int
	// MaxPendingBytes bounds what large bodies that are being read or carried out
	// take in all; 64 MiB.
	MaxPendingBytes int
	// ReadTimeout bounds reading a body, or the silence of an import; 15 s.
	ReadTimeout time.Duration
}

// Registry finds schemas by id and serves Confluent's API.
type Registry interface {
	registry.Schemas
	Handler() http.Handler
}

// Deps are what the API stands on.
type Deps struct {
	Store     *eventstore.Store
	Pool      *pgxpool.Pool
	Registry  Registry
	Contracts *avro.Contracts
	// SchemaIDs are those of the newest version of every event type.
	SchemaIDs registry.IDs
	Logger    *slog.Logger
}

// API serves requests. It is safe for concurrent use.
type API struct {
	cfg    Config
	deps   Deps
	reader *eventstore.Reader
	room   *semaphore.Weighted // bytes of large bodies
	// described is the OpenAPI document with the operations of aggregates.
	described atomic.Pointer[[]byte]
}

// New returns the API.
func New(cfg Config, deps Deps) *API {
	if cfg.MaxBodyBytes == 0 {
		cfg.MaxBodyBytes = 1 << 20
	}
	if cfg.MaxPendingBytes == 0 {
		cfg.MaxPendingBytes = 64 << 20
	}
	if cfg.ReadTimeout == 0 {
		cfg.ReadTimeout = 15 * time.Second
	}
	return &API{cfg: cfg, deps: deps, reader: eventstore.NewReader(deps.Pool), room: semaphore.NewWeighted(int64(cfg.MaxPendingBytes))}
}

// Register adds the API's routes to mux.
func (a *API) Register(mux *http.ServeMux) {
	for pattern, f := range map[string]func(http.ResponseWriter, *http.Request) error{
		"POST /v1/streams/{category}/{id}/events":           a.appendToStream,
		"POST /v1/append":                                   a.appendToMany,
		"GET /v1/streams/{category}/{id}":                   a.getStream,
		"GET /v1/streams/{category}/{id}/events":            a.getStreamEvents,
		"GET /v1/events/{id}":                               a.getEvent,
		"GET /v1/categories":                                a.getCategories,
		"GET /v1/categories/{category}/slots/{slot}/events": a.getSlotEvents,
		"GET /openapi.json":                                 a.openAPI,
	} {
		mux.Handle(pattern, a.handle(f))
	}
	for path, methods := range map[string]string{"/v1/streams/{category}/{id}/events": "GET, POST", "/v1/append": "POST", "/v1/streams/{category}/{id}": "GET",
		"/v1/events/{id}": "GET", "/v1/categories": "GET", "/v1/categories/{category}/slots/{slot}/events": "GET", "/openapi.json": "GET"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Allow", methods)
			problem.New(http.StatusMethodNotAllowed, "method-not-allowed", "The method is not allowed here", "allowed: "+methods).Write(w)
		})
	}
	mux.Handle("/schema-registry/", http.StripPrefix("/schema-registry", a.deps.Registry.Handler()))
}

// NotFound answers what no route matches.
func NotFound(w http.ResponseWriter, r *http.Request) {
	problem.New(http.StatusNotFound, "not-found", "There is nothing here", "").Write(w)
}

func (a *API) handle(f func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := acceptable(r)
		if err == nil {
			err = f(w, r)
		}
		if err == nil {
			return
		}
		p := a.toProblem(err)
		a.logFailure(r, p, err)
		p.Write(w)
	})
}

// logFailure says why a request failed where nobody else has: the store has told
// of what befell a batch, once for all its requests.
func (a *API) logFailure(r *http.Request, p *problem.Problem, err error) {
	told := errors.Is(err, eventstore.ErrUnavailable) || errors.Is(err, eventstore.ErrOutcomeUnknown) || errors.Is(err, eventstore.ErrInternal) || r.Context().Err() != nil
	switch {
	case p.Status < http.StatusInternalServerError:
	case told || errors.As(err, new(*problem.Problem)):
		a.deps.Logger.Debug("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	case p.Status == http.StatusServiceUnavailable:
		a.deps.Logger.Warn("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	default:
		a.deps.Logger.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
}

// acceptable refuses clients that do not take JSON.
func acceptable(r *http.Request) error {
	accept := r.Header.Get("Accept")
	if accept == "" {
		return nil
	}
	for part := range strings.SplitSeq(accept, ",") {
		media, _, _ := strings.Cut(part, ";")
		switch strings.ToLower(strings.TrimSpace(media)) {
		case "*/*", "application/*", "application/json", "application/problem+json", "application/x-ndjson":
			return nil
		}
	}
	return problem.New(http.StatusNotAcceptable, "not-acceptable", "Only JSON is to be had here", "")
}

// toProblem maps errors of the layers below. What time mends is a 503. No input
// makes a 500: one is a bug of ours, or a database that somebody has changed.
func (a *API) toProblem(err error) *problem.Problem {
	var p *problem.Problem
	var conflict *eventstore.VersionConflict
	var taken *eventstore.ClaimTaken
	var id *eventstore.EventIDTaken
	var large *eventstore.TooLarge
	var invalid *eventstore.Invalid
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &conflict):
		return problem.New(http.StatusConflict, "version-conflict", "The stream is at another version", conflict.Error()).
			With("category", conflict.Category).With("stream", conflict.Stream).With("expected", expectedJSON(conflict.Expected)).With("actual", conflict.Actual)
	case errors.As(err, &taken):
		return problem.New(http.StatusConflict, "claim-taken", "Another stream holds the value", taken.Error()).
			With("namespace", taken.Namespace).With("category", taken.Category).With("stream", taken.Stream)
	case errors.As(err, &id):
		return problem.New(http.StatusConflict, "event-id-taken", "An event id is taken", id.Error())
	case errors.As(err, &large):
		return problem.New(http.StatusRequestEntityTooLarge, "too-large", "An event is too large", large.Error())
	case errors.As(err, &invalid):
		return problem.BadRequest(invalid.Reason)
	case errors.Is(err, eventstore.ErrKeyReused):
		return problem.New(http.StatusUnprocessableEntity, "idempotency-key-reused", "The idempotency key was used for another request", "")
	case errors.Is(err, eventstore.ErrUnknownCategory):
		return unknownCategory("")
	case errors.Is(err, eventstore.ErrOutcomeUnknown):
		return unavailable(err, "outcome-unknown", "It is not known whether this has happened", "ask again with the same key or event ids")
	case errors.Is(err, eventstore.ErrOverloaded):
		return unavailable(err, "unavailable", "Too many appends wait already", "nothing has happened; try again")
	case errors.Is(err, eventstore.ErrUnavailable):
		return unavailable(err, "unavailable", "The event store is not available", "nothing has happened; try again")
	case errors.Is(err, registry.ErrUnavailable):
		return unavailable(err, "unavailable", "The schema registry is not available", "try again")
	case !errors.Is(err, eventstore.ErrInternal) && (postgres.Transient(err) || postgres.Classify(err) == postgres.ClassCanceled):
		return unavailable(err, "unavailable", "The database is not available", "try again")
	default:
		return problem.New(http.StatusInternalServerError, "internal", "The server has made a mistake", "its log says which")
	}
}

// unavailable returns a 503 that says when to come back: later when the server has
// run out of something, or when a session has to be ended first.
func unavailable(err error, slug, title, detail string) *problem.Problem {
	p := problem.New(http.StatusServiceUnavailable, slug, title, detail)
	p.RetryAfter = max(time.Second, postgres.RetryAfter(err))
	if slug == "outcome-unknown" {
		p.RetryAfter = max(5*time.Second, p.RetryAfter)
	}
	return p
}

func expectedJSON(e eventstore.Expected) any {
	if v, exact := e.Version(); exact && v > 0 {
		return v
	}
	return e.String()
}

func unknownCategory(name string) *problem.Problem {
	return problem.New(http.StatusNotFound, "unknown-category", "There is no such category", name)
}

// category returns the category that a path names.
func (a *API) category(r *http.Request) (eventstore.Category, error) {
	c, ok := a.deps.Store.Category(r.PathValue("category"))
	if !ok {
		return c, unknownCategory(r.PathValue("category"))
	}
	return c, nil
}

// stream returns the category and the stream id that a path names.
func (a *API) stream(r *http.Request) (eventstore.Category, string, error) {
	c, err := a.category(r)
	if err != nil {
		return c, "", err
	}
	id := r.PathValue("id")
	if err := event.CheckStreamID(id); err != nil {
		return c, "", problem.BadRequest(err.Error())
	}
	return c, id, nil
}

// query reads the query parameters and refuses unknown and repeated ones.
func query(r *http.Request, known ...string) (map[string]string, error) {
	values, err := urlQuery(r)
	if err != nil {
		return nil, problem.BadRequest("the query string is malformed")
	}
	out := make(map[string]string)
	for name, list := range values {
		if !slices.Contains(known, name) {
			return nil, problem.BadParameter(name, "there is no such parameter here")
		}
		if len(list) != 1 {
			return nil, problem.BadParameter(name, "it is given more than once")
		}
		out[name] = list[0]
	}
	return out, nil
}

// number reads a parameter that is no negative number.
func number(params map[string]string, name string, fallback, most int64) (int64, error) {
	text, ok := params[name]
	if !ok {
		return fallback, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > most {
		return 0, problem.BadParameter(name, strconv.Quote(text)+" is no number from 0 to "+strconv.FormatInt(most, 10))
	}
	return n, nil
}
