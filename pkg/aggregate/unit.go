package aggregate

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"

	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
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
	// seen is its stream as it was read, and the database that it was read from.
	seen() (eventstore.Seen, postgres.Incarnation)
	// request returns what is to be appended, and false if nothing was raised.
	request() (eventstore.Append, bool, error)
	// stored notes what was appended, all of it.
	stored(request *eventstore.Request, result *eventstore.Result)
}

type memberOf[A any] struct {
	repository *Repository[A]
	category   eventstore.Category
	a          *A
	held       held
	given      bool // to the function; else it was only told that it exists, or does not
}

func (m *memberOf[A]) root() *Root { return m.repository.codec.Root(m.a) }

func (m *memberOf[A]) is(category, id string) bool {
	return m.category.Name == category && m.root().id == id
}

func (m *memberOf[A]) seen() (eventstore.Seen, postgres.Incarnation) {
	return m.root().seen(m.category), m.root().from
}

func (m *memberOf[A]) request() (eventstore.Append, bool, error) {
	if len(m.root().pending) == 0 {
		return eventstore.Append{}, false, nil
	}
	write, _, err := m.repository.codec.request(m.a, m.held)
	return write, true, err
}

// stored asks for a snapshot, and drops the aggregate that is warm: it is older.
func (m *memberOf[A]) stored(request *eventstore.Request, result *eventstore.Result) {
	root := m.root()
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
	m := r.memberOf(u, category, id)
	if m == nil {
		m = &memberOf[A]{repository: r, category: category}
		if m.a, m.held, err = r.load(u.ctx, category, id); err != nil {
			return nil, err
		}
		u.members = append(u.members, m)
	}
	if !m.given {
		if err := expect.check(category.Name, m.root()); err != nil {
			return nil, err // it stays a member: what f decides now depends on this
		}
		m.given = true
	}
	return m.a, nil
}

// memberOf returns the aggregate if the unit has it already, or nil.
func (r *Repository[A]) memberOf(u *Unit, category eventstore.Category, id string) *memberOf[A] {
	for _, m := range u.members {
		if m.is(category.Name, id) {
			return m.(*memberOf[A])
		}
	}
	return nil
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
// [Repository.Execute] it runs f again when a race is lost. The result has no appends
// when f raised nothing.
//
// Promised: when the events are stored all aggregates that f has asked for are as it
// saw them, also those on which nothing was raised and those that it was told do not
// exist; and an error of f, or an answer without events, is about states that were
// there at one moment during the call.
//
// [WithVersion] and [WithExisting] speak of one aggregate and are refused: In says that
// an aggregate exists, and f compares versions.
func (rt *Runtime) Together(ctx context.Context, f func(*Unit) error, options ...Option) (result *eventstore.Result, err error) {
	o := rt.order(ctx, options)
	if o.expected >= 0 || o.exists {
		return nil, errOfOne
	}
	u := &Unit{ctx: ctx, rt: rt}
	defer func() { u.count(result, err) }()
	for attempt := 1; ; attempt++ {
		done, err := u.attempt(o, f)
		switch {
		case err == nil:
			return done.Result, nil
		case !raced(err):
			return nil, err
		case attempt >= o.attempts:
			return nil, spent(err, attempt)
		}
		if err := pause(ctx, attempt); err != nil {
			return nil, err
		}
	}
}

var errOfOne = errors.New("changing several aggregates: WithVersion and WithExisting are for calls about one")

// attempt runs f once and stores what it raised.
func (u *Unit) attempt(o *order, f func(*Unit) error) (*eventstore.Outcome, error) {
	hash := sha256.Sum256([]byte("together\n" + o.label))
	if first, err := u.rt.replay(u.ctx, o, hash[:]); first != nil || err != nil {
		return first, err
	}
	u.members = nil
	failed := f(u)
	request := &eventstore.Request{Metadata: o.metadata, Key: o.key}
	if o.key != "" {
		request.Hash = hash[:]
	}
	if failed == nil {
		if err := u.fill(request); err != nil {
			return nil, err
		}
	}
	if len(request.Appends) == 0 {
		return u.conclude(o, request, failed)
	}
	done, err := u.rt.store(u.ctx, o, request)
	if err != nil {
		return nil, err
	}
	if !done.Result.Replayed {
		for _, m := range u.members {
			m.stored(request, done.Result)
		}
	}
	return done, nil
}

// fill puts what was raised into a request, and guards on all else.
func (u *Unit) fill(request *eventstore.Request) error {
	for _, m := range u.members {
		write, raised, err := m.request()
		if err != nil {
			return err
		}
		seen, from := m.seen()
		if request.Seen == (postgres.Incarnation{}) {
			request.Seen = from
		} else if request.Seen != from {
			return eventstore.ErrFailedOver // between two of them
		}
		if raised {
			request.Appends = append(request.Appends, write)
		} else {
			request.Guards = append(request.Guards, eventstore.Guard{Category: seen.Category.Name, Stream: seen.Stream, Expected: eventstore.Exactly(seen.Version)})
		}
	}
	releasesFirst(request.Appends)
	return nil
}

// conclude ends an attempt that appends nothing. Aggregates that were read one after
// the other may never have been as they were seen at the same time.
func (u *Unit) conclude(o *order, request *eventstore.Request, failed error) (*eventstore.Outcome, error) {
	end := eventstore.Conclusion{}
	for _, m := range u.members {
		seen, _ := m.seen()
		end.Seen = append(end.Seen, seen)
	}
	if failed == nil {
		end.Key, end.Hash = request.Key, request.Hash
	}
	if len(end.Seen) > 1 || end.Key != "" {
		if first, err := u.rt.conclude(u.ctx, o, end); first != nil || err != nil {
			return first, err
		}
	}
	return &eventstore.Outcome{Result: &eventstore.Result{}}, failed
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
