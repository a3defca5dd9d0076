package api

import (
	"log/slog"
	"net/http"

	"github.com/refoldhq/refold/pkg/problem"
)

// answering serves f. Its error is what toProblem makes of it; failures of ours
// are logged.
func answering(log *slog.Logger, toProblem func(error) *problem.Problem, f func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := problem.CheckPath(r)
		if err == nil {
			err = acceptable(r)
		}
		if err == nil {
			err = f(w, r)
		}
		if err == nil {
			return
		}
		p := toProblem(err)
		if p.Status >= http.StatusInternalServerError {
			log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
		}
		p.Write(w)
	})
}
