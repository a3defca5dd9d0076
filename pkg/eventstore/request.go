package eventstore

import (
	"errors"
	"fmt"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/registry"
)

// Request is appends to one or several streams that take effect together.
type Request struct {
	// Appends name each stream once.
	Appends []Append
	// Guards name streams that nothing is appended to, each once.
	Guards   []Guard
	Metadata event.Metadata
	// Seen is the incarnation of the database that the expected versions were read
	// from: another one refuses the request with [ErrFailedOver], as it may have lost
	// events and have others under their versions. The zero value is not compared.
	Seen postgres.Incarnation
	// Key is the idempotency key; empty for none. Hash is a digest of what was
	// asked under it.
	Key  string
	Hash []byte
}

// Append is new events of one stream.
type Append struct {
	Category, Stream string
	Expected         Expected
	Events           []NewEvent
	Claims, Releases []Claim
}

// Guard is a stream that must be at a version when the appends take effect.
type Guard struct {
	Category, Stream string
	Expected         Expected
}

// NewEvent is an event before it has its place.
type NewEvent struct {
	// ID is the client's choice; zero has one made.
	ID   event.ID
	Type string
	// Time is when it happened; nil means when it is recorded.
	Time *event.Time
	// Value is the framed Kafka value. It is kept until the outcome is known.
	Value []byte
}

// Claim is a value that at most one stream holds within a namespace.
type Claim struct{ Namespace, Value string }

// Expected says which version a stream must have. The zero value takes any.
type Expected struct {
	kind    expectation
	version int64
}

type expectation uint8

const (
	anyVersion expectation = iota
	exactly
	exists
)

// Any takes any version; Exists any but 0; None none but 0.
var (
	Any    = Expected{}
	Exists = Expected{kind: exists}
	None   = Exactly(0)
)

// Exactly takes one version; 0 is a stream without events.
func Exactly(version int64) Expected { return Expected{exactly, version} }

// String returns the expectation as the API has it.
func (e Expected) String() string {
	switch {
	case e.kind == anyVersion:
		return "any"
	case e.kind == exists:
		return "exists"
	case e.version == 0:
		return "none"
	default:
		return fmt.Sprint(e.version)
	}
}

// Version returns the exact version and whether there is one.
func (e Expected) Version() (int64, bool) { return e.version, e.kind == exactly }

// code is the expectation as refold.append_one takes it.
func (e Expected) code() int64 {
	switch e.kind {
	case exactly:
		return e.version
	case exists:
		return -2
	default:
		return -1
	}
}

func (e Expected) met(actual int64) bool {
	switch e.kind {
	case exactly:
		return actual == e.version
	case exists:
		return actual > 0
	default:
		return true
	}
}

// Result is what an append did, now or, if it is a replay, the first time.
type Result struct {
	Replayed bool
	Appends  []AppendResult
}

// AppendResult is what was appended to one stream.
type AppendResult struct {
	Category, Stream          string
	FirstVersion, LastVersion int64
	Events                    []Appended
}

// Appended is the place of one event.
type Appended struct {
	ID       event.ID
	Version  int64
	Position event.Position
	Recorded event.Time
}

// Token returns the token of all appends: a read that is given it shows them.
func (r *Result) Token() event.Token {
	marks := make([]event.Mark, 0, len(r.Appends))
	for i := range r.Appends {
		marks = append(marks, r.Appends[i].mark())
	}
	return event.NewToken(marks...)
}

// Token returns the token of this append alone.
func (a *AppendResult) Token() event.Token { return event.Token{a.mark()} }

func (a *AppendResult) mark() event.Mark {
	last := &a.Events[len(a.Events)-1]
	return event.Mark{Position: last.Position, Written: true, Event: last.ID.Sum()}
}

// VersionConflict says that a stream had another version than was expected.
type VersionConflict struct {
	Append           int // index in the request; -1 for a stream that nothing is appended to
	Category, Stream string
	Expected         Expected
	Actual           int64
}

func (e *VersionConflict) Error() string {
	return fmt.Sprintf("stream %s/%s is at version %d, expected %s", e.Category, e.Stream, e.Actual, e.Expected)
}

// ClaimTaken says that another stream holds a value.
type ClaimTaken struct {
	Claim
	Category, Stream string // of the holder
}

func (e *ClaimTaken) Error() string {
	return fmt.Sprintf("the value is held within %s by stream %s/%s", e.Namespace, e.Category, e.Stream)
}

// EventIDTaken says that an id is known in another stream of the category, or
// that a request mixes known ids with new ones or has one twice.
type EventIDTaken struct{ ID event.ID }

func (e *EventIDTaken) Error() string { return "event id " + e.ID.String() + " is taken" }

// TooLarge says that an event's record would exceed the limit.
type TooLarge struct{ Append, Event, Bytes, Limit int }

func (e *TooLarge) Error() string {
	return fmt.Sprintf("event %d has a record of %d bytes, at most %d fit", e.Event, e.Bytes, e.Limit)
}

// Invalid says that a request cannot be carried out as it stands: a mistake of the
// program that made it.
type Invalid struct{ Reason string }

func (e *Invalid) Error() string { return "the request is invalid: " + e.Reason }

// Errors without data. ErrUnavailable and ErrOutcomeUnknown may be tried again;
// ErrOverloaded and ErrFailedOver are an ErrUnavailable. ErrInternal is a mistake of refold's own, or
// of the database's administration, which no repetition mends; nothing happened.
var (
	ErrUnknownCategory = errors.New("unknown category")
	ErrKeyReused       = errors.New("the idempotency key was used for another request")
	ErrUnavailable     = errors.New("the event store is not available; nothing happened")
	ErrOverloaded      = fmt.Errorf("%w: too many appends wait already", ErrUnavailable)
	ErrFailedOver      = fmt.Errorf("%w: the database has failed over since the versions were read", ErrUnavailable)
	ErrOutcomeUnknown  = errors.New("the outcome is not known; ask again with the same key or event ids")
	ErrInternal        = errors.New("the event store has failed; nothing happened")
)

// AsUnavailable marks what time mends about a read with [ErrUnavailable], so that
// a caller can tell it from the errors of other servers that it talks to. Other
// errors, and nil, stay as they are.
func AsUnavailable(err error) error {
	if !postgres.Transient(err) && !errors.Is(err, registry.ErrUnavailable) || errors.Is(err, ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// request is a checked Request.
type request struct {
	*Request
	writes []write
	guards []guard
	lane   int
	events int
	bytes  int   // of the records, bounded from above
	weight int64 // of the room that it takes until it is answered
}

// write is one append of a request and where it goes.
type write struct {
	*Append
	category Category
	slot     int
	chosen   bool // some event has an id of the client's choice
}

// guard is one guard of a request and where its stream is.
type guard struct {
	*Guard
	category Category
	slot     int
}

func (r *request) ids() []byte {
	out := make([]byte, 0, 16*r.events)
	for _, w := range r.writes {
		for i := range w.Events {
			out = append(out, w.Events[i].ID[:]...)
		}
	}
	return out
}
