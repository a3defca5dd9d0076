package reaction

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
)

// Run handles events until ctx ends, whenever this process holds the lease. The
// error is that of Check; all else is waited for.
func (c *Consumer) Run(ctx context.Context) error {
	if err := c.Check(); err != nil {
		return err
	}
	for ctx.Err() == nil {
		err := c.hold(ctx)
		var held *postgres.LeaseHeld
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was asked to stop
		case errors.As(err, &held):
			c.log.Debug("standing by", "err", err)
		default:
			c.log.Warn("the reaction begins anew", "err", err)
		}
		wait(ctx, c.cfg.Poll, nil)
	}
	return nil
}

// wait returns after a time, when woken, or when ctx ends.
func wait(ctx context.Context, d time.Duration, woken <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-woken:
	}
}

// hold takes the lease and works as long as it has it.
func (c *Consumer) hold(ctx context.Context) error {
	owner, err := os.Hostname()
	if err != nil {
		owner = "unknown"
	}
	category, ok := c.deps.Store.Category(c.cfg.Category)
	if !ok {
		return fmt.Errorf("%w: %s", eventstore.ErrUnknownCategory, c.cfg.Category)
	}
	lease, err := postgres.AcquireLease(ctx, c.deps.Pool, "reaction/"+c.cfg.Name, fmt.Sprintf("%s/%d", owner, os.Getpid()), c.cfg.Lease)
	if err != nil {
		return err
	}
	session, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &worker{Consumer: c, category: category, lease: lease, parked: make(map[string]bool), stopped: make(map[int]bool)}
	var helpers sync.WaitGroup
	woken := make(chan struct{}, 1) // one: it says that there is something, not what
	helpers.Go(func() { cancel(c.renew(session, lease)) })
	helpers.Go(func() { c.listen(session, woken) })
	err = w.run(session, woken)
	cancel(err)
	helpers.Wait()
	release, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer done()
	if err := lease.Release(release, c.deps.Pool); err != nil { // it expires
		c.log.Debug("releasing the lease", "err", err)
	}
	return errors.Join(err, context.Cause(session))
}

// renew keeps the lease until ctx ends, or returns why it is lost.
func (c *Consumer) renew(ctx context.Context, lease *postgres.Lease) error {
	for {
		wait(ctx, c.cfg.Lease/3, nil)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was asked to stop
		}
		bounded, cancel := context.WithTimeout(ctx, c.cfg.Lease/3)
		err := lease.Renew(bounded, c.deps.Pool)
		cancel()
		if postgres.LeaseLost(err) || !lease.Valid(0) {
			return errors.Join(postgres.ErrLeaseLost, err)
		}
	}
}

// listen wakes the worker when a writer tells of events. What it misses is found
// by polling.
func (c *Consumer) listen(ctx context.Context, woken chan<- struct{}) {
	for ctx.Err() == nil {
		if err := c.listenOnce(ctx, woken); err != nil && ctx.Err() == nil {
			c.log.Debug("listening for events", "err", err)
			wait(ctx, c.cfg.Poll, nil)
		}
	}
}

func (c *Consumer) listenOnce(ctx context.Context, woken chan<- struct{}) error {
	held, err := c.deps.Pool.Acquire(ctx)
	if err != nil {
		return err
	}
	conn := held.Hijack() // a session that listens must not go back to the pool
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `listen refold_log`); err != nil {
		return err
	}
	for {
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return err
		}
		select {
		case woken <- struct{}{}:
		default:
		}
	}
}

// worker is a consumer that has the lease.
type worker struct {
	*Consumer
	category eventstore.Category
	lease    *postgres.Lease
	progress []place // by slot

	mu      sync.Mutex      // guards what follows, which workers of several slots share
	parked  map[string]bool // streams
	stopped map[int]bool    // slots whose log has lost events
}

// place is how far a slot has come.
type place struct {
	seq int64
	id  event.ID
}

func (w *worker) run(ctx context.Context, woken <-chan struct{}) error {
	if err := w.begin(ctx); err != nil {
		return err
	}
	defer w.metrics.idle()
	for {
		if err := w.carryOut(ctx); err != nil {
			return err
		}
		heads, err := w.reader.Heads(ctx, w.category)
		if err != nil {
			return err
		}
		w.metrics.lag.Set(float64(w.behind(heads)))
		more, err := w.round(ctx, heads)
		if err != nil {
			return err
		}
		if !more {
			wait(ctx, w.cfg.Poll, woken)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// behind returns how many events are not dealt with.
func (w *worker) behind(heads []int64) (n int64) {
	for slot, head := range heads {
		n += max(0, head-w.progress[slot].seq)
	}
	return n
}

// batch is how many events of a slot are handled before its progress moves.
const batch = 100

// round handles a batch of each slot that has news.
func (w *worker) round(ctx context.Context, heads []int64) (more bool, err error) {
	var all errgroup.Group
	all.SetLimit(w.cfg.Workers)
	for slot, head := range heads {
		if head == w.progress[slot].seq || w.isStopped(slot) { // a slot's progress is moved by its own worker only
			continue
		}
		more = true
		all.Go(func() error { return w.advance(ctx, slot) })
	}
	return more, all.Wait()
}

// advance handles the next events of a slot and moves its progress.
func (w *worker) advance(ctx context.Context, slot int) error {
	at := w.progress[slot]
	events, err := w.reader.SlotEvents(ctx, w.category, slot, at.seq, batch)
	if err != nil {
		return err
	}
	if len(events) == 0 || events[0].Seq != at.seq+1 || events[0].PrevID != at.id {
		w.stop(slot, at)
		return nil
	}
	for i := range events {
		e := &events[i]
		if w.isParked(e.Stream) {
			continue
		}
		attempts, err := w.insist(ctx, e)
		switch {
		case ctx.Err() != nil: // what was handled is handled again: it is idempotent
			return context.Cause(ctx)
		case err != nil:
			if err := w.park(ctx, slot, e, attempts, err); err != nil {
				return err
			}
		}
	}
	last := &events[len(events)-1]
	return w.move(ctx, slot, place{last.Seq, last.ID})
}

// stop holds a slot whose log does not go on where it was left: a failover has
// lost events that were handled, and which of those that stand there now were is
// not known. Somebody must look, and then set the slot's progress.
func (w *worker) stop(slot int, at place) {
	w.log.Error("a slot is stopped: the log has lost events that were handled", "category", w.category.Name, "slot", slot, "seq", at.seq, "event_id", at.id)
	w.metrics.stopped.Inc()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped[slot] = true
}

func (w *worker) isStopped(slot int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stopped[slot]
}

func (w *worker) isParked(stream string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.parked[stream]
}

// insist handles an event until it succeeds, fails for good, has failed too
// often, or ctx ends.
func (w *worker) insist(ctx context.Context, e *event.Event) (attempts int, err error) {
	for pause := w.cfg.Backoff; ; pause = min(2*pause, 30*time.Second) {
		err := w.handle(ctx, e)
		outcome := classify(err)
		w.metrics.count(e, err, w.handlers[e.Type] != nil)
		if outcome != waits {
			attempts++
		}
		if err == nil || outcome == final || attempts >= w.cfg.Attempts || ctx.Err() != nil {
			return attempts, err
		}
		w.log.Warn("an event was not handled, trying again", "category", e.Category, "stream", e.Stream, "event_id", e.ID, "event_type", e.Type, "attempt", attempts, "err", err)
		wait(ctx, pause, nil)
	}
}

// class is what is done about an error.
type class uint8

const (
	again class = iota // another attempt, up to a number of them
	waits              // another attempt, however long it takes
	final              // none
)

// classify waits for what refold's own calls have marked as the absence of its
// database, and for nothing else: a mail server that refuses connections must not
// hold all streams.
func classify(err error) class {
	var p permanent
	var broken *aggregate.Broken
	var missing *aggregate.Missing
	var exists *aggregate.Exists
	var taken *aggregate.ClaimTaken
	switch {
	case errors.As(err, &p), errors.As(err, &broken), errors.As(err, &missing), errors.As(err, &exists), errors.As(err, &taken), errors.Is(err, eventstore.ErrKeyReused):
		return final
	case errors.Is(err, eventstore.ErrUnavailable), errors.Is(err, eventstore.ErrOutcomeUnknown):
		return waits
	default:
		return again
	}
}
