package aggregate

import (
	"context"
	"crypto/sha256"
	"strconv"
	"sync/atomic"

	"github.com/refoldhq/refold/pkg/event"
)

// Option says more about one call of Execute, Create or Together.
type Option func(*order)

// order is what a call asks for besides its function.
type order struct {
	metadata event.Metadata
	key      string
	label    string
	expected int64 // -1: whatever it is
	exists   bool  // it must have events, whatever the call does
	attempts int
}

// WithCommandID makes the call idempotent: what was done under an id is done
// once, and a later call with the id gets the first one's result without running
// its function; one that raised nothing too, but none that was refused.
// label says what was asked: an id that comes back with another label, or for
// another aggregate, is refused with eventstore.ErrKeyReused.
func WithCommandID(id, label string) Option {
	return func(o *order) { o.key, o.label = id, label }
}

// WithMetadata says who acts and why.
func WithMetadata(m event.Metadata) Option { return func(o *order) { o.metadata = m } }

// WithVersion asks for an aggregate at exactly this version; another one is a
// [*Conflict] at once. Together refuses it.
func WithVersion(version int64) Option { return func(o *order) { o.expected = version } }

// WithExisting asks for an aggregate that has events; a call that would create it
// is refused with a [*Conflict]. Together refuses it.
func WithExisting() Option { return func(o *order) { o.exists = true } }

// WithAttempts bounds how often the function is run when races are lost.
func WithAttempts(n int) Option { return func(o *order) { o.attempts = max(1, n) } }

// ReactionKeys begins the keys of the [Cause] of a reaction. Nobody else may use
// them, or a command of the reaction would be taken for done.
const ReactionKeys = "reaction/"

// Cause is what makes somebody act, an event for example. Calls under its
// context carry its metadata and are idempotent: the first one has the command
// id Key/1, the second one Key/2, and so on. So whoever is repeated from the
// beginning, and calls in the same order, has done all of it once.
type Cause struct {
	Key      string
	Metadata event.Metadata
}

type causeKey struct{}

type causeInContext struct {
	Cause
	calls atomic.Int64
}

// WithCause returns a context under which calls are made for a cause.
func WithCause(ctx context.Context, cause Cause) context.Context {
	return context.WithValue(ctx, causeKey{}, &causeInContext{Cause: cause})
}

func (rt *Runtime) order(ctx context.Context, options []Option) *order {
	o := &order{expected: -1, attempts: rt.cfg.Attempts}
	if cause, ok := ctx.Value(causeKey{}).(*causeInContext); ok {
		o.metadata = cause.Metadata
		o.key = cause.Key + "/" + strconv.FormatInt(cause.calls.Add(1), 10)
	}
	for _, option := range options {
		option(o)
	}
	return o
}

// hash is the digest of what is asked under a key; nil without one.
func (o *order) hash(category, id string) []byte {
	if o.key == "" {
		return nil
	}
	sum := sha256.Sum256([]byte("command\n" + category + "\n" + id + "\n" + o.label))
	return sum[:]
}
