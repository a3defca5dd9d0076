// Package query serves read models over HTTP: by key and as lists with filters,
// order and keyset cursors, each answer from one snapshot that contains the
// tokens that the client sent.
//
// Names in a request are looked up in the plan of the version that answers, and
// values are bound: nothing of a client becomes SQL.
package query

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// Deps are what the API is made of.
type Deps struct {
	Reader    *readmodel.Reader
	Catalogue *readmodel.Catalogue
	Plans     *readmodel.Plans
	Feeds     *readmodel.Feeds
	Explainer *readmodel.Explainer
	Log       *slog.Logger
	Metrics   prometheus.Registerer
}

// API serves queries. It is safe for concurrent use.
type API struct {
	reader    *readmodel.Reader
	catalogue *readmodel.Catalogue
	plans     *readmodel.Plans
	feeds     *readmodel.Feeds
	explainer *readmodel.Explainer
	log       *slog.Logger
	duration  *prometheus.HistogramVec
}

// New returns the API.
func New(d Deps) *API {
	a := &API{reader: d.Reader, catalogue: d.Catalogue, plans: d.Plans, feeds: d.Feeds, explainer: d.Explainer, log: d.Log,
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "refold_query_duration_seconds",
			Help:    "Time from a query to its answer, waits for a token included.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}, []string{"operation", "outcome"})}
	hits := func() float64 { n, _ := d.Reader.CacheStats(); return float64(n) }
	misses := func() float64 { _, n := d.Reader.CacheStats(); return float64(n) }
	const lookups = "refold_query_cache_lookups_total"
	const help = "Answers that were looked for among those that are kept."
	d.Metrics.MustRegister(a.duration,
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: lookups, Help: help, ConstLabels: prometheus.Labels{"outcome": "hit"}}, hits),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: lookups, Help: help, ConstLabels: prometheus.Labels{"outcome": "miss"}}, misses),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "refold_query_followers", Help: "Clients that follow changes of read models."},
			func() float64 { return float64(d.Feeds.Followers()) }))
	return a
}

// Register adds the API's routes to mux.
func (a *API) Register(mux *http.ServeMux) {
	a.route(mux, "models", "GET /v1/read-models", jsonMedia, a.listModels)
	a.route(mux, "list", "GET /v1/read-models/{name}", jsonMedia, a.list)
	a.route(mux, "list", "POST /v1/read-models/{name}/query", jsonMedia, a.post)
	a.route(mux, "changes", "GET /v1/read-models/{name}/changes", "text/event-stream", a.changes)
	a.route(mux, "export", "GET /v1/read-models/{name}/export", ndjsonMedia, a.export)
	a.route(mux, "explain", "GET /v1/read-models/{name}/{key}/explain", jsonMedia, a.explain)
	a.route(mux, "get", "GET /v1/read-models/{name}/{key}", jsonMedia, a.get)
	for _, path := range []string{"/v1/read-models", "/v1/read-models/{name}", "/v1/read-models/{name}/{key}", "/v1/read-models/{name}/{key}/explain"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			methods := "GET, HEAD"
			if r.PathValue("key") == "query" {
				methods += ", POST"
			}
			w.Header().Set("Allow", methods)
			problem.New(http.StatusMethodNotAllowed, "method-not-allowed", "The method is not allowed here", "allowed: "+methods).Write(w)
		})
	}
}

const jsonMedia = "application/json"

func (a *API) route(mux *http.ServeMux, operation, pattern, media string, answer func(http.ResponseWriter, *http.Request) error) {
	durations := map[string]prometheus.Observer{}
	for _, outcome := range []string{"ok", "refused", "stale", "failed"} {
		durations[outcome] = a.duration.WithLabelValues(operation, outcome)
	}
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		err := problem.CheckPath(r)
		if err == nil {
			err = checkAccept(r, media)
		}
		if err == nil {
			err = answer(w, r)
		}
		outcome := "ok"
		if err != nil {
			outcome = a.refuse(w, r, err)
		}
		durations[outcome].Observe(time.Since(start).Seconds())
	})
}

// refuse answers with a problem and returns the outcome as a label.
func (a *API) refuse(w http.ResponseWriter, r *http.Request, err error) string {
	p := toProblem(err)
	p.Write(w)
	switch {
	case p.Status < http.StatusInternalServerError:
		return "refused"
	case p.Type == "not-caught-up":
		return "stale"
	}
	if r.Context().Err() == nil {
		a.log.Warn("a query failed", "projection", r.PathValue("name"), "err", err)
	}
	return "failed"
}

// checkAccept refuses a request whose Accept excludes the type of the answer.
func checkAccept(r *http.Request, media string) error {
	accept := r.Header["Accept"]
	if len(accept) == 0 {
		return nil
	}
	kind, _, _ := strings.Cut(media, "/")
	for part := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		want, _, _ := strings.Cut(part, ";")
		if want = strings.TrimSpace(want); want == "*/*" || want == kind+"/*" || strings.EqualFold(want, media) {
			return nil
		}
	}
	return problem.New(http.StatusNotAcceptable, "not-acceptable", "The answer has another type", "it is "+media)
}

func toProblem(err error) *problem.Problem {
	var p *problem.Problem
	var wrong *readmodel.QueryError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &wrong):
		return wrongQuery(wrong)
	case errors.Is(err, readmodel.ErrCursor):
		return problem.BadRequest(err.Error()).At("/cursor").With("parameter", "cursor")
	case errors.Is(err, readmodel.ErrChangeID):
		return problem.BadRequest("Last-Event-ID: " + err.Error())
	case errors.Is(err, readmodel.ErrChangesTooOld):
		return problem.New(http.StatusGone, "changes-too-old", "The changes cannot be told any more", err.Error())
	case errors.Is(err, readmodel.ErrCursorExpired):
		return problem.New(http.StatusGone, "cursor-expired", "The cursor is too old", err.Error())
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
	case errors.Is(err, readmodel.ErrLost):
		return problem.New(http.StatusServiceUnavailable, "not-caught-up", "The rows do not contain the token", "a failover of the database has lost an event of the token: append it again, and go on without the token")
	case errors.Is(err, readmodel.ErrBusy):
		return problem.New(http.StatusServiceUnavailable, "busy", "Too many exports are under way", err.Error())
	case errors.Is(err, readmodel.ErrTooExpensive):
		return problem.New(http.StatusServiceUnavailable, "query-timeout", "The query took too long", "narrow it, or declare an index that serves it")
	case errors.Is(err, readmodel.ErrNoAnswer):
		return problem.New(http.StatusServiceUnavailable, "unavailable", "The database does not answer", "it cannot be reached, or all sessions with it are busy: try again")
	case errors.Is(err, readmodel.ErrUnreadable):
		return problem.New(http.StatusServiceUnavailable, "unavailable", "This server is too old for the read model", "another one knows its definition: try again")
	case errors.Is(err, context.Canceled), errors.Is(err, readmodel.ErrClosed):
		return problem.New(http.StatusServiceUnavailable, "unavailable", "The server is stopping", "another one answers: try again")
	default:
		return problem.New(http.StatusServiceUnavailable, "unavailable", "The database is not available", "try again")
	}
}

// wrongQuery points at the parameter of the URL, or the member of the body, that
// is wrong.
func wrongQuery(e *readmodel.QueryError) *problem.Problem {
	p := problem.BadParameter(e.Parameter, e.Reason)
	if e.Index != nil {
		p.Type, p.Title = "no-index", "No index serves the query"
		p.With("index", e.Index)
	}
	return p
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
	fields, err := parseGet(r)
	if err != nil {
		return err
	}
	key := r.PathValue("key")
	row, from, err := a.reader.Get(r.Context(), r.PathValue("name"), key, f)
	if errors.Is(err, readmodel.ErrNoRow) {
		describe(w.Header(), from)
	}
	if err != nil {
		return err
	}
	if fields != nil {
		if err := fields.check(a.plans, from.Version); err != nil {
			return err
		}
		row = fields.appendRow(nil, row, key)
	}
	return respond(w, r, from, row)
}

// catalogueTimeout bounds the wait for the list of read models.
const catalogueTimeout = 5 * time.Second

func (a *API) listModels(w http.ResponseWriter, r *http.Request) error {
	if err := noParameters(r); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), catalogueTimeout)
	defer cancel()
	versions, err := a.catalogue.All(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: %w", readmodel.ErrNoAnswer, err)
	}
	if err != nil {
		return err
	}
	models := []map[string]any{}
	for _, v := range versions {
		if v.State != "active" {
			continue
		}
		plan, err := a.plans.Plan(v)
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
