package projection

import (
	"math/big"
	"slices"
	"sort"
	"strings"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
)

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// scope is what fields are collected into: the row, or its children.
type scope struct {
	columns *[]column
	// emit adds an operator for an event type.
	emit   func(*avro.EventType, op) error
	shared bool
	child  bool
	path   []string
}

func (s scope) below(name string) scope {
	s.path = append(slices.Clone(s.path), name)
	return s
}

func (c *compiler) collectFields() (err error) {
	s := scope{columns: &c.plan.columns, shared: c.plan.shared, emit: func(t *avro.EventType, o op) error {
		p := c.program(t)
		p.ops = append(p.ops, o)
		return nil
	}}
	c.plan.fields, err = c.fields(c.d.fields, s)
	return err
}

func (c *compiler) fields(defs []fieldDef, s scope) ([]Field, error) {
	var fields []Field
	for i := range defs {
		f, err := c.field(&defs[i], s)
		if err != nil {
			return nil, err
		}
		fields = append(fields, f)
	}
	return fields, nil
}

// newColumn adds a column for a field.
func newColumn(f *fieldDef, s scope) int {
	path := append(slices.Clone(s.path), f.name)
	*s.columns = append(*s.columns, column{name: strings.Join(path, "."), path: path})
	return len(*s.columns) - 1
}

func (c *compiler) field(f *fieldDef, s scope) (Field, error) {
	switch {
	case f.typ != nil:
		return Field{}, c.d.errorf(f.at, "the field %s has a type: that is for folds in Go, elsewhere it follows from what feeds the field", f.name)
	case f.fields != nil:
		inside, err := c.fields(f.fields, s.below(f.name))
		return Field{Name: f.name, Kind: avro.JSON, Shape: ShapeObject, Fields: inside}, err
	case f.children != nil:
		return c.children(f, s)
	case len(f.ops) == 0 && !f.key && !f.hasInitial:
		return Field{}, c.d.errorf(f.at, "the field %s has no operator: say what feeds it, as in {from: Event.field} or {count: Event}", f.name)
	case f.key && (s.child || len(s.path) > 0):
		return Field{}, c.d.errorf(f.at, "key is for fields of the row itself")
	case f.key && (len(f.ops) > 0 || f.hasInitial):
		return Field{}, c.d.errorf(f.at, "the field %s is (a part of) the key, so nothing else may feed it", f.name)
	}
	i := newColumn(f, s)
	field := Field{Name: f.name, Key: f.key, column: i}
	if f.key {
		return field, nil // typed with the key
	}
	t, err := c.valueField(f, s, i)
	field.Kind, field.Scale, field.Shape, field.Items = t.kind, t.scale, t.shape, t.items
	if t.counted {
		field.Shape, field.Items = ShapeValue, avro.Null
	}
	return field, err
}

// use is one operator on one event type.
type use struct {
	def     opDef
	event   *avro.EventType
	operand operand
	key     operand // of put and delete
}

// typer finds the one type of a field.
type typer struct {
	typ   valueType
	known bool
}

func (t *typer) take(typ valueType) bool {
	if !t.known {
		t.typ, t.known = typ, true
		return true
	}
	return t.typ == typ
}

func (c *compiler) valueField(f *fieldDef, s scope, i int) (valueType, error) {
	uses, t, err := c.uses(f)
	if err != nil {
		return t.typ, err
	}
	if t.typ.counted && s.child {
		return t.typ, c.d.errorf(f.at, "children have no distinct counts: what was counted would have no place")
	}
	literals := []*literal{f.initial}
	for _, o := range f.ops {
		literals = append(literals, o.literal)
	}
	for _, l := range literals { // a field of constants only has the type of the first
		if !t.known && l != nil && l.value != nil {
			t.take(valueType{kind: literalKind(l.value)})
		}
	}
	if !t.known {
		return t.typ, c.d.errorf(f.at, "the type of %s cannot be told: only null is ever assigned", f.name)
	}
	if t.typ.shape == ShapeMap && t.typ.items == avro.Null {
		return t.typ, c.d.errorf(f.at, "nothing is ever put into %s", f.name)
	}
	col := &(*s.columns)[i]
	col.typ = t.typ
	if err := c.initial(f, t.typ, col); err != nil {
		return t.typ, err
	}
	for _, u := range uses {
		o, words, err := c.op(f, u, t.typ, i)
		if err != nil {
			return t.typ, err
		}
		if err := c.merge(f, u.def, o.kind, s, col); err != nil {
			return t.typ, err
		}
		col.how = append(col.how, origin(u.event)+": "+words)
		if err := s.emit(u.event, o); err != nil {
			return t.typ, err
		}
	}
	slices.SortStableFunc(col.how, func(a, b string) int {
		a, _, _ = strings.Cut(a, ":")
		b, _, _ = strings.Cut(b, ":")
		return strings.Compare(a, b)
	})
	return t.typ, nil
}

// uses resolves the operators of a field in the event types that they name, and
// finds the type that they agree on.
func (c *compiler) uses(f *fieldDef) (uses []use, t typer, err error) {
	for _, o := range f.ops {
		types, err := c.eventTypes(o.ref)
		if err != nil {
			return nil, t, err
		}
		if o.ref.event == "*" && len(o.ref.path) > 0 && !strings.HasPrefix(o.ref.path[0], "$") {
			if types = having(types, o.ref.path); len(types) == 0 {
				return nil, t, c.d.errorf(o.ref.at, "no event has a field %s", strings.Join(o.ref.path, "."))
			}
		}
		for _, et := range types {
			u, err := c.use(f, o, et)
			if err != nil {
				return nil, t, err
			}
			typ, err := c.resultType(f, u)
			if err != nil {
				return nil, t, err
			}
			if err := c.agree(f, u, typ, &t); err != nil {
				return nil, t, err
			}
			uses = append(uses, u)
		}
	}
	return uses, t, nil
}

// having returns the types that have a field.
func having(types []*avro.EventType, path []string) (list []*avro.EventType) {
	for _, t := range types {
		if _, err := t.Newest().TypeOf(path...); err == nil {
			list = append(list, t)
		}
	}
	return list
}

func (c *compiler) use(f *fieldDef, o opDef, et *avro.EventType) (u use, err error) {
	u = use{def: o, event: et}
	c.program(et)
	switch o.name {
	case "set":
		u.operand.when = none
		return u, nil
	case "clear", "count", "increment", "decrement":
		if len(o.ref.path) > 0 || o.ref.value != nil || o.ref.transforms != nil {
			return u, c.d.errorf(o.ref.at, "%s takes no value of an event: want the name of one, not %s", o.name, o.ref)
		}
		u.operand, err = c.operand(et, o.ref, nil)
		return u, err
	case "put", "delete":
		return c.useOfMap(f, u)
	}
	u.operand, err = c.operand(et, o.ref, []string{f.name})
	return u, err
}

// useOfMap resolves put, which has a key and a value, and delete, which has a key.
func (c *compiler) useOfMap(f *fieldDef, u use) (_ use, err error) {
	r := u.def.ref
	value := r
	if u.def.name == "delete" && r.key == nil {
		value.key = nil
		u.key, err = c.operand(u.event, value, []string{f.name})
		u.operand.when = u.key.when
		return u, err
	}
	if r.key == nil {
		return u, c.d.errorf(r.at, "put needs a key: {event: %s, key: field, value: field}", r.event)
	}
	if u.def.name == "delete" && (r.value != nil || len(r.path) > 0) {
		return u, c.d.errorf(r.at, "delete has a key and no value")
	}
	if u.operand, err = c.operand(u.event, value, nil); err != nil {
		return u, err
	}
	if u.def.name == "put" && u.operand.words == "" || u.def.name == "put" && r.value == nil && len(r.path) == 0 {
		return u, c.d.errorf(r.at, "put needs a value: {event: %s, key: field, value: field}", r.event)
	}
	u.key.source, u.key.typ, u.key.words, err = c.anyValue(u.event, r.key, u.operand.when)
	return u, err
}

// resultType is the type that an operator gives its field; the zero value for one
// that takes any.
func (c *compiler) resultType(f *fieldDef, u use) (valueType, error) {
	r, typ := u.def.ref, u.operand.typ
	switch u.def.name {
	case "set", "clear":
		return valueType{}, nil
	case "count", "increment", "decrement":
		return valueType{kind: avro.Long}, nil
	case "add", "subtract":
		if typ.kind != avro.Long && typ.kind != avro.Double && typ.kind != avro.Decimal {
			return typ, c.d.errorf(r.at, "%s needs a number, %s is of the type %s", u.def.name, r, typ)
		}
	case "min", "max":
		if typ.kind == avro.JSON || typ.kind == avro.Bool || typ.kind == avro.Bytes {
			return typ, c.d.errorf(r.at, "%s cannot compare values of the type %s", u.def.name, typ)
		}
	case "distinct", "include", "exclude":
		items := valueType{kind: typ.kind, scale: typ.scale}
		if typ.shape == ShapeList {
			items.kind = typ.items
		}
		if !countable(items.kind) {
			return typ, c.d.errorf(r.at, "%s needs texts, whole numbers, decimals or times, or a list of them: %s is of the type %s", u.def.name, r, typ)
		}
		if u.def.name == "distinct" {
			return valueType{kind: avro.Long, shape: ShapeSet, items: items.kind, scale: items.scale, counted: true}, nil
		}
		return valueType{kind: avro.JSON, shape: ShapeSet, items: items.kind, scale: items.scale}, nil
	case "put", "delete":
		key := u.key.typ
		if key.shape == ShapeList && u.def.name == "delete" {
			key = valueType{kind: key.items}
		}
		if !countable(key.kind) {
			return typ, c.d.errorf(r.at, "the key of a map's entry is a text, a whole number, a decimal or a time, not of the type %s", u.key.typ)
		}
		if u.def.name == "delete" {
			return valueType{kind: avro.JSON, shape: ShapeMap}, nil
		}
		return valueType{kind: avro.JSON, shape: ShapeMap, items: typ.kind, scale: typ.scale}, nil
	}
	return typ, nil
}

// countable tells whether values of a kind can be the items of a set.
func countable(kind avro.Kind) bool {
	switch kind {
	case avro.String, avro.Enum, avro.UUID, avro.Long, avro.Decimal, avro.Timestamp, avro.Date, avro.TimeOfDay:
		return true
	}
	return false
}

// agree takes a type into account that an operator gives its field.
func (c *compiler) agree(f *fieldDef, u use, typ valueType, t *typer) error {
	switch {
	case u.def.name == "set" || u.def.name == "clear":
		return nil
	case typ.shape == ShapeMap && t.known && t.typ.shape == ShapeMap && (typ.items == avro.Null || t.typ.items == avro.Null):
		if t.typ.items == avro.Null {
			t.typ = typ
		}
		return nil
	case t.take(typ):
		return nil
	}
	what := u.def.ref.String()
	if typ.kind != u.operand.typ.kind || typ.shape != u.operand.typ.shape {
		what = u.def.name
	}
	return c.d.errorf(u.def.ref.at, "%s is of the type %s, and the field %s is %s by what stands before", what, typ, f.name, t.typ)
}

var opKinds = map[string]opKind{"from": opAssign, "last": opAssign, "set": opAssign, "first": opFirst, "add": opAdd, "subtract": opSubtract, "count": opAdd, "increment": opAdd,
	"decrement": opSubtract, "min": opMin, "max": opMax, "distinct": opInclude, "include": opInclude, "exclude": opExclude, "put": opPut, "delete": opDelete}

// op makes an operator of a use, and says in words what it does.
func (c *compiler) op(f *fieldDef, u use, typ valueType, column int) (op, string, error) {
	o := op{column: column, typ: typ, kind: opKinds[u.def.name], source: u.operand.source, when: u.operand.when, key: u.key.source}
	words := strings.TrimSpace(opNames[o.kind] + " " + u.operand.words)
	switch u.def.name {
	case "set":
		v, err := c.constant(f, u.def.literal, typ)
		if err != nil {
			return o, "", err
		}
		o.source = source{kind: fromConstant, value: v}
		words = "set to " + string(v.append(nil, typ))
	case "clear":
		o.kind, o.source = opAssign, source{kind: fromConstant}
		if typ.shape >= ShapeSet {
			o.kind = opEmpty
		}
		words = strings.TrimSpace("clear " + u.operand.words)
	case "count", "increment", "decrement":
		o.source = source{kind: fromConstant, value: cell{set: true, i: 1}}
		words = strings.TrimSpace(opNames[o.kind] + " 1 " + u.operand.words)
	case "put", "delete":
		words = strings.TrimSpace(opNames[o.kind] + " " + u.key.words + ": " + u.operand.words)
	}
	return o, words, nil
}

// opNames name what operators do; those that do the same have one name.
var opNames = [...]string{opAssign: "from", opFirst: "first", opAdd: "add", opSubtract: "subtract", opMin: "min", opMax: "max", opInclude: "include", opExclude: "exclude",
	opPut: "put", opDelete: "delete", opEmpty: "clear", opChild: "children"}

// initial finds the value of a new row.
func (c *compiler) initial(f *fieldDef, typ valueType, col *column) (err error) {
	if f.hasInitial {
		if typ.shape >= ShapeSet {
			return c.d.errorf(f.initial.at, "a %s begins empty: initial is not for it", typ.shape)
		}
		col.initial, err = c.constant(f, f.initial, typ)
		return err
	}
	for _, o := range f.ops {
		if k := opKinds[o.name]; k == opAdd || k == opSubtract {
			col.initial = cell{set: true}
		}
	}
	return nil
}

// merge settles how parts of a shared row's column become one, and refuses what
// would depend on the order of partitions.
func (c *compiler) merge(f *fieldDef, o opDef, kind opKind, s scope, col *column) error {
	if !s.shared {
		return nil
	}
	m := map[opKind]mergeKind{opAssign: mergeLast, opFirst: mergeFirst, opAdd: mergeSum, opSubtract: mergeSum, opMin: mergeMin, opMax: mergeMax,
		opInclude: mergeItems, opExclude: mergeItems, opPut: mergeItems, opDelete: mergeItems}[kind]
	switch {
	case m == mergeNone || col.merge != mergeNone && col.merge != m:
		return c.d.errorf(o.ref.at, "%s cannot be combined with what stands before: rows of this projection are fed by several streams, whose events have no order", o.name)
	case m == mergeSum && col.typ.kind == avro.Double:
		return c.d.errorf(f.at, "floating-point numbers cannot be added up over several streams: the sum would depend on their order; use a decimal")
	case f.hasInitial && m != mergeLast:
		return c.d.errorf(f.at, "initial is not possible here: rows of this projection are fed by several streams, and each would bring it along")
	}
	col.merge = m
	return nil
}

func whenText(r ref) string {
	if r.when == nil {
		return ""
	}
	return "when " + r.when.text
}

func literalKind(v any) avro.Kind {
	switch v.(type) {
	case bool:
		return avro.Bool
	case int64:
		return avro.Long
	case float64:
		return avro.Double
	default:
		return avro.String
	}
}

// constant converts a literal to the field's type.
func (c *compiler) constant(f *fieldDef, l *literal, t valueType) (cell, error) {
	if l == nil || l.value == nil {
		return cell{}, nil
	}
	out := cell{set: true}
	ok := false
	switch v := l.value.(type) {
	case bool:
		if ok = t.kind == avro.Bool; v {
			out.i = 1
		}
	case int64:
		switch t.kind {
		case avro.Long:
			out.i, ok = v, true
		case avro.Double:
			out.setFloat(float64(v))
			ok = true
		case avro.Decimal:
			out.big = new(big.Int).Mul(big.NewInt(v), new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(t.scale)), nil))
			out.settle()
			ok = true
		}
	case float64:
		ok = t.kind == avro.Double
		out.setFloat(positiveZero(v))
	case string:
		out.b = []byte(v)
		switch t.kind {
		case avro.String:
			ok = true
		case avro.Enum, avro.UUID, avro.Decimal, avro.Date, avro.TimeOfDay, avro.Timestamp:
			ok = c.textConstant(f, &out, t)
		}
	}
	if !ok || t.shape != ShapeValue {
		return cell{}, c.d.errorf(l.at, "the constant is no value of the type %s, which the field %s has", t, f.name)
	}
	return out, nil
}

// textConstant reads a constant that is written as text in rows too.
func (c *compiler) textConstant(f *fieldDef, out *cell, t valueType) bool {
	text := string(out.b)
	switch t.kind {
	case avro.Enum:
		return slices.ContainsFunc(c.types, func(et *avro.EventType) bool { return hasSymbol(et.Newest().Fields(), text) })
	case avro.UUID:
		_, err := event.ParseID(text)
		return err == nil
	case avro.Decimal:
		whole, fraction, _ := strings.Cut(text, ".")
		if len(fraction) != t.scale || whole == "" {
			return false
		}
	}
	if out.parseText(t) != nil {
		return false
	}
	return string(out.append(nil, t)) == `"`+text+`"`
}

func hasSymbol(fields []avro.Field, symbol string) bool {
	for _, f := range fields {
		if slices.Contains(f.Type.Symbols, symbol) || hasSymbol(f.Type.Fields, symbol) {
			return true
		}
	}
	return false
}
