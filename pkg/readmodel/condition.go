package readmodel

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/projection"
)

// Condition selects rows. It is made by the functions below and by the parsers of
// requests, and is judged when it meets the plan of a version: fields that the
// plan does not have and values that do not fit a field's type are a
// [*QueryError]. Comparisons follow SQL: with null they are neither true nor
// false. The zero value selects every row. A condition never changes.
type Condition struct {
	op     operator
	field  string
	path   []string // into a nested field
	values []string
	parts  []Condition
}

type operator uint8

const (
	opAll operator = iota // the zero value
	opAnd
	opOr
	opNot
	opEq
	opNeq
	opGt
	opGte
	opLt
	opLte
	opLike
	opILike
	opIn
	opIs
	opContains
)

var operators = map[string]operator{"eq": opEq, "neq": opNeq, "gt": opGt, "gte": opGte, "lt": opLt, "lte": opLte,
	"like": opLike, "ilike": opILike, "in": opIn, "is": opIs, "cs": opContains}

var comparisons = map[operator]string{opEq: "=", opNeq: "<>", opGt: ">", opGte: ">=", opLt: "<", opLte: "<="}

// Where compares a field by one of the operators eq, neq, gt, gte, lt, lte, like,
// ilike, in, is and cs. The field "key" is the row's key. A nested value is named
// field->member, for any depth. Values are written as in the row's JSON, texts
// without quotes; like takes * and % for any text, is takes null, true and false,
// and cs (contains) asks whether a list holds all the values.
func Where(field, op string, values ...string) (Condition, error) {
	o, ok := operators[op]
	if !ok {
		return Condition{}, badQuery(field, "unknown operator %.40q", op)
	}
	if o != opIn && o != opContains && len(values) != 1 {
		return Condition{}, badQuery(field, "%s takes one value", op)
	}
	if len(values) > MaxValues {
		return Condition{}, badQuery(field, "%s takes at most %d values", op, MaxValues)
	}
	name, path := splitPath(field)
	return Condition{op: o, field: name, path: path, values: values}, nil
}

// splitPath takes a->b->>c apart.
func splitPath(field string) (name string, path []string) {
	if !strings.Contains(field, "->") {
		return field, nil
	}
	parts := strings.Split(strings.ReplaceAll(field, "->>", "->"), "->")
	return parts[0], parts[1:]
}

// And selects the rows that all conditions select; all rows without conditions.
func And(conditions ...Condition) Condition {
	if len(conditions) == 1 {
		return conditions[0]
	}
	if len(conditions) == 0 {
		return Condition{}
	}
	return Condition{op: opAnd, parts: conditions}
}

// Or selects the rows that any of the conditions selects; none without conditions.
func Or(conditions ...Condition) Condition {
	if len(conditions) == 1 {
		return conditions[0]
	}
	return Condition{op: opOr, parts: conditions}
}

// Not selects the rows for which the condition is false, not those for which it
// is neither.
func Not(condition Condition) Condition {
	return Condition{op: opNot, parts: []Condition{condition}}
}

// Limits of a query.
const (
	MaxValues     = 1000 // of an in
	MaxDepth      = 8    // of and, or and not
	MaxConditions = 100
	MaxOrder      = 6
	MaxLimit      = 1000
)

// QueryError says what is wrong with a query.
type QueryError struct {
	// Parameter is what is wrong: the name of a field, or order, select, cursor...
	Parameter string
	Reason    string
	// Index are the fields of an index that would serve the query, when it was
	// refused for want of one.
	Index []string
}

func (e *QueryError) Error() string { return e.Parameter + ": " + e.Reason }

func badQuery(parameter, format string, args ...any) error {
	return &QueryError{Parameter: parameter, Reason: fmt.Sprintf(format, args...)}
}

// String returns the normal form, which tells conditions apart.
func (c Condition) String() string { return string(c.append(nil)) }

func (c Condition) append(b []byte) []byte {
	b = strconv.AppendInt(b, int64(c.op), 10)
	b = strconv.AppendQuote(b, c.field)
	for _, p := range c.path {
		b = strconv.AppendQuote(append(b, '>'), p)
	}
	for _, v := range c.values {
		b = strconv.AppendQuote(append(b, '='), v)
	}
	b = append(b, '(')
	for _, p := range c.parts {
		b = append(p.append(b), ',')
	}
	return append(b, ')')
}

// column is a field as it is compared.
type column struct {
	name   string
	kind   avro.Kind
	scale  int
	nested bool
}

func findColumn(plan *projection.Plan, name string, nested bool) (column, error) {
	if name == "key" && !nested {
		return column{name: name, kind: avro.String}, nil
	}
	i := slices.IndexFunc(plan.Fields(), func(f projection.Field) bool { return f.Name == name })
	if i < 0 {
		return column{}, badQuery(name, "the read model %s has no field %.100q", plan.Name(), name)
	}
	f := plan.Fields()[i]
	if nested {
		if f.Kind != avro.JSON {
			return column{}, badQuery(name, "the field %s holds no nested values", name)
		}
		return column{name: name, kind: avro.String, nested: true}, nil
	}
	return column{name: name, kind: f.Kind, scale: f.Scale}, nil
}

// expression is the SQL of the column's value: that of [Expression], so that
// declared indexes serve it.
func (c column) expression() string {
	if c.name == "key" {
		return "key"
	}
	return Expression(projection.Field{Name: c.name, Kind: c.kind, Scale: c.scale})
}

// cast turns a bound text into what the expression is compared with.
func (c column) cast(parameter string) string {
	switch c.kind {
	case avro.Long, avro.Double, avro.Decimal:
		return parameter + "::text::numeric"
	case avro.Bool:
		return parameter + "::text::boolean"
	case avro.Timestamp:
		return "refold.time(" + parameter + "::text)"
	default:
		return parameter + "::text"
	}
}

// castList is cast for a bound list of texts.
func (c column) castList(parameter string) string {
	switch c.kind {
	case avro.Long, avro.Double, avro.Decimal:
		return parameter + "::text[]::numeric[]"
	case avro.Bool:
		return parameter + "::text[]::boolean[]"
	case avro.Timestamp:
		return parameter + "::text[]::timestamptz[]" // the values end in Z, so no setting matters
	default:
		return parameter + "::text[]"
	}
}

// statement collects the values that are bound to a statement.
type statement struct {
	plan       *projection.Plan
	args       []any
	conditions int
	negations  int // around the condition that is being compiled
}

func (s *statement) bind(value any) string {
	s.args = append(s.args, value)
	return "$" + strconv.Itoa(len(s.args))
}

// sql compiles a condition: names come from the plan, values are bound.
func (s *statement) sql(c Condition, depth int) (string, error) {
	if s.conditions++; s.conditions > MaxConditions {
		return "", badQuery("filter", "a query has at most %d conditions", MaxConditions)
	}
	if depth > MaxDepth {
		return "", badQuery("filter", "conditions are nested at most %d deep", MaxDepth)
	}
	switch c.op {
	case opAll:
		return "true", nil
	case opAnd, opOr, opNot:
		return s.logic(c, depth)
	}
	col, err := findColumn(s.plan, c.field, len(c.path) > 0)
	if err != nil {
		return "", err
	}
	values, err := col.normalize(c)
	if err != nil {
		return "", err
	}
	x := col.expression()
	if col.nested {
		x = `(data #>> ` + s.bind(append([]string{c.field}, c.path...)) + `::text[]) collate "C"`
	}
	switch c.op {
	case opIn:
		return "(" + x + " = any(" + col.castList(s.bind(values)) + "))", nil
	case opIs:
		return "(" + x + " is " + values[0] + ")", nil // one of three words, see normalize
	case opLike:
		return "(" + x + " like " + s.bind(values[0]) + "::text)", nil
	case opILike:
		return "(" + x + " ilike " + s.bind(values[0]) + "::text)", nil
	case opContains:
		list, err := json.Marshal(values)
		if err != nil {
			return "", err
		}
		holds := "data->'" + col.name + "' @> " + s.bind(string(list)) + "::text::jsonb"
		if s.negations > 0 { // a null in JSON holds nothing, and is to be neither true nor false
			holds += " or data->>'" + col.name + "' is null and null"
		}
		return "(" + holds + ")", nil
	default:
		return "(" + x + " " + comparisons[c.op] + " " + col.cast(s.bind(values[0])) + ")", nil
	}
}

func (s *statement) logic(c Condition, depth int) (string, error) {
	var parts []string
	if c.op == opNot {
		s.negations++
		defer func() { s.negations-- }()
	}
	for _, p := range c.parts {
		sql, err := s.sql(p, depth+1)
		if err != nil {
			return "", err
		}
		parts = append(parts, sql)
	}
	switch {
	case c.op == opNot:
		return "(not " + parts[0] + ")", nil
	case len(parts) == 0:
		return "false", nil // an or of nothing; an and of nothing is opAll
	case c.op == opAnd:
		return "(" + strings.Join(parts, " and ") + ")", nil
	default:
		return "(" + strings.Join(parts, " or ") + ")", nil
	}
}
