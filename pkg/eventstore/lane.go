package eventstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/postgres"
)

// lane has one transaction in flight at a time, on a session of its own.
type lane struct {
	store *Store
	name  string
	queue chan *Pending
	conn  *pgx.Conn
	self  postgres.Backend     // of conn
	on    postgres.Incarnation // of the server behind conn
	last  *Pending             // read from the queue, did not fit the batch before
}

func newLane(s *Store, i int) *lane {
	return &lane{store: s, name: strconv.Itoa(i), queue: make(chan *Pending, s.cfg.MaxQueued)}
}

// enqueue waits for room.
func (l *lane) enqueue(ctx context.Context, p *Pending) error {
	select {
	case l.queue <- p:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run commits batches until ctx ends, then what is queued still.
func (l *lane) run(ctx context.Context) {
	defer l.disconnect()
	for {
		batch := l.collect(ctx)
		if len(batch) == 0 {
			return
		}
		// A batch that has begun ends: stopping waits for it.
		l.commit(context.WithoutCancel(ctx), batch)
	}
}

// collect waits for a request and takes all that are there, up to the batch's
// bounds. It returns none when ctx has ended and the queue is empty.
func (l *lane) collect(ctx context.Context) []*Pending {
	first := l.last
	l.last = nil
	if first == nil {
		select {
		case first = <-l.queue:
		default:
			select {
			case first = <-l.queue:
			case <-ctx.Done():
				select { // both may have been ready
				case first = <-l.queue:
				default:
					return nil
				}
			}
		}
	}
	batch, events, bytes := []*Pending{first}, first.request.events, first.request.bytes
	for {
		select {
		case p := <-l.queue:
			events, bytes = events+p.request.events, bytes+p.request.bytes
			if events > l.store.cfg.MaxBatch || bytes > l.store.cfg.MaxBatchBytes {
				l.last = p
				return batch
			}
			batch = append(batch, p)
		default:
			return batch
		}
	}
}

// commit carries out a batch and answers each of its requests. Where the server
// refuses a batch for what is in it, which checks before should have found, its
// requests are tried one by one, so that the innocent do not suffer.
func (l *lane) commit(ctx context.Context, requests []*Pending) {
	w := newWork(requests)
	err := l.try(ctx, w)
	l.store.metrics.batch.Observe(float64(len(requests)))
	if err != nil && len(requests) > 1 && errors.Is(err, ErrInternal) && !w.anySettled() {
		for _, p := range requests {
			one := newWork([]*Pending{p})
			l.answer(one, l.try(ctx, one))
		}
		return
	}
	l.answer(w, err)
}

// answer gives every request of a batch its outcome: what is settled stands, the
// others share err.
func (l *lane) answer(w *work, err error) {
	unknown := errors.Is(err, ErrOutcomeUnknown)
	for i, p := range w.requests {
		switch {
		case err == nil || w.settled[i]:
			p.result, p.err = w.outcomes[i].result, w.outcomes[i].err
		case unknown && !w.sent[i]: // it was not part of what may have happened
			p.err = ErrUnavailable
		default:
			p.err = err
		}
	}
	l.announce(w.requests)
	for _, p := range w.requests {
		l.store.metrics.appended(p.err, time.Since(p.since))
		l.store.room.Release(p.request.weight)
		p.request = nil // an import keeps outcomes for longer than what was appended
		close(p.done)
	}
}

// work is a batch on its way through attempts.
type work struct {
	requests []*Pending
	outcomes []outcome
	batch    *batch // as it was judged last
	// settled requests have their outcome, whatever becomes of the others.
	settled []bool
	// lost is the backend to which a COMMIT was sent whose answer did not come; nil
	// once it is known what came of it. sent tells which requests it carried.
	lost *postgres.Backend
	sent []bool
	long bool // in two trips, though it is a batch of one
}

func newWork(requests []*Pending) *work {
	return &work{requests: requests, outcomes: make([]outcome, len(requests)), settled: make([]bool, len(requests)), sent: make([]bool, len(requests))}
}

func (w *work) anySettled() bool {
	for _, settled := range w.settled {
		if settled {
			return true
		}
	}
	return false
}

// maxAttempts bounds how often a batch is tried while the server refuses it for
// reasons that pass.
const maxAttempts = 3

// try repeats a batch until its outcome is known. What was refused before the
// COMMIT was sent changed nothing. A COMMIT whose answer was lost may have: then
// only time ends the attempts, and the error is [ErrOutcomeUnknown].
func (l *lane) try(ctx context.Context, w *work) error {
	ctx, cancel := context.WithTimeout(ctx, l.store.cfg.ResolveWithin)
	defer cancel()
	for attempt := 1; ; attempt++ {
		err := l.attempt(ctx, w)
		switch {
		case err == nil:
			return nil
		case w.lost != nil && ctx.Err() != nil:
			l.store.metrics.lost.WithLabelValues("unknown").Inc()
			l.store.log.Error("outcome of a commit is not known", "lane", l.name, "requests", len(w.requests), "err", err)
			return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
		case w.lost != nil:
			l.store.log.Warn("answer to a commit was lost", "lane", l.name, "requests", len(w.requests), "err", err)
		case ctx.Err() != nil || transient(err) && attempt >= maxAttempts:
			l.store.log.Warn("append failed", "lane", l.name, "requests", len(w.requests), "err", err)
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		case !transient(err):
			l.store.log.Error("append failed", "lane", l.name, "requests", len(w.requests), "err", err)
			return fmt.Errorf("%w: %w", ErrInternal, err)
		}
		if attempt > 1 {
			backoff(ctx, attempt)
		}
	}
}

// transient tells whether time may mend an error. A trip that took too long is
// a connection that does not answer.
func transient(err error) bool {
	return postgres.Transient(err) || errors.Is(err, context.DeadlineExceeded)
}

func backoff(ctx context.Context, attempt int) {
	timer := time.NewTimer(min(time.Second, time.Duration(10<<min(attempt, 7))*time.Millisecond))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// announce tells who waits for events of which slots.
func (l *lane) announce(requests []*Pending) {
	if len(l.store.onCommit) == 0 {
		return
	}
	slots := make(map[string][]int)
	seen := make(map[slotKey]bool)
	for _, p := range requests {
		if p.result == nil || p.result.Replayed {
			continue
		}
		for i := range p.request.writes {
			w := &p.request.writes[i]
			if key := (slotKey{w.category.ID, w.slot}); !seen[key] {
				seen[key] = true
				slots[w.Category] = append(slots[w.Category], w.slot)
			}
		}
	}
	for category, list := range slots {
		for _, f := range l.store.onCommit {
			f(category, list)
		}
	}
}

func (l *lane) disconnect() {
	if l.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	l.conn.Close(ctx)
	l.conn = nil
}

// sessionName is the application_name of the sessions that append. Who is in
// their way is looked for by it.
const sessionName = "refold-append"

// connect gives the lane a session with the time-outs that keep a stopped writer
// from holding its locks between its trips. Within a trip they do not run: see
// [Store.clearWay].
func (l *lane) connect(ctx context.Context) error {
	if l.conn != nil && !l.conn.IsClosed() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := postgres.Connect(ctx, postgres.Config{URL: l.store.cfg.DatabaseURL, AppName: sessionName, ByKey: true,
		StatementTimeout: l.store.cfg.TripTimeout - time.Second, LockTimeout: lockTimeout, IdleInTransactionTimeout: stoppedAfter})
	if err != nil {
		return err
	}
	if l.self, err = postgres.ReadBackend(ctx, conn); err != nil {
		conn.Close(ctx)
		return err
	}
	if l.on, err = postgres.SessionIncarnation(ctx, conn); err != nil {
		conn.Close(ctx)
		return err
	}
	l.conn = conn
	return nil
}
