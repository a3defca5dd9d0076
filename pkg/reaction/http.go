package reaction

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// Register adds the calls about reactions to mux:
//
//	GET  /v1/reactions                                       [{"name","category","behind","parked","stopped"}]
//	GET  /v1/reactions/{name}/parked                         the streams that wait, with their errors
//	POST /v1/reactions/{name}/parked/{category%2Fid}/retry   {"reason","version"?}, or skip: 202
//	GET  /v1/reactions/{name}/stopped                        the slots whose log does not go on behind what was handled
//	POST /v1/reactions/{name}/stopped/{category}/{slot}/resume   {"after","reason"}: go on behind the event with that seq
func Register(mux *http.ServeMux, pool *pgxpool.Pool) {
	s := &server{pool}
	for pattern, f := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /v1/reactions":                                          s.list,
		"GET /v1/reactions/{name}/parked":                            s.parked,
		"POST /v1/reactions/{name}/parked/{stream}/{action}":         s.decide,
		"GET /v1/reactions/{name}/stopped":                           s.stopped,
		"POST /v1/reactions/{name}/stopped/{category}/{slot}/resume": s.resume,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			err := problem.CheckPath(r)
			if err == nil {
				err = f(w, r)
			}
			if err != nil {
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
	var other *OtherVersion
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &syntax):
		return problem.BadRequest(syntax.Msg).At(syntax.Pointer)
	case errors.As(err, &misfit):
		return problem.BadRequest(misfit.Msg).At(misfit.Pointer)
	case errors.As(err, &other):
		return problem.New(http.StatusConflict, "parked-elsewhere", "The stream is parked at another event", other.Error()).With("actual", other.Version)
	case errors.Is(err, ErrNotStopped):
		return problem.New(http.StatusNotFound, "not-stopped", "The slot is not stopped", "")
	case errors.Is(err, ErrNoEvent):
		return problem.New(http.StatusUnprocessableEntity, "unknown-event", "The slot has no event with this seq", "").At("/after")
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
		       (select count(*) from refold.reaction_parked k where k.reaction = p.reaction and k.category = p.category),
		       count(p.stopped)
		from refold.reaction_progress p join refold.category c on c.name = p.category group by p.reaction, p.category order by 1, 2`)
	if err != nil {
		return err
	}
	type entry struct {
		Name     string `json:"name"`
		Category string `json:"category"`
		Behind   int64  `json:"behind"`
		Parked   int64  `json:"parked"`
		Stopped  int64  `json:"stopped"`
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
	var in struct {
		Reason  string `json:"reason"`
		Version int64  `json:"version,omitempty"`
	}
	if err := read(w, r, &in); err != nil {
		return err
	}
	if err := checkReason(in.Reason); err != nil {
		return err
	}
	if in.Version < 0 {
		return problem.BadRequest("a version is that of the event where the stream is parked").At("/version")
	}
	if err := request(r.Context(), s.pool, r.PathValue("name"), category, stream, in.Version, action, in.Reason); err != nil {
		return err
	}
	return respond(w, http.StatusAccepted, map[string]any{"category": category, "stream": stream, "request": action})
}

// read reads a body strictly.
func read(w http.ResponseWriter, r *http.Request, in any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReason))
	if err != nil {
		return problem.New(http.StatusRequestEntityTooLarge, "too-large", "The body is too large", "")
	}
	return strictjson.Unmarshal(body, in)
}

func checkReason(reason string) error {
	if reason == "" || strings.Contains(reason, "\x00") {
		return problem.BadRequest("a reason is needed, as text").At("/reason")
	}
	return nil
}

func (s *server) stopped(w http.ResponseWriter, r *http.Request) error {
	list, err := StoppedSlots(r.Context(), s.pool, r.PathValue("name"))
	if err != nil {
		return err
	}
	return respond(w, http.StatusOK, list)
}

func (s *server) resume(w http.ResponseWriter, r *http.Request) error {
	slot, err := strconv.ParseInt(r.PathValue("slot"), 10, 16)
	if err != nil || slot < 0 {
		return ErrNotStopped
	}
	var in struct {
		After  int64  `json:"after"`
		Reason string `json:"reason"`
	}
	if err := read(w, r, &in); err != nil {
		return err
	}
	if err := checkReason(in.Reason); err != nil {
		return err
	}
	if err := Resume(r.Context(), s.pool, r.PathValue("name"), r.PathValue("category"), int(slot), in.After, in.Reason); err != nil {
		return err
	}
	return respond(w, http.StatusAccepted, map[string]any{"category": r.PathValue("category"), "slot": slot, "after": in.After})
}
