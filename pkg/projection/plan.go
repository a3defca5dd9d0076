package projection

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/refoldhq/refold/pkg/avro"
)

// Plan is a compiled definition. It is immutable and safe for concurrent use.
type Plan struct {
	name       string
	source     string
	categories []string
	key        keyPlan
	fields     []Field
	indexes    []Index
	shared     bool
	programs   map[string]map[string]*program // by category and event type
	former     map[[2]string]*program         // by category and a former name of the type
	hash       string
}

// Field is one field of a row.
type Field struct {
	Name string
	// Kind is Bool, Long, Double, String, Enum, UUID, Bytes, Decimal, Timestamp,
	// Date, TimeOfDay or JSON.
	Kind  avro.Kind
	Scale int // of a Decimal
	// Key says that the value is (a part of) the row's key.
	Key bool

	initial cell
	merge   mergeKind
	indexed bool
}

// Index is a declared index.
type Index struct {
	Fields []string
	Unique bool
}

// mergeKind says how two partial values of a field of a shared row become one.
type mergeKind uint8

const (
	mergeNone  mergeKind = iota
	mergeSum             // added
	mergeMin             // the lesser, nulls apart
	mergeMax             // the greater, nulls apart
	mergeLast            // that of the greatest stamp
	mergeFirst           // that of the least stamp
)

// Name returns the projection's name.
func (p *Plan) Name() string { return p.name }

// Source returns the definition's text, from which the same plan can be made.
func (p *Plan) Source() string { return p.source }

// Hash identifies all that decides about rows: plans of one hash make the same
// rows of the same events.
func (p *Plan) Hash() string { return p.hash }

// Categories returns the categories whose events feed the projection.
func (p *Plan) Categories() []string { return p.categories }

// Shared tells whether rows are fed by several streams.
func (p *Plan) Shared() bool { return p.shared }

// Fields returns the fields of a row in the definition's order.
func (p *Plan) Fields() []Field { return p.fields }

// Indexes returns the declared indexes.
func (p *Plan) Indexes() []Index { return p.indexes }

// keyPlan says how a row's key is made.
type keyPlan struct {
	kind   keyKind
	bucket string
	by     string
	value  string
	parts  []string // names of the parts of a composite key
}

// program is what the plan does with one event type.
type program struct {
	typ    *avro.EventType // whose newest version events are read as
	paths  [][]string      // fields that are decoded
	key    []source        // parts of the key
	ops    []op
	remove bool
}

// source is where a value comes from.
type source struct {
	kind  sourceKind
	index int  // of the decoded values
	value cell // a constant
}

type sourceKind uint8

const (
	fromField sourceKind = iota
	fromConstant
	fromTime
	fromRecorded
	fromID
	fromType
	fromStream
	fromVersion
	fromActor
)

type op struct {
	field  int
	kind   opKind
	source source
}

type opKind uint8

const (
	opAssign opKind = iota
	opFirst
	opAdd
	opSubtract
	opMin
	opMax
)

// describe computes the hash over what decides about rows, not over layout.
func (p *Plan) describe() {
	h := sha256.New()
	fmt.Fprintf(h, "1 %q %v %+v %t\n", p.categories, p.key.kind, p.key, p.shared)
	for _, f := range p.fields {
		fmt.Fprintf(h, "%s %d %d %t %v %d %t\n", f.Name, f.Kind, f.Scale, f.Key, f.initial, f.merge, f.indexed)
	}
	for _, category := range p.categories {
		for _, typ := range sortedNames(p.programs[category]) {
			prog := p.programs[category][typ]
			fmt.Fprintf(h, "%s %s %q %v %v %t\n", category, typ, prog.paths, prog.key, prog.ops, prog.remove)
		}
	}
	p.hash = hex.EncodeToString(h.Sum(nil)[:16])
}
