package eventstore

import (
	"context"
	"errors"
	"fmt"
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
	self  postgres.Backend // of conn
	last  *Pending         // read from the queue, did not fit the batch before
}

func newLane(s *Store, i int) *lane {
	return &lane{store: s, name: fmt.Sprint(i), queue: make(chan *Pending, s.cfg.MaxQueued)}
}

// enqueue waits for room.
func (l *lane) enqueue(ctx context.Context, p *Pending) error {
	select {
	case l.queue <- p:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
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
// bound. It returns none when ctx has ended and the queue is empty.
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
	batch, events := []*Pending{first}, first.request.events
	for {
		select {
		case p := <-l.queue:
			if events += p.request.events; events > l.store.cfg.MaxBatch {
				l.last = p
				return batch
			}
			batch = append(batch, p)
		default:
			return batch
		}
	}
}

// commit carries out a batch and answers each of its requests.
func (l *lane) commit(ctx context.Context, requests []*Pending) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, l.store.cfg.ResolveWithin)
	defer cancel()
	outcomes, written, err := l.try(ctx, requests)
	for i, p := range requests {
		if err != nil {
			p.err = err
		} else {
			p.result, p.err = outcomes[i].result, outcomes[i].err
		}
		l.store.metrics.appended(p.err, time.Since(start))
		close(p.done)
	}
	l.store.metrics.batch.Observe(float64(len(requests)))
	if err == nil {
		l.announce(written)
	}
}

// try repeats a batch until its outcome is known: transient refusals of the
// server and lost connections before the COMMIT was sent changed nothing.
func (l *lane) try(ctx context.Context, requests []*Pending) ([]outcome, *batch, error) {
	var lost *lostCommit
	for attempt := 0; ; attempt++ {
		outcomes, b, err := l.attempt(ctx, requests, lost)
		var now *lostCommit
		switch {
		case err == nil:
			return outcomes, b, nil
		case errors.As(err, &now):
			lost = now
		case lost == nil && (!postgres.Transient(err) || attempt >= 2 || ctx.Err() != nil):
			l.store.log.Warn("append failed", "lane", l.name, "requests", len(requests), "err", err)
			return nil, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if ctx.Err() != nil {
			l.store.log.Error("outcome of a commit is not known", "lane", l.name, "requests", len(requests), "err", err)
			return nil, nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
		}
		if attempt > 0 {
			backoff(ctx, attempt)
		}
	}
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
func (l *lane) announce(b *batch) {
	if len(b.rows) == 0 {
		return
	}
	slots := make(map[string][]int)
	seen := make(map[slotKey]bool)
	for i := range b.rows {
		w := b.rows[i].w
		if key := (slotKey{w.category.ID, w.slot}); !seen[key] {
			seen[key] = true
			slots[w.Category] = append(slots[w.Category], w.slot)
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

// connect gives the lane a session with the time-outs that keep a stopped writer
// from holding its locks.
func (l *lane) connect(ctx context.Context) error {
	if l.conn != nil && !l.conn.IsClosed() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := postgres.Connect(ctx, postgres.Config{URL: l.store.cfg.DatabaseURL, AppName: "refold-append",
		StatementTimeout: 10 * time.Second, LockTimeout: 4 * time.Second, IdleInTransactionTimeout: 3 * time.Second})
	if err != nil {
		return err
	}
	if l.self, err = postgres.ReadBackend(ctx, conn); err != nil {
		conn.Close(ctx)
		return err
	}
	l.conn = conn
	return nil
}
