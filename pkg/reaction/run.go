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
	w := &worker{Consumer: c, category: category, lease: lease}
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
	schedule *schedule
}

// place is how far a slot has come.
type place struct {
	seq int64
	id  event.ID
}

// is tells whether two places are the same one. The id is not known of an event that
// was archived, nor of the beginning.
func (p place) is(other place) bool {
	return p.seq == other.seq && (p.id == other.id || p.id.IsZero() || other.id.IsZero())
}

// run reads the log and writes down how far it is dealt with, while others handle
// events.
func (w *worker) run(ctx context.Context, woken <-chan struct{}) error {
	if err := w.begin(ctx); err != nil {
		return err
	}
	defer w.metrics.idle()
	handling, ctx := errgroup.WithContext(ctx)
	for range w.cfg.Workers {
		handling.Go(func() error { return w.work(ctx) })
	}
	handling.Go(func() error {
		defer w.schedule.close()
		return w.keep(ctx, woken)
	})
	return handling.Wait()
}

// moveEvery is for how long what was dealt with is gathered before it is written
// down, while there is more to handle.
const moveEvery = 20 * time.Millisecond

// keep feeds the schedule until ctx ends.
func (w *worker) keep(ctx context.Context, woken <-chan struct{}) error {
	for look := true; ; {
		var more bool
		if look {
			if err := w.carryOut(ctx); err != nil {
				return err
			}
			var err error
			if more, err = w.read(ctx); err != nil {
				return err
			}
		}
		poll := time.NewTimer(w.cfg.Poll)
		look = true
		select {
		case <-ctx.Done():
		case <-woken:
		case <-poll.C:
		case <-w.schedule.changed:
			if w.schedule.busy() {
				wait(ctx, moveEvery, nil)
			}
			look = more || !w.schedule.busy()
		}
		poll.Stop()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := w.settle(ctx); err != nil {
			return err
		}
	}
}

// settle writes down what was dealt with, and goes on with requests.
func (w *worker) settle(ctx context.Context) error {
	if err := w.move(ctx, w.schedule.moves()); err != nil {
		return err
	}
	for _, c := range w.schedule.takeIdle() {
		if err := w.feed(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// batch is how many events of a slot are read at once.
const batch = 100

// errTail says that the log is not the one that was read before. The next session
// begins at the progress that the log of now has with it.
var errTail = errors.New("the log does not go on where it was read last: it has lost its tail")

// read takes in what slots have that were not read to their end, and tells whether
// there is more.
func (w *worker) read(ctx context.Context) (more bool, err error) {
	heads, err := w.heads(ctx)
	if err != nil {
		return false, err
	}
	var behind int64
	var reading errgroup.Group
	reading.SetLimit(4)
	for slot, head := range heads {
		read, passed, stopped := w.schedule.state(slot)
		behind += max(0, head.seq-passed.seq)
		switch {
		case stopped:
			reading.Go(func() error { return w.goOn(ctx, slot) })
		case head.is(read):
		case !w.schedule.room(slot):
			more = true
		default:
			more = more || head.seq-read.seq > batch
			reading.Go(func() error { return w.take(ctx, slot, read) })
		}
	}
	w.metrics.lag.Set(float64(behind))
	return more, reading.Wait()
}

// take takes in the next events of a slot.
func (w *worker) take(ctx context.Context, slot int, at place) error {
	events, err := w.reader.SlotEvents(ctx, w.category, slot, at.seq, batch)
	if err != nil {
		return err
	}
	if len(events) == 0 || !at.is(place{events[0].Seq - 1, events[0].PrevID}) {
		if w.schedule.settled(slot) != at {
			return errTail
		}
		return w.stop(ctx, slot, at)
	}
	w.schedule.add(slot, events, w.wanted)
	return nil
}

func (w *worker) wanted(e *event.Event) bool { return w.handlers[e.Type] != nil }

// work handles events until the schedule is closed.
func (w *worker) work(ctx context.Context) error {
	for {
		c, e := w.schedule.next()
		if c == nil || ctx.Err() != nil { // what was handled and not written down is handled again: it is idempotent
			return context.Cause(ctx)
		}
		if err := w.try(ctx, c, e); err != nil {
			return err
		}
	}
}

// try calls the function for an event once and decides what comes next.
func (w *worker) try(ctx context.Context, c *chain, e *event.Event) error {
	err := w.handle(ctx, e)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	w.metrics.count(e, err)
	if err == nil {
		w.schedule.handled(c)
		return nil
	}
	outcome := classify(err)
	if outcome != waits {
		c.attempts++
	}
	if outcome == final || c.attempts >= w.cfg.Attempts {
		return w.park(ctx, c, e, err)
	}
	c.pause = min(max(2*c.pause, w.cfg.Backoff), 30*time.Second)
	w.log.Warn("an event was not handled, trying again", "category", e.Category, "stream", e.Stream, "event_id", e.ID, "event_type", e.Type, "attempt", c.attempts, "err", err)
	w.schedule.later(c, c.pause)
	return nil
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
