package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// RegisterAggregates adds the routes of commands, of aggregates in the past and
// of what caused what, and their descriptions.
func (a *API) RegisterAggregates(mux *http.ServeMux, rt *aggregate.Runtime) error {
	described, err := withAggregates(document, rt.Commands())
	if err != nil {
		return err
	}
	a.described.Store(&described)
	h := &aggregates{API: a, runtime: rt}
	for _, route := range []struct {
		method, path string
		f            func(http.ResponseWriter, *http.Request) error
	}{
		{"POST", "/v1/commands/{category}/{id}/{command}", h.postCommand},
		{"GET", "/v1/commands", h.getCommands},
		{"GET", "/v1/aggregates/{category}/{id}", h.getAggregate},
		{"GET", "/v1/aggregates/{category}/{id}/diff", h.getDiff},
		{"GET", "/v1/aggregates/{category}/{id}/audit", h.getAudit},
		{"GET", "/v1/events/{id}/causation", h.getCausation},
	} {
		mux.Handle(route.method+" "+route.path, a.handle(func(w http.ResponseWriter, r *http.Request) error {
			if r.Method == http.MethodGet {
				ctx, cancel := context.WithTimeoutCause(r.Context(), maxReplay, errReplay)
				defer cancel()
				r = r.WithContext(ctx)
			}
			err := route.f(w, r)
			if errors.Is(context.Cause(r.Context()), errReplay) && err != nil {
				err = errReplay
			}
			if p := commandProblem(err); p != nil {
				return p
			}
			return err
		}))
		mux.HandleFunc(route.path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Allow", route.method)
			problem.New(http.StatusMethodNotAllowed, "method-not-allowed", "The method is not allowed here", "allowed: "+route.method).Write(w)
		})
	}
	return nil
}

// maxReplay bounds reading the past, which folds a stream from its beginning.
const maxReplay = 5 * time.Second

var errReplay = problem.New(http.StatusServiceUnavailable, "query-timeout", "The query took too long", "the stream is long: ask for fewer versions, or for one behind its snapshot")

// aggregates serves what stands on aggregates in Go.
type aggregates struct {
	*API
	runtime *aggregate.Runtime
}

// commandProblem maps the errors of aggregates; nil for others.
func commandProblem(err error) *problem.Problem {
	var broken *aggregate.Broken
	var missing *aggregate.Missing
	var exists *aggregate.Exists
	var conflict *aggregate.Conflict
	var version *aggregate.UnknownVersion
	var misfit *strictjson.Misfit
	var syntax *strictjson.Error
	switch {
	case errors.As(err, &broken):
		return problem.New(http.StatusUnprocessableEntity, broken.Code, "The command would break a rule", broken.Msg)
	case errors.As(err, &missing):
		return problem.New(http.StatusNotFound, "missing-aggregate", "There is no such aggregate", "").With("category", missing.Category).With("stream", missing.ID)
	case errors.As(err, &exists):
		return problem.New(http.StatusConflict, "aggregate-exists", "The aggregate exists", exists.Error()).
			With("category", exists.Category).With("stream", exists.ID).With("actual", exists.Version)
	case errors.As(err, &conflict):
		expected := eventstore.Exists
		if conflict.Expected >= 0 {
			expected = eventstore.Exactly(conflict.Expected)
		}
		return problem.New(http.StatusConflict, "version-conflict", "The aggregate is at another version", conflict.Error()).
			With("category", conflict.Category).With("stream", conflict.ID).With("expected", expectedJSON(expected)).With("actual", conflict.Actual)
	case errors.As(err, &version):
		return problem.New(http.StatusNotFound, "unknown-version", "The aggregate had no such version", "").
			With("category", version.Category).With("stream", version.ID).With("actual", version.Actual)
	case errors.As(err, &misfit):
		return problem.New(http.StatusUnprocessableEntity, "invalid-command", "The body does not fit the command", misfit.Msg).At(misfit.Pointer)
	case errors.As(err, &syntax):
		return problem.BadRequest(syntax.Msg).At(syntax.Pointer)
	case errors.Is(err, aggregate.ErrUnknownCommand):
		return problem.New(http.StatusNotFound, "unknown-command", "The aggregate has no such command", err.Error())
	default:
		return nil
	}
}

// handler returns the aggregate type and the id that a path names.
func (a *aggregates) handler(r *http.Request) (aggregate.Handler, string, error) {
	c, id, err := a.stream(r)
	if err != nil {
		return nil, "", err
	}
	h, ok := a.runtime.Handler(c.Name)
	if !ok {
		return nil, "", problem.New(http.StatusNotFound, "unknown-aggregate", "The category has no aggregate in this writer", c.Name)
	}
	return h, id, nil
}

func (a *aggregates) postCommand(w http.ResponseWriter, r *http.Request) error {
	h, id, err := a.handler(r)
	if err != nil {
		return err
	}
	body := []byte("{}") // of a command that needs nothing
	if r.ContentLength != 0 {
		if err := jsonBody(r); err != nil {
			return err
		}
		read, release, err := a.body(w, r)
		if err != nil {
			return err
		}
		defer release()
		body = read
	}
	options, err := commandOptions(r, body)
	if err != nil {
		return err
	}
	result, err := a.run(r, h, id, body, options)
	if err != nil {
		return err
	}
	writeCommand(w, result)
	return nil
}

// run runs a command. One that panics is a mistake of the domain's code, which
// must be seen, and has stored nothing.
func (a *aggregates) run(r *http.Request, h aggregate.Handler, id string, body []byte, options []aggregate.Option) (result *aggregate.Result, err error) {
	command := r.PathValue("command")
	defer func() {
		if p := recover(); p != nil {
			a.deps.Logger.Error("a command panicked", "category", h.Category(), "stream", id, "command", command, "err", p, "stack", string(debug.Stack()))
			err = problem.New(http.StatusServiceUnavailable, "command-failed", "The command has failed", "nothing has happened; the writer's log says why")
		}
	}()
	return h.Run(r.Context(), id, command, body, options...)
}

// commandOptions reads the headers of a command. Path, If-Match and body make
// the request of an Idempotency-Key.
func commandOptions(r *http.Request, body []byte) (options []aggregate.Option, err error) {
	m, err := metadataOf(r)
	if err != nil {
		return nil, err
	}
	options = append(options, aggregate.WithMetadata(m))
	if match := r.Header.Get("If-Match"); match != "" {
		var asked eventstore.Append
		if err := ifMatch(r, &asked, false); err != nil {
			return nil, err
		}
		if version, exact := asked.Expected.Version(); exact {
			options = append(options, aggregate.WithVersion(version))
		} else {
			options = append(options, aggregate.WithExisting())
		}
	}
	key, given, err := keyOf(r)
	if err != nil {
		return nil, err
	}
	if given {
		sum := sha256.Sum256(digest(r.URL.Path, r.Header.Get("If-Match"), body))
		options = append(options, aggregate.WithCommandID(key, hex.EncodeToString(sum[:])))
	}
	return options, nil
}

// metadataOf reads who acts and why from headers.
func metadataOf(r *http.Request) (event.Metadata, error) {
	m := event.Metadata{Traceparent: traceparent(r)}
	for name, to := range map[string]*string{"Refold-Actor": &m.Actor, "Refold-Correlation-Id": &m.CorrelationID, "Refold-Causation-Id": &m.CausationID} {
		*to = r.Header.Get(name)
		if len(*to) > maxMetadata || !utf8.ValidString(*to) || strings.ContainsFunc(*to, func(c rune) bool { return c < 0x20 || c == 0x7f }) {
			return m, problem.BadRequest("the header " + name + " is no text of at most " + strconv.Itoa(maxMetadata) + " bytes")
		}
	}
	return m, nil
}

func writeCommand(w http.ResponseWriter, result *aggregate.Result) {
	status := http.StatusCreated
	if len(result.Events) == 0 || result.Replayed {
		status = http.StatusOK
	}
	if result.Replayed {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	w.Header().Set("ETag", `"`+strconv.FormatInt(result.Version, 10)+`"`)
	out := append([]byte(`{"category":"`), result.Category...) // names and ids are ASCII that needs no quoting
	out = append(append(out, `","stream":"`...), result.ID...)
	out = strconv.AppendInt(append(out, `","version":`...), result.Version, 10)
	out = append(out, `,"token":"`...)
	if token := result.Token(); len(token) > 0 {
		out = append(out, token.String()...)
	}
	out = append(out, `","events":[`...)
	for i := range result.Events {
		if i > 0 {
			out = append(out, ',')
		}
		out = appendAppended(out, &result.Events[i])
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(out, "]}\n"...)) // a client that has gone needs no answer
}

// getCommands lists the commands of all aggregates with the JSON Schemas of their bodies.
func (a *aggregates) getCommands(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return err
	}
	list := []map[string]any{}
	for _, c := range a.runtime.Commands() {
		list = append(list, map[string]any{"category": c.Category, "name": c.Name, "creates": c.Creates, "schema": c.Schema})
	}
	return respond(w, list)
}
