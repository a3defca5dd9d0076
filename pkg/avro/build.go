package avro

import (
	"fmt"
	"io"
	"slices"
	"strconv"

	hamba "github.com/hamba/avro/v2"
)

// builder turns hamba's schema into nodes and refuses what we do not take.
type builder struct {
	open  []string // named types around the present one
	named map[string]*node
}

func refuse(path, format string, args ...any) error {
	return &SchemaError{Path: path, Msg: fmt.Sprintf(format, args...)}
}

func (b *builder) build(s hamba.Schema, path string) (*node, error) {
	switch s := s.(type) {
	case *hamba.RefSchema:
		return b.reference(s, path)
	case *hamba.NullSchema:
		return &node{kind: Null}, nil
	case *hamba.PrimitiveSchema:
		return primitive(s, path)
	case *hamba.FixedSchema:
		return b.keep(fixed(s), nil)
	case *hamba.EnumSchema:
		n := &node{kind: Enum, name: s.FullName(), aliases: s.Aliases(), symbols: s.Symbols(), min: 1}
		for _, symbol := range n.symbols {
			n.symbolText = append(n.symbolText, []byte(symbol))
		}
		if s.HasDefault() {
			n.enumDefault = s.Default()
		}
		return b.keep(n, nil)
	case *hamba.RecordSchema:
		return b.keep(b.record(s, path))
	case *hamba.ArraySchema:
		items, err := b.build(s.Items(), path+"[]")
		if err == nil && items.min == 0 {
			err = refuse(path, "an array whose items take no bytes")
		}
		return &node{kind: Array, items: items, min: 1}, err
	case *hamba.MapSchema:
		values, err := b.build(s.Values(), path+"{}")
		return &node{kind: Map, items: values, min: 1}, err
	case *hamba.UnionSchema:
		return b.union(s, path)
	default:
		return nil, refuse(path, "the type %s is not supported", s.Type())
	}
}

func (b *builder) keep(n *node, err error) (*node, error) {
	if err == nil {
		if b.named == nil {
			b.named = make(map[string]*node)
		}
		b.named[n.name] = n
	}
	return n, err
}

// reference resolves a name: to a type that is complete, else it is recursive.
func (b *builder) reference(s *hamba.RefSchema, path string) (*node, error) {
	name := s.Schema().FullName()
	if slices.Contains(b.open, name) {
		return nil, refuse(path, "the type %s contains itself", name)
	}
	if n := b.named[name]; n != nil {
		return n, nil
	}
	return b.build(s.Schema(), path)
}

func primitive(s *hamba.PrimitiveSchema, path string) (*node, error) {
	n := &node{min: 1}
	logical := hamba.LogicalType("")
	if l := s.Logical(); l != nil {
		logical = l.Type()
	}
	switch s.Type() {
	case hamba.Boolean:
		n.kind = Bool
	case hamba.Int:
		n.kind = Int
		switch logical {
		case hamba.Date:
			n.kind = Date
		case hamba.TimeMillis:
			n.kind, n.millis = TimeOfDay, true
		}
	case hamba.Long:
		n.kind = Long
		switch logical {
		case hamba.TimestampMillis:
			n.kind, n.millis = Timestamp, true
		case hamba.TimestampMicros:
			n.kind = Timestamp
		case hamba.TimeMicros:
			n.kind = TimeOfDay
		}
	case hamba.Float:
		n.kind, n.min = Float, 4
	case hamba.Double:
		n.kind, n.min = Double, 8
	case hamba.String:
		n.kind = String
		if logical == hamba.UUID {
			n.kind = UUID
		}
	case hamba.Bytes:
		n.kind = Bytes
		if d, ok := s.Logical().(*hamba.DecimalLogicalSchema); ok {
			n.kind, n.precision, n.scale = Decimal, d.Precision(), d.Scale()
		}
	default:
		return nil, refuse(path, "the type %s is not supported", s.Type())
	}
	return n, nil
}

func fixed(s *hamba.FixedSchema) *node {
	n := &node{kind: Fixed, name: s.FullName(), aliases: s.Aliases(), size: s.Size(), fixed: true, min: s.Size()}
	if d, ok := s.Logical().(*hamba.DecimalLogicalSchema); ok {
		n.kind, n.precision, n.scale = Decimal, d.Precision(), d.Scale()
	}
	return n
}

func (b *builder) record(s *hamba.RecordSchema, path string) (*node, error) {
	n := &node{kind: Record, name: s.FullName(), aliases: s.Aliases()}
	b.open = append(b.open, n.name)
	defer func() { b.open = b.open[:len(b.open)-1] }()
	for _, hf := range s.Fields() {
		at := hf.Name()
		if path != "" {
			at = path + "." + at
		}
		child, err := b.build(hf.Type(), at)
		if err != nil {
			return nil, err
		}
		f := &field{name: hf.Name(), aliases: hf.Aliases(), node: child, hasDefault: hf.HasDefault()}
		if f.hasDefault {
			if f.def, err = encodeDefault(nil, child, hf.Default(), at); err != nil {
				return nil, err
			}
		}
		n.fields = append(n.fields, f)
		n.min += child.min
	}
	return n, nil
}

func (b *builder) union(s *hamba.UnionSchema, path string) (*node, error) {
	n := &node{kind: Union}
	seen := make(map[byte]*node)
	for _, t := range s.Types() {
		child, err := b.build(t, path)
		if err != nil {
			return nil, err
		}
		k := child.jsonKind()
		if other := seen[k]; other != nil {
			return nil, refuse(path, "a union of %s and %s, which are one kind of value in JSON", other.kind, child.kind)
		}
		seen[k] = child
		n.branches = append(n.branches, child)
		if n.min == 0 || child.min+1 < n.min {
			n.min = child.min + 1
		}
	}
	return n, nil
}

// describe writes all of a type that matters to readers.
func (n *node) describe(w io.Writer) {
	fmt.Fprintf(w, "(%d %s %q %d %d %d %t %t %q %q", n.kind, n.name, n.aliases, n.size, n.precision, n.scale, n.fixed, n.millis, n.symbols, n.enumDefault)
	for _, f := range n.fields {
		fmt.Fprintf(w, "[%s %q %t %x", f.name, f.aliases, f.hasDefault, f.def)
		f.node.describe(w)
	}
	if n.items != nil {
		n.items.describe(w)
	}
	for _, b := range n.branches {
		b.describe(w)
	}
	io.WriteString(w, ")")
}

// maxExactDefault is from where on a default may not be the number that was written: the
// schema parser reads numbers as doubles.
const maxExactDefault = 1 << 53

// encodeDefault encodes a default as the schema parser gives it. The default of
// a union is one of its first branch (Avro specification, "Complex Types").
func encodeDefault(dst []byte, n *node, v any, path string) ([]byte, error) {
	bad := func() ([]byte, error) { return nil, refuse(path, "a default that is no %s", n.kind) }
	switch n.kind {
	case Null:
		return dst, nil
	case Union:
		return encodeDefault(appendLong(dst, 0), n.branches[0], v, path)
	case Bool:
		b, ok := v.(bool)
		if !ok {
			return bad()
		}
		return appendBool(dst, b), nil
	case Int, Long, Date, TimeOfDay, Timestamp:
		i, err := strconv.ParseInt(fmt.Sprintf("%d", v), 10, 64)
		if err != nil {
			return bad()
		}
		if i >= maxExactDefault || i <= -maxExactDefault {
			return nil, refuse(path, "a default of 2^53 or more")
		}
		return appendLong(dst, i), nil
	case Float, Double:
		f, err := strconv.ParseFloat(fmt.Sprintf("%v", v), 64)
		if err != nil {
			return bad()
		}
		return appendFloat(dst, n.kind, f), nil
	case Enum:
		i := slices.Index(n.symbols, fmt.Sprint(v))
		if i < 0 {
			return bad()
		}
		return appendLong(dst, int64(i)), nil
	case String, UUID:
		s, ok := v.(string)
		if !ok {
			return bad()
		}
		return appendBytes(dst, s), nil
	case Bytes, Decimal, Fixed:
		return encodeDefaultBytes(dst, n, v, path)
	default:
		return encodeDefaultComplex(dst, n, v, path)
	}
}

func encodeDefaultBytes(dst []byte, n *node, v any, path string) ([]byte, error) {
	raw := []byte(fmt.Sprintf("%s", v)) // []byte, or an array of bytes for a fixed
	if n.fixed {
		if len(raw) != n.size {
			return nil, refuse(path, "a default of %d bytes for a fixed of %d", len(raw), n.size)
		}
		return append(dst, raw...), nil
	}
	return appendBytes(dst, string(raw)), nil
}

func encodeDefaultComplex(dst []byte, n *node, v any, path string) (out []byte, err error) {
	switch n.kind {
	case Array:
		list, ok := v.([]any)
		if !ok {
			return nil, refuse(path, "a default that is no array")
		}
		if len(list) > 0 {
			dst = appendLong(dst, int64(len(list)))
			for _, item := range list {
				if dst, err = encodeDefault(dst, n.items, item, path+"[]"); err != nil {
					return nil, err
				}
			}
		}
		return append(dst, 0), nil
	case Map:
		members, ok := v.(map[string]any)
		if !ok {
			return nil, refuse(path, "a default that is no map")
		}
		if len(members) > 0 {
			dst = appendLong(dst, int64(len(members)))
			for _, key := range sortedKeys(members) {
				if dst, err = encodeDefault(appendBytes(dst, key), n.items, members[key], path+"{}"); err != nil {
					return nil, err
				}
			}
		}
		return append(dst, 0), nil
	case Record:
		members, ok := v.(map[string]any)
		if !ok {
			return nil, refuse(path, "a default that is no record")
		}
		for _, f := range n.fields {
			member, there := members[f.name]
			switch {
			case there:
				dst, err = encodeDefault(dst, f.node, member, path+"."+f.name)
			case f.hasDefault:
				dst = append(dst, f.def...)
			default:
				err = refuse(path, "a default without the field %s", f.name)
			}
			if err != nil {
				return nil, err
			}
		}
		return dst, nil
	default:
		return nil, refuse(path, "a default of the type %s is not supported", n.kind)
	}
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
