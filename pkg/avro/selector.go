package avro

import (
	"fmt"
	"slices"
)

// Selector reads a few fields of payloads and walks over the rest: the decoder
// of the hot path. It is immutable and safe for concurrent use.
type Selector struct {
	root  *selection
	paths int
	bring func(payload []byte) ([]byte, error) // upcasts a payload first; nil for most
}

// NewSelector returns a selector that reads the fields at paths, which are those
// of reader, from payloads of writer. The error is a [*SchemaError], or wraps
// [ErrNoField] for a path that the reader does not have.
func NewSelector(writer, reader *Schema, paths [][]string) (*Selector, error) {
	res, err := Resolve(writer, reader)
	if err != nil {
		return nil, err
	}
	return newSelector(res, paths)
}

func newSelector(res *Resolution, paths [][]string) (*Selector, error) {
	targets := make([]target, len(paths))
	for i, path := range paths {
		if len(path) == 0 {
			return nil, fmt.Errorf("%w: an empty path", ErrNoField)
		}
		if _, err := res.reader.TypeOf(path...); err != nil {
			return nil, err
		}
		targets[i] = target{path, i}
	}
	root, err := selectFrom(res.root, targets)
	if err != nil {
		return nil, err
	}
	return &Selector{root: root, paths: len(paths)}, nil
}

// Select reads a payload into out, one value for each path. It checks the whole
// payload as [Schema.Scan] does and allocates only for values that are JSON. A
// field inside a record that is null is null. The values alias payload; after
// an error, which wraps [ErrCorrupt] or is an [*UpcastError], out holds anything.
func (s *Selector) Select(payload []byte, out []Value) error {
	if len(out) != s.paths {
		return fmt.Errorf("selecting %d fields into %d values", s.paths, len(out))
	}
	if s.bring != nil {
		var err error
		if payload, err = s.bring(payload); err != nil {
			return err
		}
	}
	c := cursor{in: payload}
	if err := c.selectInto(s.root, out); err != nil {
		return err
	}
	return c.end()
}

// target is a path that leads on from the present type, and where its value goes.
type target struct {
	path []string
	out  int
}

// selection says what to do with one type of the writer.
type selection struct {
	n *resolved
	// skip: nothing of it is wanted.
	skip bool
	// here are the values that are this one as a whole.
	here []int
	// fields of a record, branches of a writer's union.
	fields   []*selection
	branches []*selection
	// below are all the values inside, which a null of the writer leaves null.
	below []int
	// defaults are values of fields that the writer does not have.
	defaults []fixedValue
}

type fixedValue struct {
	out   int
	value Value
}

func selectFrom(n *resolved, targets []target) (*selection, error) {
	s := &selection{n: n, skip: len(targets) == 0}
	var inside []target
	for _, t := range targets {
		s.below = append(s.below, t.out)
		if len(t.path) == 0 {
			s.here = append(s.here, t.out)
		} else {
			inside = append(inside, t)
		}
	}
	var err error
	switch {
	case s.skip:
	case n.w.kind == Union:
		err = s.selectBranches(targets)
	case n.w.kind == Record:
		err = s.selectFields(inside)
	}
	return s, err
}

func (s *selection) selectBranches(targets []target) error {
	for _, b := range s.n.branches {
		branch, err := selectFrom(b, targets)
		if err != nil {
			return err
		}
		s.branches = append(s.branches, branch)
	}
	return nil
}

func (s *selection) selectFields(inside []target) error {
	for _, f := range s.n.fields {
		if f.resolved == nil {
			s.fields = append(s.fields, &selection{n: &resolved{w: f.w}, skip: true})
			continue
		}
		child, err := selectFrom(f.resolved, through(inside, f.r.name))
		if err != nil {
			return err
		}
		s.fields = append(s.fields, child)
	}
	for _, f := range s.n.missing {
		if err := s.selectDefault(f, through(inside, f.name)); err != nil {
			return err
		}
	}
	return nil
}

// through returns the targets that lead through a field, without it.
func through(targets []target, name string) []target {
	var out []target
	for _, t := range targets {
		if t.path[0] == name {
			out = append(out, target{t.path[1:], t.out})
		}
	}
	return out
}

// selectDefault reads the wanted values out of a field's default, once.
func (s *selection) selectDefault(f *field, targets []target) error {
	if len(targets) == 0 {
		return nil
	}
	same, err := resolve(f.node, f.node, "")
	if err != nil {
		return err
	}
	child, err := selectFrom(same, targets)
	if err != nil {
		return err
	}
	most := slices.MaxFunc(targets, func(a, b target) int { return a.out - b.out }).out
	out := make([]Value, most+1)
	c := cursor{in: f.def}
	if err := c.selectInto(child, out); err != nil {
		return fmt.Errorf("reading the default of %s: %w", f.name, err)
	}
	for _, t := range targets {
		s.defaults = append(s.defaults, fixedValue{t.out, out[t.out]})
	}
	return nil
}

// selectInto reads one value of the writer.
func (c *cursor) selectInto(s *selection, out []Value) error {
	if s.skip {
		return c.skip(s.n.w)
	}
	switch s.n.w.kind {
	case Union:
		i, err := c.branch(s.n.w)
		if err != nil {
			return err
		}
		return c.selectInto(s.branches[i], out)
	case Record, Array, Map:
		return c.selectComplex(s, out)
	}
	v, err := c.value(s.n)
	if err != nil {
		return err
	}
	for _, i := range s.below { // all of them: what is inside a null is null
		out[i] = v
	}
	return nil
}

func (c *cursor) selectComplex(s *selection, out []Value) error {
	start := c.at
	for _, f := range s.fields {
		if err := c.selectInto(f, out); err != nil {
			return err
		}
	}
	for _, d := range s.defaults {
		out[d.out] = d.value
	}
	if len(s.here) == 0 {
		return nil
	}
	c.at = start
	text, err := c.json(nil, s.n)
	if err != nil {
		return err
	}
	for _, i := range s.here {
		out[i] = Value{Kind: JSON, Bytes: text}
	}
	return nil
}
