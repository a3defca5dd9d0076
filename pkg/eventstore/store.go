// Package eventstore is the log: it appends events to streams, gives every event
// its place in a slot's dense sequence, and reads them back.
//
// # Appending
//
// A [Store] has a few lanes. Each lane has one transaction in flight; what
// queues meanwhile goes into the next one (group commit), so an idle lane commits
// at once and a busy one in batches. A batch takes two trips:
//
//  1. BEGIN and one server-side call, refold.append_prepare: it locks the slot
//     rows, the idempotency keys, the chosen event ids and the claims, in that
//     order and each sorted, so that nothing deadlocks; then, in statements of
//     their own, it reads versions, heads, keys and holders. (What was read in
//     the statement that waited for a lock is stale.)
//  2. The accepted events, the changes of claims, the removal of keys that were
//     not used, and COMMIT.
//
// Between the two the requests are judged in sequence by [batch], which does no
// IO: a refused request changes nothing and hurts nobody. Answers, refusals too,
// are given after the COMMIT, for a conflict may only name a version that exists.
//
// A COMMIT whose answer is lost is resolved in a new transaction that first takes
// the same slot locks; the backend that may still hold them is terminated, so
// that the lost COMMIT cannot arrive later. What cannot be resolved in time is
// answered with [ErrOutcomeUnknown], never with a failure.
package eventstore

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/refoldhq/refold/pkg/event"
)

// Config bounds a store. The zero value of each field takes its default.
type Config struct {
	DatabaseURL string
	// Lanes is how many transactions may be in flight; 2. More lanes make
	// smaller batches.
	Lanes int
	// MaxBatch is the most events in a transaction; 2,000.
	MaxBatch int
	// MaxQueued is the most requests that wait in a lane; 4,096. Append waits for
	// room.
	MaxQueued int
	// MaxRecordBytes bounds key, value and headers of an event's Kafka record; 900,000.
	MaxRecordBytes int
	// ResolveWithin is how long a lost COMMIT is resolved for; 20 s.
	ResolveWithin time.Duration
}

func (c Config) withDefaults() Config {
	set := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	set(&c.Lanes, 2)
	set(&c.MaxBatch, 2000)
	set(&c.MaxQueued, 4096)
	set(&c.MaxRecordBytes, 900_000)
	if c.ResolveWithin == 0 {
		c.ResolveWithin = 20 * time.Second
	}
	return c
}

// Store appends. It is safe for concurrent use; several stores of several
// processes may work on one database.
type Store struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	lanes   []*lane

	mu         sync.RWMutex
	categories map[string]Category
	onCommit   []func(category string, slots []int)
}

// New returns a store. It does not dial; Run does.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) *Store {
	cfg = cfg.withDefaults()
	s := &Store{cfg: cfg, log: log, metrics: newMetrics(reg), categories: make(map[string]Category)}
	for i := range cfg.Lanes {
		s.lanes = append(s.lanes, newLane(s, i))
	}
	return s
}

// Run works until ctx ends, then finishes what is queued and returns nil.
// Appends wait until Run works.
func (s *Store) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, l := range s.lanes {
		all.Go(func() { l.run(ctx) })
	}
	all.Wait()
	return nil
}

// OnCommit registers what is called after each commit with the slots that have
// new events: the relay's wake-up. It must not block, and must be registered
// before Run.
func (s *Store) OnCommit(f func(category string, slots []int)) { s.onCommit = append(s.onCommit, f) }

// EnsureCategories makes the categories that are missing and remembers all of
// them. A category keeps its slots for ever: another number is refused.
func (s *Store) EnsureCategories(ctx context.Context, pool *pgxpool.Pool, specs []CategorySpec) error {
	for _, spec := range specs {
		c, err := ensureCategory(ctx, pool, spec)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.categories[c.Name] = c
		s.mu.Unlock()
	}
	return nil
}

// Category returns a category by its name.
func (s *Store) Category(name string) (Category, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c, ok := s.categories[name]
	return c, ok
}

// Append appends all of a request or nothing, and returns when the outcome is
// known or ctx ends; a request whose ctx ends may still be carried out.
//
// Errors: [*VersionConflict], [*ClaimTaken], [ErrKeyReused], [*EventIDTaken],
// [*TooLarge], [ErrUnknownCategory]: refused, nothing happened. [ErrUnavailable]:
// the database was not to be had, nothing happened. [ErrOutcomeUnknown]: it may
// have happened or may still; ask again with the same key or event ids.
func (s *Store) Append(ctx context.Context, r *Request) (*Result, error) {
	p, err := s.Submit(ctx, r)
	if err != nil {
		return nil, err
	}
	return p.Wait(ctx)
}

// Pending is a request that was submitted.
type Pending struct {
	request *request
	done    chan struct{}
	result  *Result
	err     error
}

// Wait returns the outcome, or that it is unknown when ctx ends first.
func (p *Pending) Wait(ctx context.Context) (*Result, error) {
	select {
	case <-p.done:
		return p.result, p.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))
	}
}

// Done is closed when the outcome is known.
func (p *Pending) Done() <-chan struct{} { return p.done }

// Lane returns which lane works on the request. Requests of one lane take effect
// in the order in which they were submitted.
func (p *Pending) Lane() int { return p.request.lane }

// Submit checks a request and queues it. It waits for room in its lane, which is
// the back-pressure of imports.
func (s *Store) Submit(ctx context.Context, r *Request) (*Pending, error) {
	prepared, err := s.prepare(r)
	if err != nil {
		s.metrics.count(err)
		return nil, err
	}
	p := &Pending{request: prepared, done: make(chan struct{})}
	return p, s.lanes[prepared.lane].enqueue(ctx, p)
}

// prepare checks what can be checked without the database and gives every event
// its id.
func (s *Store) prepare(r *Request) (*request, error) {
	out := &request{Request: r, lane: -1}
	lowest := 0
	for i := range r.Appends {
		a := &r.Appends[i]
		c, ok := s.Category(a.Category)
		if !ok {
			return nil, fmt.Errorf("%w: %s", ErrUnknownCategory, a.Category)
		}
		slot := event.SlotOf(a.Stream, c.Slots)
		if i == 0 || slot < lowest {
			lowest = slot
		}
		w := write{Append: a, category: c, slot: slot}
		for j := range a.Events {
			e := &a.Events[j]
			if size := recordSize(a, e, &r.Metadata); size > s.cfg.MaxRecordBytes {
				return nil, &TooLarge{Append: i, Event: j, Bytes: size, Limit: s.cfg.MaxRecordBytes}
			}
			if e.ID.IsZero() {
				e.ID = event.NewID()
			} else {
				w.chosen = true
			}
		}
		out.events += len(a.Events)
		out.writes = append(out.writes, w)
	}
	out.lane = lowest % len(s.lanes)
	return out, nil
}

// headerBytes is more than the fixed headers of a record take together.
const headerBytes = 512

// recordSize bounds the size of an event's Kafka record from above.
func recordSize(a *Append, e *NewEvent, m *event.Metadata) int {
	return len(e.Value) + 2*len(a.Stream) + len(e.Type) + len(m.Actor) + len(m.CorrelationID) + len(m.CausationID) + len(m.Traceparent) + headerBytes
}
