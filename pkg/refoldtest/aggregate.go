package refoldtest

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/eventstore"
)

// Aggregate tests the commands of an aggregate type. It is safe for concurrent use.
type Aggregate[A any] struct {
	kit        *kit
	definition *aggregate.Definition[A]
	codec      *aggregate.Codec[A]
}

// NewAggregate checks a definition against the contracts of a folder.
func NewAggregate[A any](t testing.TB, fsys fs.FS, d *aggregate.Definition[A], upcasters ...avro.Upcaster) *Aggregate[A] {
	t.Helper()
	k, err := newKit(fsys, upcasters)
	if err != nil {
		t.Fatal(err)
	}
	codec, err := aggregate.NewCodec(d, k.contracts, k.ids)
	if err != nil {
		t.Fatal(err)
	}
	return &Aggregate[A]{kit: k, definition: d, codec: codec}
}

// Given begins a scenario with the events that the aggregate has; none for a new
// one.
func (a *Aggregate[A]) Given(t testing.TB, events ...aggregate.Event[A]) *Scenario[A] {
	return &Scenario[A]{t: t, aggregate: a, given: events}
}

// Scenario is an aggregate with a history, and what a command does to it.
type Scenario[A any] struct {
	t         testing.TB
	aggregate *Aggregate[A]
	given     []aggregate.Event[A]
	run       bool
	result    aggregate.Simulation
	err       error
}

// When runs a command.
func (s *Scenario[A]) When(command func(*A) error) *Scenario[A] {
	s.t.Helper()
	a := s.aggregate
	given := make([]Event, len(s.given))
	for i, e := range s.given {
		stored, err := a.codec.Encode(e)
		if err != nil {
			s.t.Fatal(err)
		}
		given[i] = Event{Category: a.definition.Category(), Type: stored.Type, Data: e}
	}
	events, err := a.kit.given(given)
	if err != nil {
		s.t.Fatal(err)
	}
	s.run = true
	s.result, s.err = a.codec.Simulate(a.kit.contracts, "1", events, command)
	var impure *aggregate.Impure
	if errors.As(s.err, &impure) {
		s.t.Fatal(s.err)
	}
	return s
}

// Then expects exactly these events.
func (s *Scenario[A]) Then(events ...aggregate.Event[A]) *Scenario[A] {
	s.t.Helper()
	s.mustHaveRun()
	if s.err != nil {
		s.t.Fatalf("the command was refused: %v", s.err)
	}
	var want, got []string
	for _, e := range events {
		stored, err := s.aggregate.codec.Encode(e)
		if err != nil {
			s.t.Fatal(err)
		}
		want = append(want, s.show(stored))
	}
	for _, stored := range s.result.Raised {
		got = append(got, s.show(stored))
	}
	if !slices.Equal(want, got) {
		s.t.Fatalf("other events than expected:\n%s", diff(want, got))
	}
	return s
}

func (s *Scenario[A]) show(e eventstore.NewEvent) string {
	return s.aggregate.kit.show(s.aggregate.definition.Category(), e.Type, e.Value)
}

// ThenNothing expects that the command succeeds and raises nothing.
func (s *Scenario[A]) ThenNothing() *Scenario[A] {
	s.t.Helper()
	return s.Then()
}

// ThenFails expects an error, by errors.Is.
func (s *Scenario[A]) ThenFails(want error) {
	s.t.Helper()
	s.mustHaveRun()
	if s.err == nil {
		var got []string
		for _, stored := range s.result.Raised {
			got = append(got, s.show(stored))
		}
		s.t.Fatalf("expected the error %v, and the command raised:\n%s", want, diff(nil, got))
	}
	if !errors.Is(s.err, want) {
		s.t.Fatalf("expected the error %v, got %v", want, s.err)
	}
}

// ThenHolds expects exactly these claims afterwards.
func (s *Scenario[A]) ThenHolds(claims ...aggregate.Claim) *Scenario[A] {
	s.t.Helper()
	s.mustHaveRun()
	if want, got := lines(claims), lines(s.result.Holds); !slices.Equal(want, got) {
		s.t.Fatalf("other claims than expected:\n%s", diff(want, got))
	}
	return s
}

func lines(claims []aggregate.Claim) (list []string) {
	for _, c := range claims {
		list = append(list, fmt.Sprintf("%s %s", c.Namespace, c.Value))
	}
	slices.Sort(list)
	return list
}

func (s *Scenario[A]) mustHaveRun() {
	s.t.Helper()
	if !s.run {
		s.t.Fatal("there is no When in the scenario")
	}
}
