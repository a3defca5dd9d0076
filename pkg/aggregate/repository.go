package aggregate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
)

// Repository loads aggregates of one type and stores what they raise. It is safe
// for concurrent use, by any number of processes on one log.
type Repository[A any] struct {
	rt    *Runtime
	codec *Codec[A]
	cache *cache[A]
}

func (d *Definition[A]) open(rt *Runtime) (Handler, error) {
	codec, err := NewCodec(d, rt.deps.Contracts, rt.deps.SchemaIDs)
	if err != nil {
		return nil, err
	}
	return &Repository[A]{rt: rt, codec: codec, cache: newCache[A](rt.cfg.CacheSize, rt.cfg.CacheBytes)}, nil
}

// Category returns the category of the aggregates.
func (r *Repository[A]) Category() string { return r.codec.d.category }

// Commands describes the named commands.
func (r *Repository[A]) Commands() []CommandInfo { return r.codec.d.describeCommands() }

// Result is what a call did.
type Result struct {
	Category, ID string
	// Version is that of the aggregate afterwards.
	Version int64
	// Events are those that were stored; none when the function raised none.
	Events []eventstore.Appended
	// Replayed says that all this had been done before, under the same command id.
	Replayed bool
}

// Token returns what readers need that must see the events; empty when there are
// none.
func (r *Result) Token() event.Token {
	if len(r.Events) == 0 {
		return nil
	}
	last := &r.Events[len(r.Events)-1]
	return event.Token{{Position: last.Position, Written: true, Event: last.ID.Sum()}}
}

// Load returns an aggregate as the log has it, or [*Missing]. It belongs to the
// caller, who may raise events on it to no effect.
func (r *Repository[A]) Load(ctx context.Context, id string) (*A, error) {
	category, err := r.category(id)
	if err != nil {
		return nil, err
	}
	a, _, err := r.load(ctx, category, id)
	if err == nil && r.codec.Root(a).version == 0 {
		err = &Missing{Category: category.Name, ID: id}
	}
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Execute runs f on an aggregate that exists and stores what f raises.
//
// Promised: all events of f are stored together, behind exactly the state that f
// saw, with its claims; or none is. f is run again on fresh state each time
// somebody else was faster, so it must change nothing but the aggregate; and it
// must not run other commands, which could wait for this one: several aggregates
// change by [Runtime.Together]. When it
// returns an error nothing is stored, and the state that made it do so was
// current during the call. An answer means that the events are committed.
//
// Errors: what f returned, such as a [*Broken]; [*Missing]; [*Conflict] when
// races were lost too often or the version is not that of [WithVersion];
// [*ClaimTaken]; [eventstore.ErrUnavailable]: the database was not to be had and
// nothing happened.
// [eventstore.ErrOutcomeUnknown]: it may have happened; call again with the same
// [WithCommandID].
func (r *Repository[A]) Execute(ctx context.Context, id string, f func(*A) error, options ...Option) (*Result, error) {
	return r.run(ctx, id, mustExist, f, options)
}

// Create is Execute for an aggregate that has no events yet; else [*Exists].
func (r *Repository[A]) Create(ctx context.Context, id string, f func(*A) error, options ...Option) (*Result, error) {
	return r.run(ctx, id, mustNotExist, f, options)
}

// Run carries out a named command.
func (r *Repository[A]) Run(ctx context.Context, id, command string, body []byte, options ...Option) (*Result, error) {
	f, creates, err := r.codec.d.Decode(command, body)
	if err != nil {
		return nil, err
	}
	if creates {
		return r.Create(ctx, id, f, options...)
	}
	return r.Execute(ctx, id, f, options...)
}

// existence is what a call expects.
type existence uint8

const (
	mustExist existence = iota
	mustNotExist
)

// check compares an aggregate with what is expected of it.
func (e existence) check(category string, root *Root) error {
	switch {
	case e == mustExist && root.version == 0:
		return &Missing{Category: category, ID: root.id}
	case e == mustNotExist && root.version > 0:
		return &Exists{Category: category, ID: root.id, Version: root.version}
	}
	return nil
}

func (r *Repository[A]) category(id string) (eventstore.Category, error) {
	category, ok := r.rt.deps.Store.Category(r.codec.d.category)
	if !ok {
		return category, fmt.Errorf("%w: %s", eventstore.ErrUnknownCategory, r.codec.d.category)
	}
	return category, event.CheckStreamID(id)
}

func (r *Repository[A]) run(ctx context.Context, id string, expect existence, f func(*A) error, options []Option) (_ *Result, err error) {
	defer func() { r.rt.metrics.count(r.codec.d.category, err) }()
	category, err := r.category(id)
	if err != nil {
		return nil, err
	}
	o := r.rt.order(ctx, options)
	s, err := r.cache.acquire(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("waiting for %s %s: %w", category.Name, id, err)
	}
	defer r.cache.release(s)
	c := call[A]{repository: r, category: category, order: o, slot: s, expect: expect, f: f, hash: o.hash(category.Name, id)}
	for attempt := 1; ; attempt++ {
		result, err := c.attempt(ctx)
		switch {
		case errors.Is(err, errStale): // it was not run on fresh state, so it does not count
			attempt--
		case !raced(err):
			return result, err
		case attempt >= o.attempts:
			return nil, spent(err, attempt)
		default:
			if err := pause(ctx, attempt); err != nil {
				return nil, err
			}
		}
	}
}

// pause lets others finish before another attempt, longer each time.
func pause(ctx context.Context, attempt int) error {
	if attempt == 1 {
		return ctx.Err()
	}
	timer := time.NewTimer(rand.N(time.Millisecond << min(attempt, 6)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// call is one call of Execute or Create, which has the aggregate to itself
// within this process.
type call[A any] struct {
	repository *Repository[A]
	category   eventstore.Category
	order      *order
	slot       *slot[A]
	expect     existence
	f          func(*A) error
	hash       []byte
}

// errStale says that the cache was behind the log, or ahead of one that has lost
// its tail. The next attempt loads the aggregate.
var errStale = errors.New("the cached aggregate is stale")

// attempt runs the function once and stores what it raised. The cache keeps the
// aggregate if the function has not run or its events were stored, and else loses
// it: a function that refuses, or raises nothing, may have written into the state.
func (c *call[A]) attempt(ctx context.Context) (*Result, error) {
	r, id := c.repository, c.slot.id
	if first, err := r.rt.replay(ctx, c.order, c.hash); first != nil || err != nil {
		return resultOf(c.category.Name, id, first), err
	}
	warm := c.slot.live != nil
	r.rt.metrics.loaded(warm)
	if !warm {
		var err error
		if c.slot.live, c.slot.held, err = r.load(ctx, c.category, id); err != nil {
			return nil, err
		}
	}
	a, before := c.slot.live, c.slot.held
	c.slot.live = nil // until it is known to be what the log has; f may panic
	root := r.codec.Root(a)
	refused := c.check(root)
	err := refused
	if err == nil {
		err = c.f(a)
	}
	if err != nil || len(root.pending) == 0 {
		result, err := c.conclude(ctx, root, err, warm)
		if refused != nil && err == refused { //nolint:errorlint // the very refusal: f has not run
			c.keep(a, before)
		}
		return result, err
	}
	write, after, err := r.codec.request(a, before)
	if err != nil {
		return nil, err
	}
	stored, err := r.rt.store(ctx, c.order, &eventstore.Request{Appends: []eventstore.Append{write}, Metadata: c.order.metadata,
		Key: c.order.key, Hash: c.hash, Seen: root.from})
	if warm && errors.Is(err, eventstore.ErrFailedOver) {
		err = errStale
	}
	if err != nil {
		return nil, err
	}
	if !stored.Result.Replayed {
		root.stored(&write, &stored.Result.Appends[0])
		c.keep(a, after)
		r.maybeSnapshot(id, root)
	}
	return resultOf(c.category.Name, id, stored), nil
}

// keep has the aggregate stay warm.
func (c *call[A]) keep(a *A, holds held) {
	c.slot.live, c.slot.held, c.slot.bytes = a, holds, c.repository.codec.weigh(a)
}

// conclude ends a call that appends nothing: f has failed, or raised no event. It
// is not judged by an append, so a warm aggregate is compared with the log.
func (c *call[A]) conclude(ctx context.Context, root *Root, failed error, warm bool) (*Result, error) {
	end := eventstore.Conclusion{Seen: []eventstore.Seen{root.seen(c.category)}, Version: root.version}
	if failed == nil {
		end.Key, end.Hash = c.order.key, c.hash
	}
	if warm || end.Key != "" {
		first, err := c.repository.rt.conclude(ctx, c.order, end)
		if warm && raced(err) {
			err = errStale
		}
		if first != nil || err != nil {
			return resultOf(c.category.Name, root.id, first), err
		}
	}
	if failed != nil {
		return nil, failed
	}
	return &Result{Category: c.category.Name, ID: root.id, Version: root.version}, nil
}

// seen is the aggregate's stream as it was read.
func (r *Root) seen(category eventstore.Category) eventstore.Seen {
	return eventstore.Seen{Category: category, Stream: r.id, Version: r.version, Last: r.last}
}

// check compares the aggregate with what the call asks for.
func (c *call[A]) check(root *Root) error {
	if err := c.expect.check(c.category.Name, root); err != nil {
		return err
	}
	if c.order.exists && root.version == 0 {
		return &Conflict{Category: c.category.Name, ID: root.id, Expected: -1}
	}
	if want := c.order.expected; want >= 0 && root.version != want {
		return &Conflict{Category: c.category.Name, ID: root.id, Expected: want, Actual: root.version}
	}
	return nil
}

// resultOf is the result for one aggregate of what was done; nil for nil.
func resultOf(category, id string, done *eventstore.Outcome) *Result {
	if done == nil {
		return nil
	}
	out := &Result{Category: category, ID: id, Version: done.Version, Replayed: done.Result.Replayed}
	for i := range done.Result.Appends {
		if a := &done.Result.Appends[i]; a.Category == category && a.Stream == id {
			out.Version, out.Events = a.LastVersion, a.Events
		}
	}
	return out
}
