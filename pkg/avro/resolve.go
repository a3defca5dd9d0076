package avro

import (
	"fmt"
	"slices"
)

// Resolution reads payloads of one schema as another one has them: fields by
// name or alias, defaults for fields that the writer did not know, numbers and
// texts promoted (Avro specification, "Schema Resolution").
type Resolution struct {
	writer, reader *Schema
	root           *resolved
}

// Resolve returns the resolution of payloads of writer to the schema reader. The
// error is a [*SchemaError] that names the field which stands in the way.
func Resolve(writer, reader *Schema) (*Resolution, error) {
	root, err := resolve(writer.root, reader.root, "")
	if err != nil {
		return nil, err
	}
	return &Resolution{writer, reader, root}, nil
}

// CheckBackward returns nil if payloads of the old schema can be read with the
// new one, else a [*SchemaError] that names the field.
func CheckBackward(old, new *Schema) error {
	_, err := Resolve(old, new)
	return err
}

// resolved pairs a type of the writer with the one that the reader makes of it.
type resolved struct {
	w, r *node // r is never a union unless w is null there
	// fields are those of a record in the writer's order; branches those of a
	// writer's union, nil where no branch of the reader fits.
	fields   []resolvedField
	branches []*resolved
	items    *resolved
	missing  []*field // fields of the reader that take their default
	from     []int    // of a record: for each field of the reader the writer's, -1 for its default
	symbols  []int    // of an enum: the reader's symbol for each of the writer's, -1 for none
	branch   int      // which branch of the reader's union this is, from 1; 0: the reader has no union
	same     bool     // the writer's bytes are the reader's
}

type resolvedField struct {
	*resolved // nil: skipped
	w         *node
	r         *field
}

func resolve(w, r *node, path string) (*resolved, error) {
	n, err := resolveParts(w, r, path)
	if err == nil && n.branch == 0 {
		n.setSame()
	}
	return n, err
}

func resolveParts(w, r *node, path string) (*resolved, error) {
	if w.kind == Union {
		return resolveWriterUnion(w, r, path)
	}
	if r.kind == Union {
		return resolveReaderUnion(w, r, path)
	}
	if !compatible(w, r) {
		return nil, refuse(path, "%s cannot be read as %s", w.describeShort(), r.describeShort())
	}
	switch w.kind {
	case Record:
		return resolveRecord(w, r, path)
	case Array, Map:
		items, err := resolve(w.items, r.items, path+"[]")
		return &resolved{w: w, r: r, items: items}, err
	case Enum:
		return resolveEnum(w, r, path)
	default:
		return &resolved{w: w, r: r}, nil
	}
}

func (n *node) describeShort() string {
	switch {
	case n.kind == Decimal:
		return fmt.Sprintf("decimal(%d, %d)", n.precision, n.scale)
	case n.name != "":
		return n.kind.String() + " " + n.name
	default:
		return n.kind.String()
	}
}

// compatible tells whether values of the writer's type, which is no union, can
// be read as the reader's.
func compatible(w, r *node) bool {
	if w.kind == r.kind {
		switch w.kind {
		case Record, Enum:
			return sameName(w, r)
		case Fixed:
			return w.size == r.size && sameName(w, r)
		case Decimal: // the scale is part of the meaning: reading with another one would move the point
			return w.scale == r.scale && w.precision <= r.precision && w.fixed == r.fixed && (!w.fixed || w.size == r.size)
		case Timestamp, TimeOfDay: // no digit may be lost
			return w.millis || !r.millis
		default:
			return true
		}
	}
	switch r.kind {
	case Long:
		return w.kind == Int
	case Float:
		return w.kind == Int || w.kind == Long
	case Double:
		return w.kind == Int || w.kind == Long || w.kind == Float
	case String:
		return w.kind == Bytes || w.kind == UUID
	case Bytes:
		return w.kind == String || w.kind == UUID
	default:
		return false
	}
}

// sameName compares without namespaces, as the specification's resolution does,
// and takes the reader's aliases into account.
func sameName(w, r *node) bool {
	return unqualified(w.name) == unqualified(r.name) || slices.Contains(r.aliases, w.name) ||
		slices.ContainsFunc(r.aliases, func(a string) bool { return unqualified(a) == unqualified(w.name) })
}

func unqualified(name string) string {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '.' {
			return name[i+1:]
		}
	}
	return name
}

func resolveRecord(w, r *node, path string) (*resolved, error) {
	out := &resolved{w: w, r: r}
	taken := make(map[*field]int)
	for i, wf := range w.fields {
		rf := r.fieldFor(wf.name)
		if rf == nil {
			out.fields = append(out.fields, resolvedField{w: wf.node})
			continue
		}
		child, err := resolve(wf.node, rf.node, join(path, rf.name))
		if err != nil {
			return nil, err
		}
		if _, twice := taken[rf]; twice {
			return nil, refuse(join(path, rf.name), "two fields of the old schema would become this one")
		}
		taken[rf] = i
		out.fields = append(out.fields, resolvedField{child, wf.node, rf})
	}
	for _, rf := range r.fields {
		if i, ok := taken[rf]; ok {
			out.from = append(out.from, i)
			continue
		}
		if !rf.hasDefault {
			return nil, refuse(join(path, rf.name), "the old schema lacks it, and this %s has no default", rf.node.describeShort())
		}
		out.missing, out.from = append(out.missing, rf), append(out.from, -1)
	}
	return out, nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// fieldFor finds the reader's field for a name of the writer.
func (n *node) fieldFor(name string) *field {
	for _, f := range n.fields {
		if f.name == name {
			return f
		}
	}
	for _, f := range n.fields {
		if slices.Contains(f.aliases, name) {
			return f
		}
	}
	return nil
}

func resolveEnum(w, r *node, path string) (*resolved, error) {
	out := &resolved{w: w, r: r}
	for _, symbol := range w.symbols {
		i := slices.Index(r.symbols, symbol)
		if i < 0 && r.enumDefault != "" {
			i = slices.Index(r.symbols, r.enumDefault)
		}
		if i < 0 {
			return nil, refuse(path, "the symbol %s is gone and the enum has no default", symbol)
		}
		out.symbols = append(out.symbols, i)
	}
	return out, nil
}

// resolveWriterUnion takes every branch that the writer may have written.
func resolveWriterUnion(w, r *node, path string) (*resolved, error) {
	out := &resolved{w: w, r: r}
	for _, b := range w.branches {
		child, err := resolve(b, r, path)
		if err != nil {
			return nil, err
		}
		out.branches = append(out.branches, child)
	}
	return out, nil
}

// resolveReaderUnion takes the first branch of the same kind, else the first
// one to which the writer's type can be promoted.
func resolveReaderUnion(w, r *node, path string) (*resolved, error) {
	for _, same := range []bool{true, false} {
		for i, b := range r.branches {
			if (b.kind == w.kind) == same && compatible(w, b) {
				n, err := resolve(w, b, path)
				if err == nil {
					n.branch = i + 1
				}
				return n, err
			}
		}
	}
	return nil, refuse(path, "%s is in no branch of the union", w.describeShort())
}
