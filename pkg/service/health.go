package service

import (
	"context"
	"fmt"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Health says whether a program is ready. It is safe for concurrent use.
type Health struct {
	mu       sync.Mutex
	checks   map[string]func(context.Context) error
	draining bool
}

// Check adds a named check of /readyz.
func (h *Health) Check(name string, check func(context.Context) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.checks == nil {
		h.checks = make(map[string]func(context.Context) error)
	}
	h.checks[name] = check
}

// Drain makes /readyz fail from now on.
func (h *Health) Drain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
}

// checkTimeout bounds all checks together.
const checkTimeout = 2 * time.Second

// report returns a line for each check and whether all is well.
func (h *Health) report(ctx context.Context) (text string, ready bool) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	h.mu.Lock()
	checks, draining := h.checks, h.draining
	names := make([]string, 0, len(checks))
	for name := range checks {
		names = append(names, name)
	}
	h.mu.Unlock()
	slices.Sort(names)
	var b strings.Builder
	ready = !draining
	if draining {
		b.WriteString("[-] shutdown: draining\n")
	}
	for _, name := range names {
		if err := checks[name](ctx); err != nil {
			ready = false
			fmt.Fprintf(&b, "[-] %s: %v\n", name, err)
		} else {
			fmt.Fprintf(&b, "[+] %s ok\n", name)
		}
	}
	return b.String(), ready
}

// AdminHandler serves /livez, which never looks at anything else, /readyz,
// /metrics and /debug/pprof.
func AdminHandler(h *Health, reg *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		text, ready := h.report(r.Context())
		if !ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		if _, verbose := r.URL.Query()["verbose"]; verbose || !ready {
			fmt.Fprint(w, text)
		}
		if ready {
			fmt.Fprintln(w, "ok")
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	return mux
}
