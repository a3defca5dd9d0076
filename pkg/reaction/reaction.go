// Package reaction runs commands when events arrive: welcome mails, process
// managers, whatever one aggregate must do because of another.
//
// A [Consumer] reads the events of one category from the log and calls the
// functions that [On] has registered for their types.
//
// # What is promised
//
// Every event is handled at least once, the events of a stream in their order,
// and none before the event before it was handled, or decided about. Streams do not
// wait for each other: one whose function takes long, or fails and is tried again,
// takes one of Config.Workers while it runs, and holds up nothing but the progress of
// its slot, so that more is repeated after a crash. Commands that a function runs
// through package aggregate take effect once: its context makes them idempotent by the
// event's id and their number within the function, and their keys are kept for as
// long as the event may be handled again, whether that is by a crash, after a long
// pause, or because its stream is parked. So a function that calls the same commands
// in the same order for the same event may be repeated as often as crashes will have it.
//
// # What is not
//
// Effects outside of the log, such as a mail, may happen twice after a crash: give
// them [Event.ID] as their key. An event is not handled at a time that anybody
// knows, and a function does not see a read model that contains its event unless
// it waits for it. Whoever sends a stopped slot back behind events that it has passed
// has the functions of those repeated whose keys are gone: they go like all keys (the
// writer's keep-keys, 24 hours) once their event is passed.
//
// # What a crash leaves behind
//
// Progress is a row for each slot in a table of its own, moved after the events
// were handled, under a lease that one process holds. Another process takes the
// lease when it expires, and handles again what came after the last move. A failover
// of the database that loses the tail of the log loses the progress over it too, so
// that the session that notices begins anew where both agree.
// Nothing but the log moves a reaction: a rebuild of a projection, or a topic made
// anew, does not run it again. At its first start it skips what has happened
// before, unless Config.FromStart asks for it.
package reaction

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/registry"
)

// Config names and bounds a consumer. The zero value of each other field takes
// its default.
type Config struct {
	// Name identifies its progress: [a-z][a-z0-9-]{0,62}.
	Name string
	// Category is whose events it handles.
	Category string
	// FromStart has the first start handle all of the log.
	FromStart bool
	// Attempts is how often a function is called for an event before the stream is
	// parked; 8. While refold's database is away calls do not count: they are waited
	// for.
	Attempts int
	// Backoff is the pause before the second attempt; it doubles, up to 30 s. 50 ms.
	Backoff time.Duration
	// Workers is how many events, each of another stream, are handled at once; 8.
	Workers int
	// Poll is how often the log is looked at when nothing tells of events; 1 s.
	Poll time.Duration
	// Lease is how long a process that has died keeps others waiting; 10 s.
	Lease time.Duration
}

func (c Config) withDefaults() Config {
	if c.Attempts == 0 {
		c.Attempts = 8
	}
	if c.Backoff == 0 {
		c.Backoff = 50 * time.Millisecond
	}
	if c.Workers == 0 {
		c.Workers = 8
	}
	if c.Poll == 0 {
		c.Poll = time.Second
	}
	if c.Lease == 0 {
		c.Lease = 10 * time.Second
	}
	return c
}

// Event is an event and its data.
type Event[E any] struct {
	event.Event
	Data E
}

// Consumer handles events. Register with On before Run.
type Consumer struct {
	cfg      Config
	deps     aggregate.Deps
	reader   *eventstore.Reader
	contract *avro.CategoryContract
	handlers map[string]handler
	failures []error
	log      *slog.Logger
	metrics  *metrics
}

// handler decodes an event and calls the function for its type.
type handler func(ctx context.Context, e *event.Event, writer *avro.Schema, body []byte) error

var consumerName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

// New returns a consumer on the log of a runtime. What is wrong is reported by Run.
func New(rt *aggregate.Runtime, cfg Config) *Consumer {
	deps := rt.Deps()
	c := &Consumer{cfg: cfg.withDefaults(), deps: deps, reader: eventstore.NewReader(deps.Pool), handlers: make(map[string]handler),
		log: deps.Logger.With("reaction", cfg.Name)}
	if !consumerName.MatchString(cfg.Name) {
		c.fail(fmt.Errorf("%q cannot name a reaction: want [a-z][a-z0-9-]{0,62}", cfg.Name))
	}
	contract, ok := deps.Contracts.Category(cfg.Category)
	if !ok {
		c.fail(fmt.Errorf("the contracts have no category %s", cfg.Category))
	}
	c.contract = contract
	var err error
	if c.metrics, err = newMetrics(deps.Metrics, cfg.Name); err != nil {
		c.fail(err)
	}
	return c
}

func (c *Consumer) fail(err error) { c.failures = append(c.failures, err) }

// On registers the function for the event type that has the name of the struct E.
//
// An error has the function called again, after a pause. A broken rule, a missing
// aggregate and what [Permanent] wraps do not change by that, so they park the
// stream at once; a function for which a refusal is an answer returns nil. Calls of
// refold say [eventstore.ErrUnavailable] or [eventstore.ErrOutcomeUnknown] while the
// database is away: a function that wraps these has them waited for. Any other
// error, also of another database or of the network, is the function's own.
func On[E any](c *Consumer, react func(ctx context.Context, e Event[E]) error) {
	t := reflect.TypeFor[E]()
	if c.contract == nil {
		return // it was reported
	}
	contract, ok := c.contract.Type(t.Name())
	switch {
	case !ok:
		c.fail(fmt.Errorf("%s: the category %s has no event %s", t, c.cfg.Category, t.Name()))
		return
	case contract.Name != t.Name():
		c.fail(fmt.Errorf("%s: the event %s of %s is %s by now: handle that", t, t.Name(), c.cfg.Category, contract.Name))
		return
	case c.handlers[t.Name()] != nil:
		c.fail(fmt.Errorf("%s: the event %s of %s is handled twice", t, t.Name(), c.cfg.Category))
		return
	}
	schema, err := avro.NewGoType(contract, t)
	if err != nil {
		c.fail(err)
		return
	}
	handle := func(ctx context.Context, e *event.Event, writer *avro.Schema, body []byte) error {
		typed := Event[E]{Event: *e}
		if err := schema.Decode(writer, body, &typed.Data); err != nil {
			return Permanent(err)
		}
		return react(ctx, typed)
	}
	for _, stored := range append([]string{contract.Name}, contract.Former...) {
		c.handlers[stored] = handle
	}
}

// Check returns what is wrong with the consumer: its names, or a struct that does
// not fit its event.
func (c *Consumer) Check() error {
	failures := c.failures
	if len(c.handlers) == 0 && len(failures) == 0 {
		failures = append(failures, errors.New("no event has a function"))
	}
	if len(failures) == 0 {
		return nil
	}
	return fmt.Errorf("the reaction %s cannot be run: %w", c.cfg.Name, errors.Join(failures...))
}

// permanent is an error that another attempt does not mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Permanent wraps an error that another attempt would not mend.
func Permanent(err error) error { return permanent{err} }

// handle calls the function for an event once. A panic is an error.
func (c *Consumer) handle(ctx context.Context, e *event.Event) (err error) {
	h := c.handlers[e.Type]
	if h == nil {
		return nil
	}
	writer, body, err := registry.WriterOf(ctx, c.deps.Schemas, e.Value)
	if errors.Is(err, registry.ErrUnknownSchema) {
		return Permanent(err)
	}
	if err != nil {
		return eventstore.AsUnavailable(err)
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the function for %s panicked: %v", e.Type, p)
		}
	}()
	return h(aggregate.WithCause(ctx, c.cause(e)), e, writer, body)
}

// cause is what the commands of a function carry.
func (c *Consumer) cause(e *event.Event) aggregate.Cause {
	m := event.Metadata{Actor: "reaction/" + c.cfg.Name, CorrelationID: e.Metadata.CorrelationID, CausationID: e.ID.String(), Traceparent: e.Metadata.Traceparent}
	if m.CorrelationID == "" {
		m.CorrelationID = e.ID.String()
	}
	return aggregate.Cause{Key: aggregate.ReactionKeys + c.cfg.Name + "/" + e.ID.String(), Metadata: m}
}

// Parked is a stream whose event could not be handled.
type Parked struct {
	Category, Stream string
	Version          int64 // of the event
	Event            event.ID
	Attempts         int
	Error            string
	Since            time.Time
	// Request is what was asked for and not carried out yet: retry, skip, or "".
	Request string

	asked [16]byte // names the request
	seq   int64    // of the event; 0 if it is gone
}

// ErrNotParked says that a stream is not parked.
var ErrNotParked = errors.New("the stream is not parked")

// OtherVersion says that a stream is parked at another event than the one that was
// spoken of.
type OtherVersion struct {
	Category, Stream string
	Version          int64 // of the event where it is parked
}

func (e *OtherVersion) Error() string {
	return fmt.Sprintf("%s/%s is parked at version %d", e.Category, e.Stream, e.Version)
}

// Retry has a parked stream go on with the event that could not be handled, which
// has a version; 0 stands for whichever it is. The process that runs the reaction
// carries it out. The error is [ErrNotParked] or [*OtherVersion]. A later request
// takes the place of one that is not carried out yet.
func Retry(ctx context.Context, pool *pgxpool.Pool, reaction, category, stream string, version int64, reason string) error {
	return request(ctx, pool, reaction, category, stream, version, "retry", reason)
}

// Skip has a parked stream go on behind the event that could not be handled, see
// [Retry].
func Skip(ctx context.Context, pool *pgxpool.Pool, reaction, category, stream string, version int64, reason string) error {
	return request(ctx, pool, reaction, category, stream, version, "skip", reason)
}

func request(ctx context.Context, pool *pgxpool.Pool, reaction, category, stream string, version int64, action, reason string) error {
	var at int64
	err := pool.QueryRow(ctx, `update refold.reaction_parked p set (request, reason, asked) = (
			select case when fits then $5 else p.request end, case when fits then $6 else p.reason end, case when fits then gen_random_uuid() else p.asked end
			from (select $4 in (0, p.version) fits) f)
		where reaction = $1 and category = $2 and stream = $3 returning version`, reaction, category, stream, version, action, reason).Scan(&at)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("%w: %s/%s", ErrNotParked, category, stream)
	case err != nil:
		return fmt.Errorf("asking to %s %s/%s: %w", action, category, stream, err)
	case version != 0 && version != at:
		return &OtherVersion{Category: category, Stream: stream, Version: at}
	}
	return wake(ctx, pool)
}

// Stopped is a slot whose log does not go on behind what was handled.
type Stopped struct {
	Category string    `json:"category"`
	Slot     int16     `json:"slot"`
	Seq      int64     `json:"seq"`   // of the last event that was handled
	Event    *event.ID `json:"event"` // its id, which the log has not at Seq
	Head     int64     `json:"head"`  // of the slot now
	Since    time.Time `json:"since"`
}

// StoppedSlots returns the slots of a reaction that are stopped, in order.
func StoppedSlots(ctx context.Context, pool *pgxpool.Pool, reaction string) ([]Stopped, error) {
	rows, err := pool.Query(ctx, `select p.category, p.slot, p.seq, p.event,
			coalesce((select e.seq from refold.event e join refold.category c on c.id = e.category where c.name = p.category and e.slot = p.slot order by e.seq desc limit 1), 0), p.stopped
		from refold.reaction_progress p where p.reaction = $1 and p.stopped is not null order by p.category, p.slot`, reaction)
	if err != nil {
		return nil, fmt.Errorf("reading stopped slots: %w", err)
	}
	list := []Stopped{}
	var s Stopped
	var id *[16]byte
	_, err = pgx.ForEachRow(rows, []any{&s.Category, &s.Slot, &s.Seq, &id, &s.Head, &s.Since}, func() error {
		if s.Event = nil; id != nil {
			known := event.ID(*id)
			s.Event = &known
		}
		list = append(list, s)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading stopped slots: %w", err)
	}
	return list, nil
}

// ErrNotStopped says that a slot is not stopped, ErrNoEvent that a slot has no event
// with a seq.
var (
	ErrNotStopped = errors.New("the slot is not stopped")
	ErrNoEvent    = errors.New("the slot has no such event")
)

// Resume has a stopped slot go on behind the event with a seq, 0 for its beginning:
// that one and those before it count as handled.
func Resume(ctx context.Context, pool *pgxpool.Pool, reaction, category string, slot int, after int64, reason string) error {
	var found, resumed bool
	err := pool.QueryRow(ctx, `
		with at as (
			select e.id from refold.event e join refold.category c on c.id = e.category where c.name = $2 and e.slot = $3 and e.seq = $4
			union all
			select null from refold.slot s join refold.category c on c.id = s.category where c.name = $2 and s.slot = $3 and s.floor = $4),
		resumed as (
			update refold.reaction_progress set seq = $4, event = (select id from at limit 1), stopped = null, reason = $5, updated = clock_timestamp()
			where reaction = $1 and category = $2 and slot = $3 and stopped is not null and exists (select from at) returning 1)
		select exists (select from at), exists (select from resumed)`, reaction, category, slot, after, reason).Scan(&found, &resumed)
	switch {
	case err != nil:
		return fmt.Errorf("resuming slot %d of %s: %w", slot, reaction, err)
	case resumed:
		return wake(ctx, pool)
	case !found:
		return fmt.Errorf("%w: %s/%d/%d", ErrNoEvent, category, slot, after)
	default:
		return fmt.Errorf("%w: %s/%d", ErrNotStopped, category, slot)
	}
}

// wake has the process that runs a reaction look.
func wake(ctx context.Context, pool *pgxpool.Pool) error {
	if _, err := pool.Exec(ctx, `notify refold_log`); err != nil {
		return fmt.Errorf("waking the reaction: %w", err)
	}
	return nil
}

// ParkedStreams returns the streams that a reaction has parked, by name; also those of
// a category that it has handled before.
func ParkedStreams(ctx context.Context, pool *pgxpool.Pool, reaction string) ([]Parked, error) {
	return readParked(ctx, pool, `select `+parkedColumns+`
		from refold.reaction_parked p where reaction = $1 order by category, stream`, reaction)
}
