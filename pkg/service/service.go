// Package service is what all of refold's programs have in common: the command
// line with its environment and config file ([Program], [Settings]), errors for
// people and exit codes ([Failure]), logs, the admin port with health, metrics and
// profiles ([Health], [AdminHandler]), and starting and stopping in order
// ([Service]).
//
// The components and commands of the programs stand here too, so that a team's own
// program embeds them; what they do stands in the packages above.
package service

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewLogger returns a logger on standard error: text for people, JSON for others.
func NewLogger(level slog.Level, json bool) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if json {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}

// version is set by the linker: see the Makefile.
var version string

// Version returns what this program was built from.
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// NewRegistry returns a metrics registry with those of the process and of Go, and
// with what was built.
func NewRegistry(program string) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "refold_build_info", Help: "Always 1; the labels name the program and what it was built from.",
		ConstLabels: prometheus.Labels{"program": program, "version": Version(), "go": runtime.Version()}})
	build.Set(1)
	reg.MustRegister(build)
	return reg
}

// Service runs parts and servers until it is asked to stop. Parts are stopped in
// the reverse order in which they were added: what is depended upon is added
// first and outlives its users.
type Service struct {
	Log    *slog.Logger
	Health *Health
	// DrainDelay is how long requests are served on after /readyz began to fail,
	// so that load balancers notice.
	DrainDelay time.Duration
	// Panics counts requests whose handler panicked; nil counts nothing.
	Panics prometheus.Counter

	parts []*part
}

// part is something that runs until its context ends.
type part struct {
	name string
	run  func(context.Context) error
	stop context.CancelFunc
	done chan struct{}
	err  error
}

// stopTimeout bounds stopping after the drain delay, serverTimeout what of it a
// server may take to answer the requests under way.
const (
	stopTimeout   = 10 * time.Second
	serverTimeout = 4 * time.Second
)

// Add adds a part.
func (s *Service) Add(name string, run func(context.Context) error) {
	s.parts = append(s.parts, &part{name: name, run: run, done: make(chan struct{})})
}

// Serve adds an HTTP server on addr with the time-outs against slow clients. It
// listens at once, so that an address in use is an error now. With a TLS
// configuration it speaks TLS.
func (s *Service) Serve(name, addr string, secure *tls.Config, handler http.Handler) (net.Addr, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening for the %s: %w", name, err)
	}
	base, abandon := context.WithCancel(context.Background())
	server := &http.Server{Handler: s.parting(s.recovering(handler)), BaseContext: func(net.Listener) context.Context { return base }, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, IdleTimeout: 60 * time.Second,
		MaxHeaderBytes: 64 << 10, TLSConfig: secure, ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug)}
	s.Add(name, func(ctx context.Context) error {
		defer abandon()
		failed := make(chan error, 1)
		go func() {
			if secure == nil {
				failed <- server.Serve(listener)
			} else {
				failed <- server.ServeTLS(listener, "", "")
			}
		}()
		select {
		case err := <-failed:
			return err
		case <-ctx.Done():
		}
		// Streams that never end by themselves are cut after half of the time.
		cut := time.AfterFunc(serverTimeout/2, abandon)
		defer cut.Stop()
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), serverTimeout)
		defer cancel()
		if err := server.Shutdown(closing); err != nil {
			server.Close()
		}
		return nil
	})
	return listener.Addr(), nil
}

// parting has connections closed with their next answer while the program drains,
// so that clients that keep them go elsewhere before the end instead of at it.
func (s *Service) parting(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.Health.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// Run runs until the end of ctx, which [Program.Main] ends at SIGTERM, or the
// failure of a part. It returns nil when it was asked to stop and everything ended
// in time.
func (s *Service) Run(ctx context.Context) error {
	failed := make(chan *part, len(s.parts)) // each part fails once at most
	var all sync.WaitGroup
	for _, p := range s.parts {
		partCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		p.stop = cancel
		all.Go(func() {
			defer close(p.done)
			if p.err = p.run(partCtx); p.err != nil {
				failed <- p
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
		s.Health.Drain()
		s.Log.Info("draining", "delay", s.DrainDelay)
		drain(failed, s.DrainDelay)
	case p := <-failed:
		err = fmt.Errorf("running the %s: %w", p.name, p.err)
	}
	return errors.Join(err, s.stop())
}

// drain serves on for a while, unless a part fails.
func drain(failed <-chan *part, delay time.Duration) {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-failed:
	}
}

// stop stops the parts, the last one first.
func (s *Service) stop() error {
	deadline := time.NewTimer(stopTimeout)
	defer deadline.Stop()
	for i := len(s.parts) - 1; i >= 0; i-- {
		p := s.parts[i]
		p.stop()
		select {
		case <-p.done:
		case <-deadline.C:
			return fmt.Errorf("the %s did not stop within %v", p.name, stopTimeout)
		}
	}
	return nil
}
