package aggregate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/registry"
)

// Simulation is what a command did to an aggregate that no log knows.
type Simulation struct {
	// Raised are the events as the log would store them.
	Raised []eventstore.NewEvent
	// Before and After are the states around the command.
	Before, After json.RawMessage
	// Holds is what the aggregate claims afterwards.
	Holds []Claim
}

// Impure says that a command left another state than its events make: it wrote
// into the aggregate itself, an event's Apply depends on more than the event and
// the state, or the schema of an event does not hold all of it.
type Impure struct{ Left, Folded []byte }

func (e *Impure) Error() string {
	return fmt.Sprintf("the command left the state %s, its events make %s", e.Left, e.Folded)
}

// Simulate folds given events, which were written with schemas that [LocalSchemas]
// numbers, and runs f on the aggregate. The error is that of f, of the given
// events, or an [*Impure].
func (c *Codec[A]) Simulate(contracts *avro.Contracts, id string, given []event.Event, f func(*A) error) (Simulation, error) {
	var s Simulation
	a, err := c.foldGiven(contracts, id, given)
	if err != nil {
		return s, err
	}
	if s.Before, err = c.State(a); err != nil {
		return s, err
	}
	if err := f(a); err != nil {
		return s, err
	}
	all := slices.Clone(given)
	for _, raised := range c.d.root(a).pending {
		e, err := c.Encode(raised)
		if err != nil {
			return s, err
		}
		s.Raised = append(s.Raised, e)
		all = append(all, event.Event{ID: event.NewID(), Category: c.d.category, Stream: id, Version: int64(len(all)) + 1, Type: e.Type, Value: e.Value})
	}
	if s.After, err = c.State(a); err != nil {
		return s, err
	}
	s.Holds = c.holds(a)
	folded, err := c.foldGiven(contracts, id, all)
	if err != nil {
		return s, err
	}
	return s, c.compareStates(id, s.After, folded)
}

func (c *Codec[A]) foldGiven(contracts *avro.Contracts, id string, given []event.Event) (*A, error) {
	schemas := LocalSchemas(contracts)
	a := c.New(id)
	for i := range given {
		schema, _, err := avro.SplitFrame(given[i].Value)
		if err == nil && schemas[schema] == nil {
			err = fmt.Errorf("event %d is of a schema %d, which the contracts do not have", i+1, schema)
		}
		if err != nil {
			return nil, err
		}
		if err := c.Apply(a, &given[i], schemas[schema]); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// compareStates compares what a command left with what the events make, and that
// with what is left of it after a snapshot.
func (c *Codec[A]) compareStates(id string, left []byte, folded *A) error {
	state, err := c.State(folded)
	if err != nil {
		return err
	}
	if !bytes.Equal(left, state) {
		return &Impure{Left: left, Folded: state}
	}
	restored, err := c.restore(id, eventstore.Snapshot{Version: 1, State: state})
	if err != nil {
		return err
	}
	again, err := c.State(restored)
	if err == nil && !bytes.Equal(state, again) {
		err = fmt.Errorf("a snapshot does not keep the state %s: it becomes %s", state, again)
	}
	return err
}

// LocalIDs returns the numbers that [LocalSchemas] gives to the newest schemas of
// contracts, for use without a registry.
func LocalIDs(contracts *avro.Contracts) registry.IDs {
	ids, n := make(registry.IDs), 0
	for _, category := range contracts.Categories() {
		ids[category.Name] = make(map[string]int)
		for _, t := range category.Types {
			n += len(t.Versions)
			ids[category.Name][t.Name] = n
		}
	}
	return ids
}

// LocalSchemas numbers all schemas of contracts: by category, event type and
// version, from 1.
func LocalSchemas(contracts *avro.Contracts) map[int]*avro.Schema {
	schemas := make(map[int]*avro.Schema)
	for _, category := range contracts.Categories() {
		for _, t := range category.Types {
			for _, schema := range t.Versions {
				schemas[len(schemas)+1] = schema
			}
		}
	}
	return schemas
}

// Simulate runs a named command, see [Codec.Simulate].
func (d *Definition[A]) Simulate(contracts *avro.Contracts, id string, given []event.Event, command string, body []byte) (Simulation, error) {
	codec, err := NewCodec(d, contracts, LocalIDs(contracts))
	if err != nil {
		return Simulation{}, err
	}
	run, creates, err := d.Decode(command, body)
	if err != nil {
		return Simulation{}, err
	}
	return codec.Simulate(contracts, id, given, func(a *A) error {
		expect := mustExist
		if creates {
			expect = mustNotExist
		}
		if err := expect.check(d.category, d.root(a)); err != nil {
			return err
		}
		return run(a)
	})
}
