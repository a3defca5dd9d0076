package service

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Health says whether a program is ready. It is safe for concurrent use.
type Health struct {
	mu       sync.Mutex
	checks   map[string]check
	draining atomic.Bool
}

type check struct {
	ask  func(context.Context) error
	note bool
}

// Check adds a named check of /readyz, or replaces the one of that name.
func (h *Health) Check(name string, ask func(context.Context) error) { h.add(name, check{ask: ask}) }

// Note adds a check that is shown and does not make the program unready, for what
// it can do without.
func (h *Health) Note(name string, ask func(context.Context) error) {
	h.add(name, check{ask: ask, note: true})
}

func (h *Health) add(name string, c check) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.checks == nil {
		h.checks = make(map[string]check)
	}
	h.checks[name] = c
}

// Drain makes /readyz fail from now on.
func (h *Health) Drain() {
	h.draining.Store(true)
}

// checkTimeout bounds all checks together.
const checkTimeout = 2 * time.Second

// report asks all checks at once and returns a line for each and whether all is
// well.
func (h *Health) report(ctx context.Context) (text string, ready bool) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	h.mu.Lock()
	checks, draining := maps.Clone(h.checks), h.draining.Load()
	h.mu.Unlock()
	names := slices.Sorted(maps.Keys(checks))
	answers := make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() { answers[i] = checks[name].ask(ctx) })
	}
	all.Wait()
	var b strings.Builder
	ready = !draining
	if draining {
		b.WriteString("[-] shutdown: draining\n")
	}
	for i, name := range names {
		switch err := answers[i]; {
		case err == nil:
			fmt.Fprintf(&b, "[+] %s ok\n", name)
		case checks[name].note:
			fmt.Fprintf(&b, "[!] %s: %s (the program goes on)\n", name, oneLine(err))
		default:
			ready = false
			fmt.Fprintf(&b, "[-] %s: %s\n", name, oneLine(err))
		}
	}
	return b.String(), ready
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

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
