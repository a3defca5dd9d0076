package api

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// parked serves what projections have parked, and takes requests about it.
type parked struct {
	parked *engine.Parked
	log    *slog.Logger
}

// RegisterParked adds the routes of parked streams.
func RegisterParked(mux *http.ServeMux, p *engine.Parked, log *slog.Logger) {
	a := &parked{parked: p, log: log}
	for pattern, f := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /v1/projections/{name}/parked":                 a.list,
		"POST /v1/projections/{name}/parked/{stream}/retry": a.ask("retry"),
		"POST /v1/projections/{name}/parked/{stream}/skip":  a.ask("skip"),
		"GET /v1/projections/{name}/requests/{id}":          a.get,
	} {
		mux.Handle(pattern, answering(a.log, parkedProblem, f))
	}
}

func parkedProblem(err error) *problem.Problem {
	var p *problem.Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, readmodel.ErrUnknownProjection):
		return problem.New(http.StatusNotFound, "unknown-projection", "There is no such projection", "")
	case errors.Is(err, engine.ErrNotParked):
		return problem.New(http.StatusNotFound, "not-parked", "The stream is not parked", "no version that is fed has it parked")
	case errors.Is(err, engine.ErrNoRequest):
		return problem.New(http.StatusNotFound, "unknown-request", "There is no such request", "")
	case errors.Is(err, engine.ErrRequest):
		return problem.BadRequest(err.Error()).At("/reason")
	default:
		return problem.New(http.StatusServiceUnavailable, "unavailable", "The database is not available", "try again")
	}
}

// parkedList is a page of what is parked.
type parkedList struct {
	Parked []engine.ParkedStream `json:"parked"`
	Next   *string               `json:"next"`
}

const (
	defaultParked = 100
	maxParked     = 1000
)

func (a *parked) list(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	for name := range query {
		if name != "limit" && name != "cursor" {
			return problem.BadRequest("there is no parameter " + strconv.Quote(name) + ": limit and cursor are").At("/" + name)
		}
	}
	limit := defaultParked
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxParked {
			return problem.BadRequest("limit is a number from 1 to " + strconv.Itoa(maxParked)).At("/limit")
		}
		limit = n
	}
	after, err := parseParkedCursor(query.Get("cursor"))
	if err != nil {
		return err
	}
	list, next, err := a.parked.List(r.Context(), r.PathValue("name"), after, limit)
	if err != nil {
		return err
	}
	page := parkedList{Parked: list}
	if next != nil {
		cursor := base64.RawURLEncoding.EncodeToString([]byte(strconv.Itoa(next.Version) + " " + next.Stream))
		page.Next = &cursor
	}
	return respond(w, page)
}

func parseParkedCursor(cursor string) (*engine.ParkedStream, error) {
	if cursor == "" {
		return nil, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	version, stream, found := strings.Cut(string(raw), " ")
	n, bad := strconv.Atoi(version)
	if err != nil || bad != nil || !found || !isText(stream) {
		return nil, problem.BadRequest("the cursor is none of this list").At("/cursor")
	}
	return &engine.ParkedStream{Stream: stream, Version: n}, nil
}

// isText tells whether a client's words may go to Postgres as a text.
func isText(s string) bool { return strings.ToValidUTF8(s, "") == s && !strings.Contains(s, "\x00") }

// maxRequestWait bounds how long an answer waits for what was asked to be done.
const maxRequestWait = 30 * time.Second

// ask takes a request and waits a while for what comes of it: 200 says that it is
// carried out, with the outcome of each version, 202 that it will be.
func (a *parked) ask(action string) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		category, id, found := strings.Cut(r.PathValue("stream"), "/")
		if !found || !isText(category) || !isText(id) {
			return problem.BadRequest("a stream is category/id, percent-encoded as one segment of the path: User%2Fabc")
		}
		wait := time.Second
		if text := r.Header.Get("Refold-Wait"); text != "" {
			var err error
			if wait, err = time.ParseDuration(text); err != nil || wait < 0 || wait > maxRequestWait {
				return problem.BadRequest("Refold-Wait is a duration up to 30s")
			}
		}
		var body struct {
			Reason string `json:"reason"`
		}
		if err := readBody(w, r, &body); err != nil {
			return err
		}
		name := r.PathValue("name")
		asked, err := a.parked.Request(r.Context(), name, category, id, action, body.Reason)
		if err != nil {
			return err
		}
		if asked, err = a.parked.Await(r.Context(), name, asked.ID, wait); err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/json")
		if asked.Done == nil {
			w.Header().Set("Location", "/v1/projections/"+name+"/requests/"+strconv.FormatInt(asked.ID, 10))
			w.WriteHeader(http.StatusAccepted)
		}
		json.NewEncoder(w).Encode(asked) // a client that has gone needs no answer
		return nil
	}
}

func (a *parked) get(w http.ResponseWriter, r *http.Request) error {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil || id < 1 {
		return engine.ErrNoRequest
	}
	request, err := a.parked.Get(r.Context(), r.PathValue("name"), id)
	if err != nil {
		return err
	}
	return respond(w, request)
}
