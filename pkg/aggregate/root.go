// Package aggregate is the write side for programs in Go: aggregates are plain
// structs whose commands check rules and raise events.
//
// # An aggregate
//
// It embeds a [Root], which keeps its id, its version and what was raised and is
// not stored yet. Each event is a struct with an Apply method that says what it
// changes; [Raise] applies an event and keeps it. A [Definition] binds event
// types to structs and names the commands; it is checked against the contracts
// once, at the start.
//
//	type Account struct {
//		aggregate.Root
//		Balance int64
//	}
//
//	func (e Deposited) Apply(a *Account) { a.Balance += e.Amount }
//
//	func (a *Account) Withdraw(c Withdraw) error {
//		if c.Amount > a.Balance {
//			return ErrOverdrawn
//		}
//		aggregate.Raise(a, Withdrawn{Amount: c.Amount})
//		return nil
//	}
//
// State is changed by Apply methods and by nothing else. What a command writes into
// a field without an event is lost: at once if it fails or raises nothing, and else
// when the aggregate is next loaded, which may be much later, so that its claims
// and later commands may see it until then. Package refoldtest finds it. All fields
// of the state are exported, for it travels as JSON in snapshots.
//
// # Running commands
//
// A [Runtime] holds what all aggregates of a process share; [Open] gives the
// [Repository] of one type. [Repository.Execute] loads, runs a function and
// appends what it raised at the version that was loaded. Somebody else's append
// in between is a lost race: the function is run again on the fresh state.
// Aggregates stay warm in a cache. An append from the cache is judged by its
// expected version like any other, and refused by a database that has failed over
// since the aggregate was loaded. A refusal or an answer without events is given
// only after a look at the log has shown that the state was fresh, and the state
// that it was given on is dropped: so the cache changes no answer.
package aggregate

import (
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
)

// Root is what the package needs to know of an aggregate. Embed it. The zero
// value is an aggregate that has no events and no id.
type Root struct {
	id       string
	version  int64 // of the last stored event
	last     event.ID
	recorded event.Time // of that event
	pending  []any
	since    since
	from     postgres.Incarnation // of the database that it was loaded from
	size     size
}

// since is what has come after the newest snapshot, or after the beginning.
type since struct {
	events   int
	bytes    int
	recorded event.Time // of the snapshot's event, or of the first event
}

// size is what the memory of the state is estimated by.
type size struct {
	json   int // of the state when it was written last
	folded int // bytes of the events since
}

// ID returns the id of the aggregate's stream.
func (r *Root) ID() string { return r.id }

// Version returns the version of the last event that is stored; 0 for none.
func (r *Root) Version() int64 { return r.version }

// Uncommitted returns the events that were raised and are not stored yet, in
// order. The caller must not change it.
func (r *Root) Uncommitted() []any { return r.pending }

func (r *Root) root() *Root { return r }

// rooted is what embeds a Root, and only that.
type rooted interface{ root() *Root }

// Pointer is the pointer to an aggregate: *A, where A embeds a [Root].
type Pointer[A any] interface {
	*A
	rooted
}

// Event is an event of the aggregate A. Apply changes the state as the event
// says; it must not fail and must depend on nothing but the event and the state.
type Event[A any] interface{ Apply(*A) }

// Claim is a value that no two streams may hold at once within a namespace.
type Claim = eventstore.Claim

// Claimer is an aggregate that holds claims. Claims returns all that it holds in
// its present state. In the transaction of a command's events the stream takes what
// it does not hold of them and releases all else that it holds: a rule that has
// changed takes effect with the next command of each aggregate, which is refused as
// long as another one holds a value. `writer claims` brings all to the rule at once.
type Claimer interface{ Claims() []Claim }

// Raise applies an event to an aggregate and keeps it until it is stored.
func Raise[A any, P Pointer[A]](a P, e Event[A]) {
	r := a.root()
	r.pending = append(r.pending, e)
	e.Apply(a)
}
