package aggregate

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/registry"
)

// Codec is a definition that was checked against the contracts: it folds stored
// events into aggregates and turns raised ones into what the log stores. It does
// no IO and is safe for concurrent use; aggregates are not.
type Codec[A any] struct {
	d           *Definition[A]
	byName      map[string]*boundEvent[A]
	byType      map[reflect.Type]*boundEvent[A]
	ignored     map[string]bool // by names that events are stored under, as byName
	fingerprint []byte
}

type boundEvent[A any] struct {
	*binding[A]
	schema   *avro.GoType
	schemaID int
}

// NewCodec checks a definition against the contracts. ids are those of the newest
// schema of each event type.
func NewCodec[A any](d *Definition[A], contracts *avro.Contracts, ids registry.IDs) (*Codec[A], error) {
	contract, err := d.check(contracts)
	if err != nil {
		return nil, err
	}
	c := &Codec[A]{d: d, byName: make(map[string]*boundEvent[A]), byType: make(map[reflect.Type]*boundEvent[A]), ignored: make(map[string]bool)}
	h := sha256.New()
	fmt.Fprintf(h, "revision %d\n", d.revision)
	describeState(h, reflect.TypeFor[A]())
	var failures []error
	for _, b := range d.events {
		t, _ := contract.Type(b.name) // it was checked
		fingerprint := t.Newest().Fingerprint()
		fmt.Fprintf(h, "event %s %x\n", b.name, fingerprint)
		schema, err := avro.NewGoType(t, b.goType)
		failures = append(failures, err)
		id, ok := ids[d.category][b.name]
		if !ok {
			failures = append(failures, fmt.Errorf("event %s: its schema is not registered", b.name))
		}
		bound := &boundEvent[A]{binding: b, schema: schema, schemaID: id}
		c.byName[b.name], c.byType[b.goType] = bound, bound
		for _, former := range t.Former {
			c.byName[former] = bound
		}
	}
	for name := range d.ignored {
		t, _ := contract.Type(name) // it was checked
		for _, stored := range append([]string{name}, t.Former...) {
			c.ignored[stored] = true
		}
	}
	c.fingerprint = h.Sum(nil)[:16]
	if err := errors.Join(failures...); err != nil {
		return nil, d.explain([]error{err})
	}
	return c, nil
}

// Fingerprint identifies the state's type and what folds events into it: that of
// a snapshot must be the same. It knows types and schemas, and not what functions do,
// see [Definition.Revise].
func (c *Codec[A]) Fingerprint() []byte { return c.fingerprint }

// New returns an aggregate without events.
func (c *Codec[A]) New(id string) *A {
	a := new(A)
	c.d.root(a).id = id
	return a
}

// Root returns the root of an aggregate.
func (c *Codec[A]) Root(a *A) *Root { return c.d.root(a) }

// Apply folds a stored event, whose value was written with the schema writer,
// into an aggregate that has all events before it and none that is not stored.
func (c *Codec[A]) Apply(a *A, e *event.Event, writer *avro.Schema) error {
	root := c.d.root(a)
	if e.Version != root.version+1 || len(root.pending) > 0 {
		return fmt.Errorf("folding event %d of %s/%s into an aggregate at version %d with %d new events", e.Version, e.Category, e.Stream, root.version, len(root.pending))
	}
	_, body, err := avro.SplitFrame(e.Value)
	if err == nil && !c.ignored[e.Type] {
		b := c.byName[e.Type]
		if b == nil {
			return fmt.Errorf("folding event %d of %s/%s: the aggregate knows no %s", e.Version, e.Category, e.Stream, e.Type)
		}
		err = b.apply(a, b.schema, writer, body)
	}
	if err != nil {
		return fmt.Errorf("folding event %d of %s/%s: %w", e.Version, e.Category, e.Stream, err)
	}
	root.version, root.last, root.recorded = e.Version, e.ID, e.Recorded
	root.since.add(1, len(e.Value), e.Recorded)
	root.size.folded += len(e.Value)
	return nil
}

// add counts events that came after the newest snapshot.
func (s *since) add(events, bytes int, recorded event.Time) {
	s.events, s.bytes = s.events+events, s.bytes+bytes
	if s.recorded == 0 {
		s.recorded = recorded
	}
}

// Encode returns an event that was raised as the log stores it.
func (c *Codec[A]) Encode(e any) (eventstore.NewEvent, error) {
	b := c.byType[reflect.TypeOf(e)]
	if b == nil {
		return eventstore.NewEvent{}, fmt.Errorf("encoding %T: the definition of %s does not bind it", e, c.d.category)
	}
	value, err := b.schema.Encode(avro.AppendFrame(make([]byte, 0, 64), b.schemaID), e)
	return eventstore.NewEvent{Type: b.name, Value: value}, err
}

// State returns an aggregate's state as JSON.
func (c *Codec[A]) State(a *A) ([]byte, error) {
	state, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("writing the state of %s %s: %w", c.d.category, c.d.root(a).id, err)
	}
	return state, nil
}

// restore returns the aggregate of a snapshot.
func (c *Codec[A]) restore(id string, snap eventstore.Snapshot) (*A, error) {
	a := c.New(id)
	if err := json.Unmarshal(snap.State, a); err != nil {
		return nil, fmt.Errorf("reading the snapshot of %s %s at version %d: %w", c.d.category, id, snap.Version, err)
	}
	root := c.d.root(a)
	root.version, root.last, root.recorded, root.since = snap.Version, snap.Event, snap.Recorded, since{recorded: snap.Recorded}
	root.size = size{json: len(snap.State)}
	return a, nil
}

// holds returns the claims of an aggregate's present state.
func (c *Codec[A]) holds(a *A) []Claim {
	if c.d.claims == nil {
		return nil
	}
	return c.d.claims(a)
}

// held are the claims of a stream: what the claim table has, and what the rule
// says of the state at that version. They differ where the rule was another one
// before, or somebody has brought the table to it since.
type held struct{ table, rule []Claim }

// request returns the append of what was raised on an aggregate that held certain
// claims before, and what it holds then.
func (c *Codec[A]) request(a *A, before held) (eventstore.Append, held, error) {
	root := c.d.root(a)
	out := eventstore.Append{Category: c.d.category, Stream: root.id, Expected: eventstore.Exactly(root.version), Events: make([]eventstore.NewEvent, len(root.pending))}
	for i, e := range root.pending {
		var err error
		if out.Events[i], err = c.Encode(e); err != nil {
			return out, held{}, err
		}
	}
	after := c.holds(a)
	out.Claims = without(after, before.table)
	out.Releases = append(without(before.table, after), without(without(before.rule, after), before.table)...)
	return out, held{after, after}, nil
}

// without returns the claims of a that are not in b.
func without(a, b []Claim) (rest []Claim) {
	for _, c := range a {
		found := false
		for _, other := range b {
			found = found || c == other
		}
		if !found {
			rest = append(rest, c)
		}
	}
	return rest
}

// stored notes that what was raised is in the log.
func (r *Root) stored(a *eventstore.Append, result *eventstore.AppendResult) {
	last := &result.Events[len(result.Events)-1]
	r.version, r.last, r.recorded, r.pending = result.LastVersion, last.ID, last.Recorded, r.pending[:0]
	for i := range a.Events {
		r.since.add(1, len(a.Events[i].Value), last.Recorded)
		r.size.folded += len(a.Events[i].Value)
	}
}

const (
	slotBytes   = 512     // of an aggregate besides its state
	measureAt   = 4 << 10 // folded bytes from which the state is written to measure it
	perJSONByte = 2       // bytes of memory for one of JSON, about
)

// weigh estimates the bytes that an aggregate takes: by the JSON of its state and
// the events since that was written. It is written anew only when as many bytes
// were folded as it has, so that it costs little for each.
func (c *Codec[A]) weigh(a *A) int {
	s := &c.d.root(a).size
	if s.folded >= max(s.json, measureAt) {
		if state, err := json.Marshal(a); err == nil {
			*s = size{json: len(state)}
		}
	}
	return slotBytes + perJSONByte*(s.json+s.folded)
}
