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
	return &Repository[A]{rt: rt, codec: codec, cache: newCache[A](rt.cfg.CacheSize)}, nil
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
	return event.Token{{Position: r.Events[len(r.Events)-1].Position, Written: true}}
}

// Load returns an aggregate as the log has it, or [*Missing]. It belongs to the
// caller, who may raise events on it to no effect.
func (r *Repository[A]) Load(ctx context.Context, id string) (*A, error) {
	category, err := r.category(id)
	if err != nil {
		return nil, err
	}
	a, err := r.load(ctx, category, id)
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
		if err == nil {
			return result, nil
		}
		var lost *eventstore.VersionConflict
		switch {
		case errors.Is(err, errStale): // it was not run on fresh state, so it does not count
			attempt--
			continue
		case errors.As(err, &lost) && attempt >= o.attempts:
			expected, _ := lost.Expected.Version()
			return nil, &Conflict{Category: category.Name, ID: id, Attempts: attempt, Expected: expected, Actual: lost.Actual}
		case lost != nil:
			if err := pause(ctx, attempt); err != nil {
				return nil, err
			}
		default:
			return result, err
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

// errStale says that the cache was behind the log.
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
		a, err := r.load(ctx, c.category, id)
		if err != nil {
			return nil, err
		}
		c.slot.live, c.slot.held = a, r.codec.holds(a)
	}
	a, held := c.slot.live, c.slot.held
	c.slot.live = nil // until it is known to be what the log has; f may panic
	root := r.codec.Root(a)
	refused := c.check(root)
	err := refused
	if err == nil {
		err = c.f(a)
	}
	if err != nil || len(root.pending) == 0 {
		if warm {
			if err := c.checkFresh(ctx, root); err != nil {
				return nil, err
			}
		}
		if refused != nil {
			c.slot.live = a
		}
		if err != nil {
			return nil, err
		}
		return &Result{Category: c.category.Name, ID: id, Version: root.version}, nil
	}
	write, holds, err := r.codec.request(a, held)
	if err != nil {
		return nil, err
	}
	result, err := c.append(ctx, write)
	if err != nil {
		return nil, err
	}
	if !result.Replayed {
		root.stored(&write, &result.Appends[0])
		c.slot.live, c.slot.held = a, holds
		r.maybeSnapshot(id, root)
	}
	return resultOf(c.category.Name, id, result), nil
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

// checkFresh returns errStale if the log has events that the aggregate has not:
// an answer without an append is not judged by the log otherwise.
func (c *call[A]) checkFresh(ctx context.Context, root *Root) error {
	version, err := c.repository.rt.reader.VersionOf(ctx, c.category, root.id)
	if err == nil && version != root.version {
		err = errStale
	}
	return eventstore.AsUnavailable(err)
}

func (c *call[A]) append(ctx context.Context, write eventstore.Append) (*eventstore.Result, error) {
	rt := c.repository.rt
	request := &eventstore.Request{Appends: []eventstore.Append{write}, Metadata: c.order.metadata, Key: c.order.key, Hash: c.hash}
	result, err := rt.deps.Store.Append(ctx, request)
	if errors.Is(err, eventstore.ErrKeyReused) {
		// Another call with the id was faster, and did something of another shape.
		if first, err := rt.replay(ctx, c.order, c.hash); first != nil || err != nil {
			return first, err
		}
	}
	return result, err
}

func resultOf(category, id string, r *eventstore.Result) *Result {
	if r == nil {
		return nil
	}
	out := &Result{Category: category, ID: id, Replayed: r.Replayed}
	for i := range r.Appends {
		if a := &r.Appends[i]; a.Category == category && a.Stream == id {
			out.Version, out.Events = a.LastVersion, a.Events
		}
	}
	return out
}
