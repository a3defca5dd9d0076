package reaction

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// Register adds the calls about reactions to mux:
//
//	GET  /v1/reactions                                       [{"name","category","behind","parked"}]
//	GET  /v1/reactions/{name}/parked                         the streams that wait, with their errors
//	POST /v1/reactions/{name}/parked/{category%2Fid}/retry   {"reason"}, or skip: 202
func Register(mux *http.ServeMux, pool *pgxpool.Pool) {
	s := &server{pool}
	for pattern, f := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /v1/reactions":                                  s.list,
		"GET /v1/reactions/{name}/parked":                    s.parked,
		"POST /v1/reactions/{name}/parked/{stream}/{action}": s.decide,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := f(w, r); err != nil {
				problemOf(err).Write(w)
			}
		})
	}
}

type server struct{ pool *pgxpool.Pool }

func problemOf(err error) *problem.Problem {
	var p *problem.Problem
	var syntax *strictjson.Error
	var misfit *strictjson.Misfit
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &syntax):
		return problem.BadRequest(syntax.Msg).At(syntax.Pointer)
	case errors.As(err, &misfit):
		return problem.BadRequest(misfit.Msg).At(misfit.Pointer)
	case errors.Is(err, ErrNotParked):
		return problem.New(http.StatusNotFound, "not-parked", "The stream is not parked", "")
	default:
		return problem.New(http.StatusServiceUnavailable, "unavailable", "The database is not available", "try again")
	}
}

func respond(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // a client that has gone needs no answer
	return nil
}

func (s *server) list(w http.ResponseWriter, r *http.Request) error {
	rows, err := s.pool.Query(r.Context(), `
		select p.reaction, p.category,
		       sum(greatest(coalesce((select e.seq from refold.event e where e.category = c.id and e.slot = p.slot order by e.seq desc limit 1), p.seq) - p.seq, 0))::bigint,
		       (select count(*) from refold.reaction_parked k where k.reaction = p.reaction and k.category = p.category)
		from refold.reaction_progress p join refold.category c on c.name = p.category group by p.reaction, p.category order by 1, 2`)
	if err != nil {
		return err
	}
	type entry struct {
		Name     string `json:"name"`
		Category string `json:"category"`
		Behind   int64  `json:"behind"`
		Parked   int64  `json:"parked"`
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
	if err != nil {
		return err
	}
	if list == nil {
		list = []entry{}
	}
	return respond(w, http.StatusOK, list)
}

func (s *server) parked(w http.ResponseWriter, r *http.Request) error {
	list, err := ParkedStreams(r.Context(), s.pool, r.PathValue("name"))
	if err != nil {
		return err
	}
	out := make([]map[string]any, len(list))
	for i, p := range list {
		out[i] = map[string]any{"category": p.Category, "stream": p.Stream, "version": p.Version, "event": p.Event, "attempts": p.Attempts, "error": p.Error,
			"since": p.Since.UTC(), "request": p.Request}
	}
	return respond(w, http.StatusOK, out)
}

// maxReason bounds a body: a reason is a sentence.
const maxReason = 4096

func (s *server) decide(w http.ResponseWriter, r *http.Request) error {
	action := r.PathValue("action")
	if action != "retry" && action != "skip" {
		return problem.New(http.StatusNotFound, "not-found", "There is nothing here", "retry or skip")
	}
	category, stream, named := strings.Cut(r.PathValue("stream"), "/")
	if !named {
		return problem.BadRequest("the path names a stream as category%2Fid")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReason))
	if err != nil {
		return problem.New(http.StatusRequestEntityTooLarge, "too-large", "The body is too large", "")
	}
	var in struct {
		Reason string `json:"reason"`
	}
	if err := strictjson.Unmarshal(body, &in); err != nil {
		return err
	}
	if in.Reason == "" {
		return problem.BadRequest("a reason is needed").At("/reason")
	}
	if err := request(r.Context(), s.pool, r.PathValue("name"), category, stream, action, in.Reason); err != nil {
		return err
	}
	return respond(w, http.StatusAccepted, map[string]any{"category": category, "stream": stream, "request": action})
}
