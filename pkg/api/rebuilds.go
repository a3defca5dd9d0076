package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/rebuilder"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// rebuilds serves versions and rebuilds.
type rebuilds struct {
	rebuilder *rebuilder.Rebuilder
	log       *slog.Logger
}

// RegisterRebuilds adds the routes of projections' versions and of rebuilds.
func RegisterRebuilds(mux *http.ServeMux, r *rebuilder.Rebuilder, log *slog.Logger) {
	a := &rebuilds{rebuilder: r, log: log}
	act := func(f func(context.Context, int64) error) func(http.ResponseWriter, *http.Request) error {
		return func(w http.ResponseWriter, r *http.Request) error { return a.act(w, r, f) }
	}
	for pattern, f := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /v1/projections":                           a.list,
		"GET /v1/projections/{name}/versions/{version}": a.version,
		"GET /v1/projections/{name}/rebuilds":           a.latest,
		"POST /v1/projections/{name}/rebuilds":          a.request,
		"POST /v1/projections/{name}/rollback":          a.rollBack,
		"POST /v1/projections/{name}/retire":            a.retire,
		"GET /v1/rebuilds/{id}":                         a.get,
		"POST /v1/rebuilds/{id}/cancel":                 act(r.Cancel),
		"POST /v1/rebuilds/{id}/pause":                  act(r.Pause),
		"POST /v1/rebuilds/{id}/resume":                 act(r.Resume),
		"POST /v1/rebuilds/{id}/promote":                a.promote,
	} {
		mux.Handle(pattern, answering(a.log, rebuildProblem, f))
	}
}

func rebuildProblem(err error) *problem.Problem {
	var p *problem.Problem
	var busy *rebuilder.Busy
	var left *rebuilder.Left
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &left):
		return problem.New(http.StatusConflict, "definition-left", "The projection has left this definition", left.Error())
	case errors.As(err, &busy):
		return problem.New(http.StatusConflict, "rebuild-under-way", "The projection is being rebuilt", busy.Error()).With("rebuild", strconv.FormatInt(busy.Rebuild, 10))
	case errors.Is(err, rebuilder.ErrNoDefinition), errors.Is(err, readmodel.ErrUnknownProjection):
		return problem.New(http.StatusNotFound, "unknown-projection", "There is no such projection", "")
	case errors.Is(err, rebuilder.ErrNoRebuild):
		return problem.New(http.StatusNotFound, "unknown-rebuild", "There is no such rebuild", "")
	case errors.Is(err, rebuilder.ErrNoVersion):
		return problem.New(http.StatusNotFound, "unknown-version", "There is no such version", err.Error())
	case errors.Is(err, rebuilder.ErrNoFormer):
		return problem.New(http.StatusConflict, "no-former-version", "There is nothing to roll back to", err.Error())
	case errors.Is(err, rebuilder.ErrState), errors.Is(err, readmodel.ErrNotServable):
		return problem.New(http.StatusConflict, "wrong-state", "It is not in a state for this", err.Error())
	case errors.Is(err, readmodel.ErrServing):
		return problem.New(http.StatusConflict, "version-serves", "The version serves queries", err.Error())
	case errors.Is(err, readmodel.ErrBehind):
		return problem.New(http.StatusServiceUnavailable, "behind", "The version is behind the one that serves", err.Error())
	case errors.Is(err, rebuilder.ErrOptions):
		return problem.BadRequest(err.Error())
	default:
		return problem.New(http.StatusServiceUnavailable, "unavailable", "The database is not available", "try again")
	}
}

func (a *rebuilds) list(w http.ResponseWriter, r *http.Request) error {
	list, err := a.rebuilder.Projections(r.Context(), "")
	if err != nil {
		return err
	}
	return respond(w, list)
}

func (a *rebuilds) version(w http.ResponseWriter, r *http.Request) error {
	n, err := strconv.Atoi(r.PathValue("version"))
	if err != nil || n < 1 {
		return problem.BadRequest("versions are numbers from 1 on")
	}
	v, err := a.rebuilder.Version(r.Context(), r.PathValue("name"), n)
	if err != nil {
		return err
	}
	return respond(w, v)
}

func (a *rebuilds) latest(w http.ResponseWriter, r *http.Request) error {
	now, err := a.rebuilder.Latest(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	return respond(w, now)
}

// rebuildRequest is the body of a request for a rebuild; each member may be left out.
type rebuildRequest struct {
	Promote  string `json:"promote,omitempty"`
	Source   string `json:"source,omitempty"`
	Verify   string `json:"verify,omitempty"`
	Memory   int64  `json:"memoryBytes,omitempty"`
	Rate     int    `json:"rate,omitempty"`
	Parallel int    `json:"parallel,omitempty"`
	Keep     string `json:"keep,omitempty"`
	Fresh    bool   `json:"fresh,omitempty"`
	Back     bool   `json:"back,omitempty"`
	Force    string `json:"force,omitempty"`
}

func (a *rebuilds) request(w http.ResponseWriter, r *http.Request) error {
	var body rebuildRequest
	if err := readBody(w, r, &body); err != nil {
		return err
	}
	options := rebuilder.Options{Promote: body.Promote, Source: rebuilder.Source(body.Source), Verify: rebuilder.Verification(body.Verify), MemoryBytes: body.Memory,
		Rate: body.Rate, Parallel: body.Parallel, Fresh: body.Fresh, Back: body.Back, Force: body.Force}
	if body.Keep != "" {
		keep, err := time.ParseDuration(body.Keep)
		if err != nil {
			return problem.BadRequest("keep is " + strconv.Quote(body.Keep) + ": want a duration such as 24h").At("/keep")
		}
		options.Keep = rebuilder.Duration(keep)
	}
	id, err := a.rebuilder.Request(r.Context(), r.PathValue("name"), options)
	if err != nil {
		return err
	}
	text := strconv.FormatInt(id, 10)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Location", "/v1/rebuilds/"+text)
	w.WriteHeader(http.StatusAccepted)
	return json.NewEncoder(w).Encode(map[string]string{"id": text})
}

// maxRebuildBody bounds the body of a request for a rebuild.
const maxRebuildBody = 64 << 10

// readBody reads an optional JSON body strictly.
func readBody(w http.ResponseWriter, r *http.Request, into any) error {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRebuildBody))
	if err != nil {
		return problem.New(http.StatusRequestEntityTooLarge, "too-large", "The body is too large", "")
	}
	if len(raw) == 0 {
		return nil
	}
	if err := strictjson.Unmarshal(raw, into); err != nil {
		return problem.BadRequest(err.Error())
	}
	return nil
}

func (a *rebuilds) id(r *http.Request) (int64, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil || id < 1 {
		return 0, rebuilder.ErrNoRebuild
	}
	return id, nil
}

func (a *rebuilds) get(w http.ResponseWriter, r *http.Request) error {
	id, err := a.id(r)
	if err != nil {
		return err
	}
	now, err := a.rebuilder.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return respond(w, now)
}

func (a *rebuilds) act(w http.ResponseWriter, r *http.Request, f func(context.Context, int64) error) error {
	id, err := a.id(r)
	if err != nil {
		return err
	}
	if err := f(r.Context(), id); err != nil {
		return err
	}
	return a.get(w, r)
}

func (a *rebuilds) promote(w http.ResponseWriter, r *http.Request) error {
	id, err := a.id(r)
	if err != nil {
		return err
	}
	now, err := a.rebuilder.Promote(r.Context(), id)
	if err != nil {
		return err
	}
	return respond(w, now)
}

func (a *rebuilds) rollBack(w http.ResponseWriter, r *http.Request) error {
	version, err := a.rebuilder.RollBack(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	return respond(w, map[string]any{"name": r.PathValue("name"), "active": version})
}

func (a *rebuilds) retire(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		Version int `json:"version,omitempty"`
	}
	if err := readBody(w, r, &body); err != nil {
		return err
	}
	retired, err := a.rebuilder.Retire(r.Context(), r.PathValue("name"), body.Version)
	if err != nil {
		return err
	}
	if retired == nil {
		retired = []int{}
	}
	return respond(w, map[string]any{"name": r.PathValue("name"), "retired": retired})
}
