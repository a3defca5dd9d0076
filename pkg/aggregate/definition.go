package aggregate

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
)

// Definition says what an aggregate type is made of: its category, its events
// and its commands. It is filled by [On], [Command] and [Creates] and does not
// change once it is in use.
type Definition[A any] struct {
	category string
	revision int
	policy   *Policy // nil for that of the runtime
	root     func(*A) *Root
	claims   func(*A) []Claim // nil when it holds none
	events   []*binding[A]
	ignored  map[string]bool
	commands []*command[A]
	failures []error
}

// binding is an event type and the struct that is used for it.
type binding[A any] struct {
	name   string
	goType reflect.Type
	apply  func(a *A, t *avro.GoType, writer *avro.Schema, payload []byte) error
}

// Define begins the definition of the aggregate type A, whose streams are those
// of a category.
func Define[A any, P Pointer[A]](category string) *Definition[A] {
	d := &Definition[A]{category: category, root: func(a *A) *Root { return P(a).root() }, ignored: make(map[string]bool)}
	d.fail(event.CheckCategory(category))
	if _, ok := any((*A)(nil)).(Claimer); ok {
		d.claims = func(a *A) []Claim { return any(a).(Claimer).Claims() }
	}
	d.fail(checkState(reflect.TypeFor[A](), ""))
	return d
}

// Category returns the category of the aggregate's streams.
func (d *Definition[A]) Category() string { return d.category }

// Events returns the struct that each event type is bound to.
func (d *Definition[A]) Events() map[string]reflect.Type {
	events := make(map[string]reflect.Type)
	for _, b := range d.events {
		events[b.name] = b.goType
	}
	return events
}

// Revise says that the fold has another meaning than before, though the types
// are the same: snapshots of other revisions are ignored. It is 0 at first. A change
// of what Apply does needs it, and so does one of the functions by which a type of the
// state marshals itself, or of an upcaster's: what functions do is in no fingerprint.
func (d *Definition[A]) Revise(revision int) { d.revision = revision }

// SnapshotBy has snapshots of this type written by a policy of its own.
func (d *Definition[A]) SnapshotBy(p Policy) { d.policy = &p }

// Ignore says that events of a type change nothing in the aggregate's state.
// Every type of the category is either bound or ignored, so that none is
// forgotten.
func (d *Definition[A]) Ignore(eventTypes ...string) {
	for _, name := range eventTypes {
		d.ignored[name] = true
	}
}

func (d *Definition[A]) fail(err error) {
	if err != nil {
		d.failures = append(d.failures, err)
	}
}

// On binds the event type that has the name of the struct E.
func On[E Event[A], A any](d *Definition[A]) { OnNamed[E](d, reflect.TypeFor[E]().Name()) }

// OnNamed binds an event type to a struct of another name.
func OnNamed[E Event[A], A any](d *Definition[A], eventType string) {
	t := reflect.TypeFor[E]()
	if t.Kind() != reflect.Struct {
		d.fail(fmt.Errorf("event %s: %s is no struct: declare Apply on the struct itself", eventType, t))
		return
	}
	for _, b := range d.events {
		if b.name == eventType || b.goType == t {
			d.fail(fmt.Errorf("event %s: it is bound to %s, and %s to %s", eventType, t, b.name, b.goType))
			return
		}
	}
	d.events = append(d.events, &binding[A]{name: eventType, goType: t,
		apply: func(a *A, t *avro.GoType, writer *avro.Schema, payload []byte) error {
			var e E
			if err := t.Decode(writer, payload, &e); err != nil {
				return err
			}
			e.Apply(a)
			return nil
		}})
}

// check compares the definition with the contract of its category. All that is
// wrong is reported together.
func (d *Definition[A]) check(contracts *avro.Contracts) (*avro.CategoryContract, error) {
	failures := d.failures
	contract, ok := contracts.Category(d.category)
	if !ok {
		failures = append(failures, fmt.Errorf("the contracts have no category %s", d.category))
		return nil, d.explain(failures)
	}
	bound := make(map[string]bool)
	for _, b := range d.events {
		bound[b.name] = true
		if t, ok := contract.Type(b.name); !ok {
			failures = append(failures, fmt.Errorf("event %s: the category has no such type: want events/%s/%s.v1.avsc", b.name, d.category, b.name))
		} else if t.Name != b.name {
			failures = append(failures, fmt.Errorf("event %s: the type is %s by now: bind that", b.name, t.Name))
		}
	}
	for _, t := range contract.Types {
		switch {
		case bound[t.Name] && d.ignored[t.Name]:
			failures = append(failures, fmt.Errorf("event %s is bound and ignored", t.Name))
		case !bound[t.Name] && !d.ignored[t.Name]:
			failures = append(failures, fmt.Errorf("event %s is neither bound nor ignored: add aggregate.On or Ignore", t.Name))
		}
	}
	for name := range d.ignored {
		if t, ok := contract.Type(name); !ok || t.Name != name {
			failures = append(failures, fmt.Errorf("event %s is ignored, and the category has no such type", name))
		}
	}
	return contract, d.explain(failures)
}

func (d *Definition[A]) explain(failures []error) error {
	if len(failures) == 0 {
		return nil
	}
	return fmt.Errorf("the aggregate %s (%s) cannot be used: %w", d.category, reflect.TypeFor[A](), errors.Join(failures...))
}
