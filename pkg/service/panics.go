package service

import (
	"net/http"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/refoldhq/refold/pkg/problem"
)

func newPanics(reg prometheus.Registerer) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "refold_http_panics_total", Help: "Requests whose handler panicked: each is a bug, and the log holds its stack."})
	reg.MustRegister(c)
	return c
}

// recovering answers a request whose handler panics with a problem, or cuts the
// connection when an answer has begun, so that nobody takes half of one for whole.
// The log has the stack.
func (s *Service) recovering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := &begun{ResponseWriter: w}
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if p == http.ErrAbortHandler { //nolint:errorlint // it is thrown as it is
				panic(p)
			}
			if s.Panics != nil {
				s.Panics.Inc()
			}
			s.Log.Error("a request panicked", "method", r.Method, "path", r.URL.Path, "err", p, "stack", string(debug.Stack()))
			if answer.yes {
				panic(http.ErrAbortHandler)
			}
			problem.New(http.StatusInternalServerError, "internal", "The server has made a mistake", "its log says which").Write(w)
		}()
		next.ServeHTTP(answer, r)
	})
}

// begun notes that an answer has begun.
type begun struct {
	http.ResponseWriter
	yes bool
}

func (b *begun) WriteHeader(status int) {
	b.yes = b.yes || status >= 200
	b.ResponseWriter.WriteHeader(status)
}

func (b *begun) Write(p []byte) (int, error) {
	b.yes = true
	return b.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController. What it does to the connection underneath
// counts as an answer.
func (b *begun) Unwrap() http.ResponseWriter {
	b.yes = true
	return b.ResponseWriter
}
