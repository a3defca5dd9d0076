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
// A batch of one request on one stream takes another way: one call,
// refold.append_one, which is a transaction of its own, in one trip.
//
// A COMMIT whose answer is lost is resolved in a new transaction that takes the
// same slot locks. First the backend that the COMMIT was sent to is ended, so that
// it cannot arrive later; then the batch is judged anew, and what it did is found
// by the ids of its events. What cannot be resolved in time is answered with
// [ErrOutcomeUnknown], never with a failure.
//
// A writer that is stopped between its trips, or in the middle of one, holds locks.
// Whoever waits for them ends its session: blockers.go.
package eventstore

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

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
	// MaxBatchBytes is the most bytes of records in a transaction, unless one
	// request alone has more; 4 MiB.
	MaxBatchBytes int
	// MaxQueued is the most requests that wait in a lane, MaxQueuedBytes the most
	// bytes that requests without an answer may take, in all; 4,096 and 48 MiB.
	MaxQueued      int
	MaxQueuedBytes int
	// MaxWait is how long Append waits for room before it answers ErrOverloaded; 1 s.
	// Submit waits for as long as its caller likes.
	MaxWait time.Duration
	// MaxRecordBytes bounds key, value and headers of an event's Kafka record; 900,000.
	MaxRecordBytes int
	// TripTimeout bounds one trip to the database; a connection that does not answer
	// within it is given up; 8 s.
	TripTimeout time.Duration
	// ResolveWithin bounds all attempts at a batch together, those of resolving a
	// lost COMMIT included; 20 s.
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
	set(&c.MaxBatchBytes, 4<<20)
	set(&c.MaxQueued, 4096)
	set(&c.MaxQueuedBytes, 48<<20)
	set(&c.MaxRecordBytes, 900_000)
	wait := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	wait(&c.MaxWait, time.Second)
	wait(&c.TripTimeout, 8*time.Second)
	wait(&c.ResolveWithin, 20*time.Second)
	return c
}

// Store appends. It is safe for concurrent use; several stores of several
// processes may work on one database.
type Store struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	lanes   []*lane
	room    *semaphore.Weighted // bytes of requests without an answer
	faults  faults

	mu         sync.RWMutex
	categories map[string]Category
	onCommit   []func(category string, slots []int)
}

// New returns a store. It does not dial; Run does.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) *Store {
	cfg = cfg.withDefaults()
	s := &Store{cfg: cfg, log: log, metrics: newMetrics(reg), categories: make(map[string]Category), room: semaphore.NewWeighted(int64(cfg.MaxQueuedBytes))}
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
		s.Know(c)
	}
	return nil
}

// Know remembers categories that are there.
func (s *Store) Know(categories ...Category) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range categories {
		s.categories[c.Name] = c
	}
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
// [*TooLarge], [*Invalid], [ErrUnknownCategory]: refused, nothing happened.
// [ErrUnavailable]: the database was not to be had or, [ErrOverloaded], too much
// waits already; nothing happened. [ErrInternal]: nothing happened, and nothing
// will. [ErrOutcomeUnknown]: it may have happened or may still; ask again with the
// same key or event ids.
func (s *Store) Append(ctx context.Context, r *Request) (*Result, error) {
	prepared, err := s.prepare(r)
	if err != nil {
		s.metrics.appended(err, 0)
		return nil, err
	}
	p := newPending(prepared)
	if !s.room.TryAcquire(prepared.weight) {
		if err := s.waitForRoom(ctx, prepared.weight); err != nil {
			s.metrics.appended(err, time.Since(p.since))
			return nil, err
		}
	}
	if err := s.enqueue(ctx, p); err != nil {
		return nil, err
	}
	return p.Wait(ctx)
}

// waitForRoom waits as long as a caller who wants an answer may be kept waiting.
func (s *Store) waitForRoom(ctx context.Context, weight int64) error {
	waiting, cancel := context.WithTimeout(ctx, s.cfg.MaxWait)
	defer cancel()
	if err := s.room.Acquire(waiting, weight); err != nil {
		if ctx.Err() == nil {
			return ErrOverloaded
		}
		return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	}
	return nil
}

// Pending is a request that was submitted.
type Pending struct {
	request *request // nil once it has its outcome
	lane    int
	since   time.Time
	done    chan struct{}
	result  *Result
	err     error
}

func newPending(r *request) *Pending {
	return &Pending{request: r, lane: r.lane, since: time.Now(), done: make(chan struct{})}
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
func (p *Pending) Lane() int { return p.lane }

// Submit checks a request and queues it. It waits for room for as long as ctx
// lasts, which is the back-pressure of imports.
func (s *Store) Submit(ctx context.Context, r *Request) (*Pending, error) {
	prepared, err := s.prepare(r)
	if err != nil {
		s.metrics.appended(err, 0)
		return nil, err
	}
	p := newPending(prepared)
	if err := s.room.Acquire(ctx, prepared.weight); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	}
	return p, s.enqueue(ctx, p)
}

func (s *Store) enqueue(ctx context.Context, p *Pending) error {
	if err := s.lanes[p.request.lane].enqueue(ctx, p); err != nil {
		s.room.Release(p.request.weight)
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// prepare checks what can be checked without the database and gives every event
// its id.
func (s *Store) prepare(r *Request) (*request, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	out := &request{Request: r, lane: -1, writes: make([]write, 0, len(r.Appends))}
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
			size := recordSize(a, e, &r.Metadata)
			if size > s.cfg.MaxRecordBytes {
				return nil, &TooLarge{Append: i, Event: j, Bytes: size, Limit: s.cfg.MaxRecordBytes}
			}
			out.bytes += size
			if e.ID.IsZero() {
				e.ID = event.NewID()
			} else {
				w.chosen = true
			}
		}
		out.events += len(a.Events)
		out.writes = append(out.writes, w)
	}
	for i := range r.Guards {
		g := &r.Guards[i]
		c, ok := s.Category(g.Category)
		if !ok {
			return nil, fmt.Errorf("%w: %s", ErrUnknownCategory, g.Category)
		}
		out.guards = append(out.guards, guard{g, c, event.SlotOf(g.Stream, c.Slots)})
	}
	out.lane = lowest % len(s.lanes)
	out.weight = min(int64(out.bytes), int64(s.cfg.MaxQueuedBytes)) // one that is larger than all room has it alone
	return out, nil
}

// headerBytes is more than the fixed headers of a record take together.
const headerBytes = 512

// recordSize bounds the size of an event's Kafka record from above.
func recordSize(a *Append, e *NewEvent, m *event.Metadata) int {
	return len(e.Value) + 2*len(a.Stream) + len(e.Type) + len(m.Actor) + len(m.CorrelationID) + len(m.CausationID) + len(m.Traceparent) + headerBytes
}
