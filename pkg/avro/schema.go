// Package avro is everything that refold does with Avro: schemas and the
// contracts that they make up, JSON to Avro and back, the bounds-checking
// scanner, the partial decoder of the hot path, schema resolution and
// compatibility.
//
// It is the only importer of github.com/hamba/avro/v2, which parses schemas for
// it and encodes Go structs. hamba's decoder can be made to allocate without
// limit, so bytes from outside are walked by our own scanner first: every read
// is checked against the end of the payload, and nothing is allocated for what a
// payload merely claims to hold.
//
// The main types are [Schema], [Selector] (a few fields of a payload, without
// allocating), [Resolution] (old payloads as the newest schema has them) and
// [Contracts] (the event types of a folder). All are immutable and safe for
// concurrent use.
package avro

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	hamba "github.com/hamba/avro/v2"
)

// Kind is what a value is.
type Kind uint8

// Kinds of types and values. Record, Array, Map, Union and Fixed are kinds of
// types only: a [Value] of a record, array or map is JSON, one of a union has
// the kind of its branch, and one of a fixed is Bytes.
const (
	Null Kind = iota
	Bool
	Int
	Long
	Float
	Double
	String
	Enum
	UUID
	Bytes
	Decimal
	Timestamp
	Date
	TimeOfDay
	JSON
	Fixed
	Record
	Array
	Map
	Union
)

var kindNames = [...]string{"null", "boolean", "int", "long", "float", "double", "string", "enum", "uuid", "bytes", "decimal", "timestamp", "date", "time",
	"json", "fixed", "record", "array", "map", "union"}

func (k Kind) String() string { return kindNames[k] }

// Schema is the schema of one record: an event type in one version.
type Schema struct {
	source string
	parsed hamba.Schema
	root   *node
	same   *resolved // the schema read as itself
}

// SchemaError says why a schema is refused, and at which field.
type SchemaError struct {
	// Path is the field, its parts joined by dots; "" for the whole schema.
	Path string
	Msg  string
}

func (e *SchemaError) Error() string {
	if e.Path == "" {
		return "schema refused: " + e.Msg
	}
	return fmt.Sprintf("schema refused: field %s: %s", e.Path, e.Msg)
}

// Parse parses a schema in JSON. Besides what Avro forbids it refuses schemas
// that are no record, recursive types, arrays whose items take no bytes (a short
// payload could claim any number of them), and unions whose branches JSON could
// not tell apart. The error is a [*SchemaError].
func Parse(src []byte) (*Schema, error) {
	if err := checkSyntax(src); err != nil {
		return nil, &SchemaError{Msg: err.Error()}
	}
	// A cache of its own: hamba's global one would let one schema's names leak into another.
	parsed, err := hamba.ParseBytesWithCache(src, "", &hamba.SchemaCache{})
	if err != nil {
		return nil, &SchemaError{Msg: err.Error()}
	}
	b := builder{}
	root, err := b.build(parsed, "")
	if err != nil {
		return nil, err
	}
	if root.kind != Record {
		return nil, &SchemaError{Msg: "the top is " + root.kind.String() + ", a record is needed"}
	}
	same, err := resolve(root, root, "")
	if err != nil {
		return nil, err
	}
	return &Schema{source: string(src), parsed: parsed, root: root, same: same}, nil
}

// checkSyntax refuses what is no JSON, with the line.
func checkSyntax(src []byte) error {
	err := json.Unmarshal(src, new(json.RawMessage))
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
		before := src[:max(0, min(int(syntax.Offset), len(src))-1)]
		return fmt.Errorf("it is no JSON: line %d: %w", 1+bytes.Count(before, []byte("\n")), err)
	}
	return err
}

// String returns the schema as it was given.
func (s *Schema) String() string { return s.source }

// Canonical returns Avro's Parsing Canonical Form: equal for schemas that differ
// in what no reader or writer looks at. It leaves out defaults and logical types.
func (s *Schema) Canonical() string { return s.parsed.String() }

// Fingerprint identifies the schema by all that matters to readers: names,
// types, logical types, defaults and aliases, but not documentation or layout.
func (s *Schema) Fingerprint() [32]byte {
	h := sha256.New()
	s.root.describe(h)
	return [32]byte(h.Sum(nil))
}

// Name returns the record's name without its namespace: the event type.
func (s *Schema) Name() string { return s.parsed.(hamba.NamedSchema).Name() }

// FullName returns the record's name with its namespace.
func (s *Schema) FullName() string { return s.root.name }

// Formerly returns the names, without namespaces, that the record had before: its
// aliases.
func (s *Schema) Formerly() []string {
	names := make([]string, len(s.root.aliases))
	for i, alias := range s.root.aliases {
		names[i] = unqualified(alias)
	}
	return names
}

// Field is one field of a record.
type Field struct {
	Name       string
	Type       Type
	HasDefault bool

	aliases []string
}

// Former returns the names that the field's aliases give it.
func (f Field) Former() []string { return f.aliases }

// Type is what compilers of projections need to know about a type.
type Type struct {
	// Kind is never Union: a union with null is its other branch, Nullable; a
	// union of several others is JSON.
	Kind             Kind
	Nullable         bool
	Precision, Scale int      // of a Decimal
	Symbols          []string // of an Enum
	Fields           []Field  // of a Record
	Items            *Type    // of an Array or a Map
}

// Fields returns the fields of the record in order.
func (s *Schema) Fields() []Field { return s.root.typ().Fields }

// ErrNoField is returned by [Schema.TypeOf].
var ErrNoField = errors.New("no such field")

// TypeOf returns the type at a path of field names. A field inside a nullable
// record is nullable.
func (s *Schema) TypeOf(path ...string) (Type, error) {
	_, t, err := s.Find(path...)
	return t, err
}

// Find returns the type at a path of field names, and the path itself in the names
// of this schema: one that was written when fields had former names, which are
// aliases now, finds them still.
func (s *Schema) Find(path ...string) (now []string, _ Type, _ error) {
	t := s.root.typ()
	nullable := false
	for _, name := range path {
		i := slices.IndexFunc(t.Fields, func(f Field) bool { return f.Name == name })
		if i < 0 {
			i = slices.IndexFunc(t.Fields, func(f Field) bool { return slices.Contains(f.aliases, name) })
		}
		if i < 0 {
			return nil, Type{}, fmt.Errorf("%w: %s", ErrNoField, name)
		}
		now = append(now, t.Fields[i].Name)
		t = t.Fields[i].Type
		nullable = nullable || t.Nullable
	}
	t.Nullable = nullable
	return now, t, nil
}

// node is a type in the form that our own code walks.
type node struct {
	kind             Kind
	name             string // of a named type, with its namespace
	aliases          []string
	fields           []*field
	items            *node
	branches         []*node
	symbols          []string
	symbolText       [][]byte
	enumDefault      string
	size             int // of a Fixed, and of what is stored in one
	fixed            bool
	precision, scale int
	millis           bool // of a Timestamp or TimeOfDay: else microseconds
	min              int  // the fewest bytes that a value takes
}

type field struct {
	name       string
	aliases    []string
	node       *node
	hasDefault bool
	def        []byte // the default, encoded
}

func (n *node) typ() Type {
	t := Type{Kind: n.kind, Precision: n.precision, Scale: n.scale, Symbols: n.symbols}
	switch n.kind {
	case Union:
		return n.unionType()
	case Record:
		for _, f := range n.fields {
			t.Fields = append(t.Fields, Field{Name: f.name, Type: f.node.typ(), HasDefault: f.hasDefault, aliases: f.aliases})
		}
	case Array, Map:
		items := n.items.typ()
		t.Items = &items
	case Fixed:
		t.Kind = Bytes
	}
	return t
}

func (n *node) unionType() Type {
	var t Type
	others, nullable := 0, false
	for _, b := range n.branches {
		if b.kind == Null {
			nullable = true
			continue
		}
		t = b.typ()
		others++
	}
	switch {
	case others > 1:
		t = Type{Kind: JSON}
	case others == 0:
		t = Type{Kind: Null}
	}
	t.Nullable = t.Nullable || nullable
	return t
}

// jsonKind is what a value of the type is in JSON: n(ull), b(oolean), d(igits),
// s(tring), a(rray), o(bject).
func (n *node) jsonKind() byte {
	switch n.kind {
	case Null:
		return 'n'
	case Bool:
		return 'b'
	case Int, Long, Float, Double:
		return 'd'
	case Array:
		return 'a'
	case Record, Map:
		return 'o'
	default:
		return 's'
	}
}
