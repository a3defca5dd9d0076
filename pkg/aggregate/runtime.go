package aggregate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/registry"
)

// Config bounds a runtime. The zero value of each field takes its default.
type Config struct {
	// CacheSize is how many aggregates of each type stay warm, and CacheBytes how many
	// bytes they may take, as estimated by the JSON of their states; 16,384 and 64 MiB.
	CacheSize  int
	CacheBytes int
	// Attempts is how often a function is run when races are lost; 16.
	Attempts int
	// Snapshots says when snapshots are written, for types that do not say it
	// themselves; DefaultPolicy.
	Snapshots Policy
}

// Deps are what a runtime stands on. The store must know the categories before
// the first call.
type Deps struct {
	Store     *eventstore.Store
	Pool      *pgxpool.Pool
	Schemas   registry.Schemas
	Contracts *avro.Contracts
	// SchemaIDs are those of the newest version of every event type.
	SchemaIDs registry.IDs
	Logger    *slog.Logger
	Metrics   prometheus.Registerer
}

// Runtime is what the aggregates of a process share. It is safe for concurrent use.
type Runtime struct {
	cfg       Config
	deps      Deps
	reader    *eventstore.Reader
	snapshots *eventstore.Snapshots
	metrics   *metrics
	jobs      chan job

	mu       sync.RWMutex
	handlers map[string]Handler
}

// Type is a [Definition] of any aggregate.
type Type interface {
	Category() string
	// Events returns the struct that is used for each event type.
	Events() map[string]reflect.Type
	// Simulate runs a named command without a log.
	Simulate(contracts *avro.Contracts, id string, given []event.Event, command string, body []byte) (Simulation, error)
	open(rt *Runtime) (Handler, error)
}

// Handler is a [Repository] of any aggregate, as servers need it.
type Handler interface {
	Category() string
	Commands() []CommandInfo
	// Run carries out a named command, see [Definition.Decode] and [Repository.Execute].
	Run(ctx context.Context, id, command string, body []byte, options ...Option) (*Result, error)
	// At returns the state of an aggregate at a moment, see [Repository.At].
	At(ctx context.Context, id string, when Moment) (View, error)
	// VerifySnapshots compares snapshots with the log, see [Repository.VerifySnapshots].
	VerifySnapshots(ctx context.Context) (int, error)
	// VerifyClaims and RepairClaims compare the claim table with the log, see
	// [Repository.VerifyClaims] and [Repository.RepairClaims].
	VerifyClaims(ctx context.Context) (ClaimsReport, error)
	RepairClaims(ctx context.Context) (ClaimsReport, error)
	// Replay shows how the state came about, see [Repository.Replay].
	Replay(ctx context.Context, id string, after int64, visit func(e *event.Event, state json.RawMessage) error) error

	snapshot(ctx context.Context, id string) error
	sweep(ctx context.Context) error
}

// NewRuntime checks the types against the contracts and returns the runtime. It
// does not dial; Run does the work that is not on the way of a call.
func NewRuntime(cfg Config, deps Deps, types ...Type) (*Runtime, error) {
	if cfg.CacheSize == 0 {
		cfg.CacheSize = 16384
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = 64 << 20
	}
	if cfg.Attempts == 0 {
		cfg.Attempts = 16
	}
	if cfg.Snapshots == (Policy{}) {
		cfg.Snapshots = DefaultPolicy
	}
	rt := &Runtime{cfg: cfg, deps: deps, reader: eventstore.NewReader(deps.Pool), snapshots: eventstore.NewSnapshots(deps.Pool), metrics: newMetrics(deps.Metrics),
		jobs: make(chan job, maxJobs), handlers: make(map[string]Handler)}
	var failures []error
	for _, t := range types {
		if rt.handlers[t.Category()] != nil {
			failures = append(failures, fmt.Errorf("two aggregates have the category %s", t.Category()))
			continue
		}
		handler, err := t.open(rt)
		failures = append(failures, err)
		rt.handlers[t.Category()] = handler
	}
	if err := errors.Join(failures...); err != nil {
		return nil, err
	}
	return rt, nil
}

// Open returns the repository of an aggregate type. It is the same one however
// often it is opened.
func Open[A any](rt *Runtime, d *Definition[A]) (*Repository[A], error) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if h := rt.handlers[d.category]; h != nil {
		r, ok := h.(*Repository[A])
		if !ok {
			return nil, fmt.Errorf("the category %s belongs to another aggregate, %T", d.category, h)
		}
		return r, nil
	}
	h, err := d.open(rt)
	if err != nil {
		return nil, err
	}
	rt.handlers[d.category] = h
	return h.(*Repository[A]), nil
}

// Deps returns what the runtime stands on.
func (rt *Runtime) Deps() Deps { return rt.deps }

// Handler returns the repository of a category.
func (rt *Runtime) Handler(category string) (Handler, bool) {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	h, ok := rt.handlers[category]
	return h, ok
}

// Commands returns all named commands, by category and name.
func (rt *Runtime) Commands() []CommandInfo {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	var list []CommandInfo
	for _, h := range rt.handlers {
		list = append(list, h.Commands()...)
	}
	slices.SortFunc(list, func(a, b CommandInfo) int {
		return strings.Compare(a.Category+"/"+a.Name, b.Category+"/"+b.Name)
	})
	return list
}

// VerifySnapshots compares all snapshots of all types with the log, see
// [Repository.VerifySnapshots].
func (rt *Runtime) VerifySnapshots(ctx context.Context) (verified int, err error) {
	var failures []error
	for _, h := range rt.all() {
		n, err := h.VerifySnapshots(ctx)
		verified += n
		failures = append(failures, err)
	}
	return verified, errors.Join(failures...)
}

// VerifyClaims compares the claim table with the log for all types, see
// [Repository.VerifyClaims].
func (rt *Runtime) VerifyClaims(ctx context.Context) (ClaimsReport, error) {
	return rt.claims(func(h Handler) (ClaimsReport, error) { return h.VerifyClaims(ctx) })
}

// RepairClaims brings the claim table to the rules of all types, see
// [Repository.RepairClaims].
func (rt *Runtime) RepairClaims(ctx context.Context) (ClaimsReport, error) {
	return rt.claims(func(h Handler) (ClaimsReport, error) { return h.RepairClaims(ctx) })
}

func (rt *Runtime) claims(of func(Handler) (ClaimsReport, error)) (report ClaimsReport, err error) {
	for _, h := range rt.all() {
		one, err := of(h)
		report.add(one)
		if err != nil {
			return report, err
		}
	}
	return report, nil
}

func (rt *Runtime) all() []Handler {
	rt.mu.RLock()
	defer rt.mu.RUnlock()
	var list []Handler
	for _, h := range rt.handlers {
		list = append(list, h)
	}
	return list
}

// Run writes snapshots and sweeps old ones, until ctx ends.
func (rt *Runtime) Run(ctx context.Context) error {
	rt.writeSnapshots(ctx)
	return nil
}

// replay returns what was done under the order's key, or nil.
func (rt *Runtime) replay(ctx context.Context, o *order, hash []byte) (*eventstore.Outcome, error) {
	if o.key == "" {
		return nil, nil
	}
	outcome, err := rt.reader.OutcomeOf(ctx, o.key)
	switch {
	case errors.Is(err, eventstore.ErrNoOutcome):
		return nil, nil
	case err != nil:
		return nil, eventstore.AsUnavailable(err)
	case !bytes.Equal(outcome.Hash, hash):
		return nil, eventstore.ErrKeyReused
	}
	return &outcome, nil
}

// conclude ends a call that stores nothing but its key, see [eventstore.Conclude]; or it
// returns what was done under the key before.
func (rt *Runtime) conclude(ctx context.Context, o *order, end eventstore.Conclusion) (*eventstore.Outcome, error) {
	for {
		err := eventstore.Conclude(ctx, rt.deps.Pool, end)
		if !errors.Is(err, eventstore.ErrKeyKnown) {
			return nil, eventstore.AsUnavailable(err)
		}
		if first, err := rt.replay(ctx, o, end.Hash); first != nil || err != nil {
			return first, err
		}
	}
}

// store appends what a call has raised; or it returns what was done under the key
// by another call that was faster, and did something of another shape.
func (rt *Runtime) store(ctx context.Context, o *order, request *eventstore.Request) (*eventstore.Outcome, error) {
	result, err := rt.deps.Store.Append(ctx, request)
	if errors.Is(err, eventstore.ErrKeyReused) {
		if first, err := rt.replay(ctx, o, request.Hash); first != nil || err != nil {
			return first, err
		}
	}
	if err != nil {
		return nil, err
	}
	return &eventstore.Outcome{Result: result}, nil
}

// raced tells whether an attempt was made on what others have changed since, so
// that another one is worth it.
func raced(err error) bool {
	var lost *eventstore.VersionConflict
	return errors.As(err, &lost) || errors.Is(err, eventstore.ErrFailedOver)
}

// spent is the error of a call whose last attempt has lost a race too.
func spent(err error, attempts int) error {
	var lost *eventstore.VersionConflict
	if !errors.As(err, &lost) {
		return err
	}
	expected, _ := lost.Expected.Version()
	return &Conflict{Category: lost.Category, ID: lost.Stream, Attempts: attempts, Expected: expected, Actual: lost.Actual}
}
