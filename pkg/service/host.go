package service

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/registry"
)

// Component is one thing that a program does: appending, relaying, feeding
// projections, serving queries.
type Component interface {
	// Name is what logs and /readyz call it.
	Name() string
	// Start brings it up on what it depends on, and adds its routes to the host's
	// Mux. An error that time may mend (see waits) has it called again, so routes are
	// added last.
	Start(ctx context.Context, h *Host) error
	// Run works until ctx ends, then finishes what is under way and returns nil.
	Run(ctx context.Context) error
}

// Host runs components in one process: with one admin port and, if they serve
// anything, one API port. A component starts when those before it are up and
// stops when those behind it have stopped, so what is depended upon stands first.
type Host struct {
	Settings *Settings
	Log      *slog.Logger
	Registry *prometheus.Registry
	Health   *Health
	// Mux is the API. What no route matches is answered by the host.
	Mux *http.ServeMux
	// Ready is called once, when every component is up.
	Ready func()

	program  string
	admin    Admin
	service  Service
	traces   *trace.TracerProvider // nil: nothing is traced
	previous chan struct{}         // closed when the component that was added last is up
	mu       sync.Mutex
	waiting  map[string]error // components that are not up, with the reason
}

// NewHost returns a host of a program, named for its metrics, and listens on its
// admin port, so that /readyz says what is waited for from the first moment.
func NewHost(s *Settings, program string, admin Admin) (*Host, error) {
	up := make(chan struct{})
	close(up)
	h := &Host{Settings: s, Log: s.Logger(), Registry: NewRegistry(program), Health: &Health{}, Mux: http.NewServeMux(), program: program, admin: admin,
		previous: up, waiting: make(map[string]error)}
	h.Mux.HandleFunc("/", h.fallback)
	if s.registry != nil { // what is known goes on without it
		h.Health.Note("schema registry", s.registry.Ping)
	}
	h.service = Service{Log: h.Log, Health: h.Health, DrainDelay: admin.DrainDelay, Panics: newPanics(h.Registry)}
	_, err := h.service.Serve("admin server", admin.AdminAddr, nil, AdminHandler(h.Health, h.Registry))
	if err != nil {
		return nil, err
	}
	return h, h.startTraces()
}

var errStarting = errors.New("starting")

// Add adds a component.
func (h *Host) Add(c Component) {
	after, up := h.previous, make(chan struct{})
	h.previous = up
	h.note(c.Name(), errStarting)
	h.Health.Check(c.Name(), func(context.Context) error { return h.reason(c.Name()) })
	h.service.Add(c.Name(), func(ctx context.Context) error {
		select {
		case <-after:
		case <-ctx.Done():
			return nil
		}
		if err := h.start(ctx, c); err != nil || ctx.Err() != nil {
			return err
		}
		close(up)
		return c.Run(ctx)
	})
}

// retryPause is how long a component waits for what it depends on; a database
// says nothing when it comes up.
const retryPause = 250 * time.Millisecond

// start calls Start until it succeeds or ctx ends. What is waited for is logged
// when it changes, and every minute.
func (h *Host) start(ctx context.Context, c Component) error {
	logged, last := time.Time{}, ""
	for {
		err := c.Start(ctx, h)
		switch {
		case err == nil:
			h.note(c.Name(), nil)
			return nil
		case ctx.Err() != nil:
			return nil //nolint:nilerr // asked to stop while starting
		case !waits(err):
			return err
		}
		h.note(c.Name(), err)
		if err.Error() != last || time.Since(logged) > time.Minute {
			h.Log.Warn("waiting to start", "component", c.Name(), "err", err)
			logged, last = time.Now(), err.Error()
		}
		timer := time.NewTimer(retryPause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// waits tells whether time may mend an error of Start.
func waits(err error) bool {
	var unreachable *brokersUnreachable
	var issuer *issuerUnreachable
	return postgres.Transient(err) || errors.Is(err, errSchema) || errors.Is(err, engine.ErrNoCategory) || errors.Is(err, registry.ErrUnavailable) || errors.As(err, &unreachable) || errors.As(err, &issuer)
}

func (h *Host) note(name string, reason error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if reason == nil {
		delete(h.waiting, name)
	} else {
		h.waiting[name] = reason
	}
}

func (h *Host) reason(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiting[name]
}

// fallback answers what no route matches: while components start it is not known
// whether there will be a route.
func (h *Host) fallback(w http.ResponseWriter, _ *http.Request) {
	h.mu.Lock()
	starting := len(h.waiting) > 0
	h.mu.Unlock()
	if starting {
		problem.New(http.StatusServiceUnavailable, "unavailable", "The service is starting", "see /readyz?verbose on the admin port").Write(w)
		return
	}
	problem.New(http.StatusNotFound, "not-found", "There is nothing here", "").Write(w)
}

// Run runs all components until ctx ends or one of them fails.
func (h *Host) Run(ctx context.Context) error {
	if h.Ready != nil {
		up := h.previous
		h.service.Add("greeting", func(ctx context.Context) error {
			select {
			case <-up:
				h.Ready()
			case <-ctx.Done():
			}
			return nil
		})
	}
	return h.service.Run(ctx)
}

// open opens a pool for a component. It does not dial.
func (h *Host) open(ctx context.Context, component string, conns int, timeout time.Duration) (*pgxpool.Pool, error) {
	return postgres.Open(ctx, postgres.Config{URL: h.Settings.DatabaseURL, AppName: "refold-" + component, MaxConns: conns, StatementTimeout: timeout})
}
