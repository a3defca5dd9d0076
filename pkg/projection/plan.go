package projection

import (
	"bytes"
	"cmp"

	"github.com/refoldhq/refold/pkg/avro"
)

// Plan is a compiled definition. It is immutable and safe for concurrent use.
type Plan struct {
	name       string
	source     string
	categories []string // by name
	key        keyPlan
	fields     []Field
	columns    []column
	layout     *layout
	stateful   []int // columns whose cells have a state, by name as jsonb sorts
	indexes    []Index
	shared     bool
	programs   map[string]map[string]*program // by category and event type
	former     map[[2]string]*program         // by category and the names that event types had
	count      int                            // of programs
	fold       *goFold                        // in place of operators
	outline    outline
	hash       string
}

// Field is one field of a row.
type Field struct {
	Name string
	// Kind is Bool, Long, Double, String, Enum, UUID, Bytes, Decimal, Timestamp,
	// Date, TimeOfDay or JSON: all shapes but ShapeValue are JSON.
	Kind  avro.Kind
	Scale int // of a Decimal
	Shape Shape
	// Items is the kind of what a list or set holds, if that is a scalar.
	Items avro.Kind
	// Fields are those of an object or of each child.
	Fields []Field
	// Key says that the value is (a part of) the row's key.
	Key bool
	// MaxText is the longest text that the field may hold, in bytes, as it is
	// indexed; 0 for any.
	MaxText int

	column int
}

// Shape is what a field holds.
type Shape uint8

// Shapes.
const (
	ShapeValue    Shape = iota // a scalar
	ShapeList                  // an array of an event, as it is
	ShapeDocument              // a record, map or union of an event, as it is
	ShapeObject                // fields inside
	ShapeSet                   // distinct values, sorted
	ShapeMap                   // values by name
	ShapeChildren              // objects by their key, sorted
)

func (s Shape) String() string {
	return [...]string{"value", "list", "document", "object", "set", "map", "children"}[s]
}

// Index is a declared index.
type Index struct {
	Fields []string
	Unique bool
	// Contains says that the index is one of members: over one list, set, map or
	// document, for "contains", and not over values in their order.
	Contains bool
}

// valueType is the type of a column.
type valueType struct {
	kind  avro.Kind
	scale int
	shape Shape
	// items is the kind of a list's or set's items and of a map's values.
	items avro.Kind
	// counted says that a set shows how many items it has, and not which.
	counted  bool
	children *childPlan
}

func (t valueType) String() string {
	switch t.shape {
	case ShapeValue:
		return t.kind.String()
	case ShapeList, ShapeSet, ShapeMap:
		if t.items != avro.Null {
			return t.shape.String() + " of " + t.items.String()
		}
	}
	return t.shape.String()
}

// column is a place of a row's values. Fields inside fields have columns too.
type column struct {
	name    string   // the path, with dots
	path    []string // names from the row on
	typ     valueType
	initial cell
	merge   mergeKind
	maxText int
	how     []string // what feeds it, in words, by event type
}

// childPlan is what is made of children: rows inside a row, of one stream.
type childPlan struct {
	fields  []Field
	columns []column
	layout  *layout
	key     int // column
}

// mergeKind says how two partial values of a column of a shared row become one.
type mergeKind uint8

const (
	mergeNone  mergeKind = iota
	mergeSum             // added
	mergeMin             // the lesser, nulls apart
	mergeMax             // the greater, nulls apart
	mergeLast            // that of the greatest stamp
	mergeFirst           // that of the least stamp
	mergeItems           // item by item, that of the greatest stamp
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
	typ     *avro.EventType // whose newest version events are read as
	paths   [][]string      // fields that are decoded
	derived []derived       // values made of others
	exprs   []*expression
	keys    []keySource
	ops     []op
	removes []int // conditions, none for always
	// texts are ops into indexed columns, whose text is bounded.
	texts []int
	// sums are ops on columns that sums of rows of one stream are in, in order: those
	// may leave their type, which is found out before any is applied.
	sums []int
	// grows are ops that put items.
	grows []int
	// needsKey says that an expression looks at the row's key.
	needsKey bool
	// always says that the event concerns its rows whatever its conditions say.
	always bool
	index  int // among the plan's programs
}

// keySource is one way to a key: parts of it, or the items of a list.
type keySource struct {
	parts []source
	each  bool
}

// derived is a value with transforms applied.
type derived struct {
	from       source
	transforms []string
}

// source is where a value comes from.
type source struct {
	kind  sourceKind
	index int  // of the decoded or derived values, or of the expressions
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
	fromDerived
	fromExpression
)

// none stands for no condition.
const none = -1

type op struct {
	column int
	typ    valueType // of the column
	kind   opKind
	source source
	when   int    // the expression that must be true, or none
	key    source // of a map's entry, or of a child
	child  []op   // on the child
	drop   bool   // the child is removed
}

type opKind uint8

const (
	opAssign opKind = iota
	opFirst
	opAdd
	opSubtract
	opMin
	opMax
	opInclude
	opExclude
	opPut
	opDelete
	opEmpty
	opChild
)

// compareNames compares names as jsonb sorts them.
func compareNames(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), bytes.Compare([]byte(a), []byte(b)))
}
