package aggregate

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"

	"github.com/refoldhq/refold/pkg/eventstore"
)

// Unit is a change of several aggregates that takes effect as one. It is good
// within the function of [Runtime.Together] and not safe for concurrent use.
type Unit struct {
	ctx        context.Context // that of Together, so that In need not repeat it
	rt         *Runtime
	members    []member // of this attempt
	categories []string // that were asked for in any attempt, each once
}

// member is one aggregate of a unit.
type member interface {
	is(category, id string) bool
	// request returns what is to be appended, and false if nothing was raised.
	request() (eventstore.Append, bool, error)
	// stored notes what was appended, all of it.
	stored(request *eventstore.Request, result *eventstore.Result)
}

type memberOf[A any] struct {
	repository *Repository[A]
	a          *A
	held       []Claim
}

func (m *memberOf[A]) is(category, id string) bool {
	return m.repository.codec.d.category == category && m.repository.codec.Root(m.a).id == id
}

func (m *memberOf[A]) request() (eventstore.Append, bool, error) {
	if len(m.repository.codec.Root(m.a).pending) == 0 {
		return eventstore.Append{}, false, nil
	}
	write, _, err := m.repository.codec.request(m.a, m.held)
	return write, true, err
}

// stored asks for a snapshot, and drops the aggregate that is warm: it is older.
func (m *memberOf[A]) stored(request *eventstore.Request, result *eventstore.Result) {
	root := m.repository.codec.Root(m.a)
	m.repository.cache.forget(root.id)
	for i := range request.Appends {
		if a := &request.Appends[i]; m.is(a.Category, a.Stream) {
			root.stored(a, &result.Appends[i])
			m.repository.maybeSnapshot(root.id, root)
		}
	}
}

// In returns an aggregate that exists, as part of a unit; else [*Missing]. Asked
// for twice it is the same.
func (r *Repository[A]) In(u *Unit, id string) (*A, error) { return r.join(u, id, mustExist) }

// NewIn returns an aggregate that has no events yet, as part of a unit; else
// [*Exists].
func (r *Repository[A]) NewIn(u *Unit, id string) (*A, error) { return r.join(u, id, mustNotExist) }

func (r *Repository[A]) join(u *Unit, id string, expect existence) (*A, error) {
	category, err := r.category(id)
	if err != nil {
		return nil, err
	}
	u.names(category.Name)
	for _, m := range u.members {
		if m.is(category.Name, id) {
			return m.(*memberOf[A]).a, nil
		}
	}
	a, err := r.load(u.ctx, category, id)
	if err == nil {
		err = expect.check(category.Name, r.codec.Root(a))
	}
	if err != nil {
		return nil, err
	}
	u.members = append(u.members, &memberOf[A]{repository: r, a: a, held: r.codec.holds(a)})
	return a, nil
}

// names notes a category.
func (u *Unit) names(category string) {
	if !slices.Contains(u.categories, category) {
		u.categories = append(u.categories, category)
	}
}

// count counts the call once for each category: of the aggregates that f took, or
// of those that were changed when the call was first made.
func (u *Unit) count(result *eventstore.Result, err error) {
	if result != nil {
		for i := range result.Appends {
			u.names(result.Appends[i].Category)
		}
	}
	for _, category := range u.categories {
		u.rt.metrics.count(category, err)
	}
}

// Together runs f and stores what it raised on all aggregates that it took from
// repositories by In and NewIn, in one append: all of it or nothing. Like
// [Repository.Execute] it runs f again when a race is lost. The result is nil
// when f raised nothing.
//
// Not promised: that an aggregate on which nothing was raised is still as f saw
// it when the others are stored.
func (rt *Runtime) Together(ctx context.Context, f func(*Unit) error, options ...Option) (result *eventstore.Result, err error) {
	o := rt.order(ctx, options)
	u := &Unit{ctx: ctx, rt: rt}
	defer func() { u.count(result, err) }()
	for attempt := 1; ; attempt++ {
		result, err := u.attempt(o, f)
		var lost *eventstore.VersionConflict
		switch {
		case !errors.As(err, &lost):
			return result, err
		case attempt >= o.attempts:
			expected, _ := lost.Expected.Version()
			return nil, &Conflict{Category: lost.Category, ID: lost.Stream, Attempts: attempt, Expected: expected, Actual: lost.Actual}
		}
		if err := pause(ctx, attempt); err != nil {
			return nil, err
		}
	}
}

// attempt runs f once and stores what it raised.
func (u *Unit) attempt(o *order, f func(*Unit) error) (*eventstore.Result, error) {
	rt, ctx := u.rt, u.ctx
	sum := sha256.Sum256([]byte("together\n" + o.label))
	if first, err := rt.replay(ctx, o, sum[:]); first != nil || err != nil {
		return first, err
	}
	u.members = nil
	if err := f(u); err != nil {
		return nil, err
	}
	request := &eventstore.Request{Metadata: o.metadata, Key: o.key}
	if o.key != "" {
		request.Hash = sum[:]
	}
	for _, m := range u.members {
		write, raised, err := m.request()
		if err != nil {
			return nil, err
		}
		if raised {
			request.Appends = append(request.Appends, write)
		}
	}
	if len(request.Appends) == 0 {
		return nil, nil
	}
	releasesFirst(request.Appends)
	result, err := rt.deps.Store.Append(ctx, request)
	if errors.Is(err, eventstore.ErrKeyReused) {
		if first, err := rt.replay(ctx, o, sum[:]); first != nil || err != nil {
			return first, err
		}
	}
	if err != nil {
		return nil, err
	}
	if !result.Replayed {
		for _, m := range u.members {
			m.stored(request, result)
		}
	}
	return result, nil
}

// releasesFirst puts an append that releases a value before the one that takes
// it, as far as that is possible: a value moves from one aggregate to another,
// but two do not exchange theirs.
func releasesFirst(appends []eventstore.Append) {
	for i := range appends {
		for j := i; j < len(appends); j++ {
			if !waitsFor(&appends[j], appends[i:]) {
				moved := appends[j]
				copy(appends[i+1:j+1], appends[i:j])
				appends[i] = moved
				break
			}
		}
	}
}

// waitsFor tells whether an append takes what another one releases.
func waitsFor(a *eventstore.Append, others []eventstore.Append) bool {
	for i := range others {
		for _, c := range a.Claims {
			if &others[i] != a && slices.Contains(others[i].Releases, c) {
				return true
			}
		}
	}
	return false
}
