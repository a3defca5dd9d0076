package projection

import (
	"math/big"
	"slices"
	"sort"
	"strings"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
)

// Compile types a definition against the contracts. The error is a
// [*SourceError] at the first mistake.
func Compile(d *Definition, contracts *avro.Contracts) (*Plan, error) {
	c := compiler{d: d, contracts: contracts, plan: &Plan{name: d.Name, source: d.Source, categories: slices.Sorted(slices.Values(d.Categories)),
		programs: make(map[string]map[string]*program), former: make(map[[2]string]*program)}}
	for _, step := range []func() error{c.categories, c.keyShape, c.collectFields, c.collectRemove, c.keys, c.collectIndexes, c.checkShared} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	c.plan.describe()
	return c.plan, nil
}

type compiler struct {
	d         *Definition
	contracts *avro.Contracts
	plan      *Plan
	types     []*avro.EventType
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func (c *compiler) categories() error {
	for _, name := range c.plan.categories {
		contract, ok := c.contracts.Category(name)
		if !ok {
			var known []string
			for _, k := range c.contracts.Categories() {
				known = append(known, k.Name)
			}
			return c.d.errorf(c.d.at, "there is no category %s%s", name, suggest(name, known))
		}
		c.types = append(c.types, contract.Types...)
		c.plan.programs[name] = make(map[string]*program)
	}
	return nil
}

func (c *compiler) keyShape() error {
	k := c.d.key
	c.plan.key = keyPlan{kind: k.kind, bucket: k.bucket, by: k.by, value: k.value}
	for _, p := range k.parts {
		if p.event == "" {
			c.plan.key.parts = append(c.plan.key.parts, p.path[len(p.path)-1])
		}
	}
	c.plan.shared = k.kind != keyStream || len(c.plan.categories) > 1
	return nil
}

// eventTypes returns the types that a reference names.
func (c *compiler) eventTypes(r ref) ([]*avro.EventType, error) {
	if r.event == "*" {
		return c.types, nil
	}
	var found []*avro.EventType
	var known []string
	for _, t := range c.types {
		known = append(known, t.Name)
		if t.Name == r.event || t.Category+"/"+t.Name == r.event || slices.Contains(t.Former, strings.TrimPrefix(r.event, t.Category+"/")) {
			found = append(found, t)
		}
	}
	switch len(found) {
	case 0:
		return nil, c.d.errorf(r.at, "there is no event %s in %s%s", r.event, strings.Join(c.plan.categories, ", "), suggest(r.event, known))
	case 1:
		return found, nil
	default:
		return nil, c.d.errorf(r.at, "several categories have an event %s: write %s/%s", r.event, found[0].Category, r.event)
	}
}

func (c *compiler) program(t *avro.EventType) *program {
	p := c.plan.programs[t.Category][t.Name]
	if p == nil {
		p = &program{typ: t}
		c.plan.programs[t.Category][t.Name] = p
		for _, name := range t.Former {
			c.plan.former[[2]string{t.Category, name}] = p
		}
	}
	return p
}

var specials = map[string]struct {
	kind sourceKind
	typ  avro.Kind
}{"$time": {fromTime, avro.Timestamp}, "$recorded": {fromRecorded, avro.Timestamp}, "$id": {fromID, avro.UUID}, "$type": {fromType, avro.String},
	"$stream": {fromStream, avro.String}, "$version": {fromVersion, avro.Long}, "$actor": {fromActor, avro.String}}

// value resolves what a reference takes from an event type.
func (c *compiler) value(t *avro.EventType, path []string, at place) (source, avro.Type, error) {
	if strings.HasPrefix(path[0], "$") {
		s, ok := specials[path[0]]
		if !ok || len(path) > 1 {
			return source{}, avro.Type{}, c.d.errorf(at, "%s is nothing of an event%s", strings.Join(path, "."), suggest(path[0], sortedNames(specials)))
		}
		return source{kind: s.kind}, avro.Type{Kind: s.typ, Nullable: s.kind == fromActor}, nil
	}
	now, typ, err := t.Newest().Find(path...)
	if err != nil {
		var known []string
		for _, f := range t.Newest().Fields() {
			known = append(known, f.Name)
		}
		return source{}, avro.Type{}, c.d.errorf(at, "the event %s has no field %s%s", t.Name, strings.Join(path, "."), suggest(path[0], known))
	}
	p := c.program(t)
	i := slices.IndexFunc(p.paths, func(have []string) bool { return slices.Equal(have, now) })
	if i < 0 {
		i = len(p.paths)
		p.paths = append(p.paths, now)
	}
	return source{kind: fromField, index: i}, typ, nil
}

// rowType is the type that values of an event's type have in a row.
func rowType(t avro.Type) (avro.Kind, int) {
	switch t.Kind {
	case avro.Int:
		return avro.Long, 0
	case avro.Float:
		return avro.Double, 0
	case avro.Record, avro.Array, avro.Map, avro.JSON:
		return avro.JSON, 0
	case avro.Decimal:
		return avro.Decimal, t.Scale
	default:
		return t.Kind, 0
	}
}

func (c *compiler) collectFields() error {
	for i := range c.d.fields {
		f := &c.d.fields[i]
		c.plan.fields = append(c.plan.fields, Field{Name: f.name, Key: f.key})
		if err := c.collectField(i, f); err != nil {
			return err
		}
	}
	return nil
}

// typer finds the one type of a field.
type typer struct {
	kind  avro.Kind
	scale int
	known bool
}

func (t *typer) take(kind avro.Kind, scale int) bool {
	if !t.known {
		t.kind, t.scale, t.known = kind, scale, true
		return true
	}
	return t.kind == kind && t.scale == scale
}

func (c *compiler) collectField(i int, f *fieldDef) error {
	if len(f.ops) == 0 && !f.key && !f.hasInitial {
		return c.d.errorf(f.at, "the field %s has no operator", f.name)
	}
	if f.key {
		if len(f.ops) > 0 || f.hasInitial {
			return c.d.errorf(f.at, "the field %s is (a part of) the key, so nothing else may feed it", f.name)
		}
		return nil // typed with the key
	}
	var t typer
	numeric := false
	for _, o := range f.ops {
		types, err := c.eventTypes(o.ref)
		if err != nil {
			return err
		}
		for _, et := range types {
			if err := c.collectOp(i, f, o, et, &t); err != nil {
				return err
			}
		}
		numeric = numeric || slices.Contains([]string{"count", "increment", "decrement", "add", "subtract"}, o.name)
	}
	field := &c.plan.fields[i]
	if err := c.constants(i, f, &t); err != nil {
		return err
	}
	if !t.known {
		return c.d.errorf(f.at, "the type of %s cannot be told: only null is ever assigned", f.name)
	}
	field.Kind, field.Scale = t.kind, t.scale
	if numeric && !f.hasInitial {
		field.initial = zeroOf(t.kind)
	}
	return nil
}

func zeroOf(kind avro.Kind) cell {
	c := cell{set: true}
	if kind == avro.Decimal {
		c.big = new(big.Int)
	}
	return c
}

func (c *compiler) collectOp(i int, f *fieldDef, o opDef, et *avro.EventType, t *typer) error {
	p := c.program(et)
	path := o.ref.path
	switch o.name {
	case "set", "clear":
		p.ops = append(p.ops, op{field: i, kind: opAssign, source: source{kind: fromConstant}}) // filled in by constants
		return nil
	case "count", "increment", "decrement":
		if len(path) > 0 {
			return c.d.errorf(o.ref.at, "%s counts events: want the name of one, not %s", o.name, o.ref)
		}
		kind := opAdd
		if o.name == "decrement" {
			kind = opSubtract
		}
		if !t.take(avro.Long, 0) {
			return c.d.errorf(o.ref.at, "%s makes whole numbers, and the field %s is of the type %s", o.name, f.name, t.kind)
		}
		p.ops = append(p.ops, op{field: i, kind: kind, source: source{kind: fromConstant, value: cell{set: true, i: 1}}})
		return nil
	}
	if len(path) == 0 {
		path = []string{f.name}
	}
	s, typ, err := c.value(et, path, o.ref.at)
	if err != nil {
		return err
	}
	kind, scale := rowType(typ)
	if !t.take(kind, scale) {
		return c.d.errorf(o.ref.at, "%s is of the type %s, and the field %s is %s by what stands before", o.ref, kind, f.name, t.kind)
	}
	ops := map[string]opKind{"from": opAssign, "last": opAssign, "first": opFirst, "add": opAdd, "subtract": opSubtract, "min": opMin, "max": opMax}
	switch o.name {
	case "add", "subtract":
		if kind != avro.Long && kind != avro.Double && kind != avro.Decimal {
			return c.d.errorf(o.ref.at, "%s needs a number, %s is of the type %s", o.name, o.ref, kind)
		}
	case "min", "max":
		if kind == avro.JSON || kind == avro.Bool || kind == avro.Bytes {
			return c.d.errorf(o.ref.at, "%s cannot compare values of the type %s", o.name, kind)
		}
	}
	p.ops = append(p.ops, op{field: i, kind: ops[o.name], source: s})
	return nil
}

// constants types set, clear and initial, and fills them into the programs.
func (c *compiler) constants(i int, f *fieldDef, t *typer) error {
	literals := []*literal{f.initial}
	for _, o := range f.ops {
		literals = append(literals, o.literal)
	}
	for _, l := range literals { // a field of constants only has the type of the first
		if !t.known && l != nil && l.value != nil {
			t.take(literalKind(l.value), 0)
		}
	}
	if f.hasInitial {
		v, err := c.constant(f, f.initial, t)
		if err != nil {
			return err
		}
		c.plan.fields[i].initial = v
	}
	for _, o := range f.ops {
		if o.name != "set" && o.name != "clear" {
			continue
		}
		v := cell{}
		if o.name == "set" {
			var err error
			if v, err = c.constant(f, o.literal, t); err != nil {
				return err
			}
		}
		types, err := c.eventTypes(o.ref)
		if err != nil {
			return err
		}
		for _, et := range types {
			p := c.program(et)
			for j := range p.ops {
				if p.ops[j].field == i && p.ops[j].kind == opAssign && p.ops[j].source.kind == fromConstant {
					p.ops[j].source.value = v
				}
			}
		}
	}
	return nil
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
func (c *compiler) constant(f *fieldDef, l *literal, t *typer) (cell, error) {
	if l == nil || l.value == nil {
		return cell{}, nil
	}
	bad := func() (cell, error) {
		return cell{}, c.d.errorf(l.at, "the constant is no value of the type %s, which the field %s has", t.kind, f.name)
	}
	switch v := l.value.(type) {
	case bool:
		if t.kind != avro.Bool {
			return bad()
		}
		out := cell{set: true}
		if v {
			out.i = 1
		}
		return out, nil
	case int64:
		switch t.kind {
		case avro.Long:
			return cell{set: true, i: v}, nil
		case avro.Double:
			return cell{set: true, f: float64(v)}, nil
		case avro.Decimal:
			return cell{set: true, big: new(big.Int).Mul(big.NewInt(v), new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(t.scale)), nil))}, nil
		}
		return bad()
	case float64:
		if t.kind != avro.Double {
			return bad()
		}
		return cell{set: true, f: v}, nil
	case string:
		switch t.kind {
		case avro.String, avro.Enum, avro.UUID:
			return cell{set: true, b: []byte(v)}, nil
		case avro.Timestamp:
			if us, err := event.ParseTime(v); err == nil {
				return cell{set: true, i: int64(us)}, nil
			}
		}
	}
	return bad()
}

func (c *compiler) collectRemove() error {
	for _, r := range c.d.remove {
		if len(r.path) > 0 {
			return c.d.errorf(r.at, "remove names events, not %s", r)
		}
		types, err := c.eventTypes(r)
		if err != nil {
			return err
		}
		if c.plan.shared {
			return c.d.errorf(r.at, "remove is not possible for rows that several streams feed: a removal and an addition from two partitions have no order")
		}
		for _, t := range types {
			c.program(t).remove = true
		}
	}
	return nil
}

// keys resolves the key in every event that the plan uses, and types the fields
// that show it.
func (c *compiler) keys() error {
	var t typer
	partTypes := make([]typer, len(c.plan.key.parts))
	for _, et := range c.types {
		p := c.plan.programs[et.Category][et.Name]
		if p == nil || c.d.key.kind != keyFields {
			continue
		}
		for i, part := range c.keyParts(et) {
			if part.path == nil {
				return c.d.errorf(c.d.key.at, "the key says nothing of the event %s, which the projection uses", et.Name)
			}
			s, typ, err := c.value(et, part.path, part.at)
			if err != nil {
				return err
			}
			kind, scale := rowType(typ)
			if kind == avro.JSON {
				return c.d.errorf(part.at, "a key cannot be made of %s, which is of the type %s", strings.Join(part.path, "."), typ.Kind)
			}
			into := &t
			if len(partTypes) > 0 {
				into = &partTypes[i]
			}
			if !into.take(kind, scale) {
				return c.d.errorf(part.at, "%s of %s is of the type %s, in another event of the type %s", strings.Join(part.path, "."), et.Name, kind, into.kind)
			}
			p.key = append(p.key, s)
		}
	}
	return c.keyFields(t, partTypes)
}

// keyParts returns the parts of the key in an event type.
func (c *compiler) keyParts(et *avro.EventType) []ref {
	if len(c.plan.key.parts) > 0 {
		return c.d.key.parts
	}
	for _, r := range c.d.key.parts {
		if r.event == et.Name || r.event == et.Category+"/"+et.Name {
			return []ref{{path: r.path, at: r.at}}
		}
	}
	return []ref{{}}
}

func (c *compiler) keyFields(t typer, parts []typer) error {
	for i := range c.plan.fields {
		f := &c.plan.fields[i]
		if !f.Key {
			continue
		}
		at := c.d.fields[i].at
		switch {
		case c.plan.key.kind != keyFields:
			f.Kind = avro.String
		case len(parts) == 0:
			f.Kind, f.Scale = t.kind, t.scale
		case len(parts) == 1:
			f.Kind, f.Scale = parts[0].kind, parts[0].scale
		default:
			j := slices.Index(c.plan.key.parts, f.Name)
			if j < 0 {
				return c.d.errorf(at, "the field %s shows a part of the key, whose parts are %s", f.Name, strings.Join(c.plan.key.parts, ", "))
			}
			f.Kind, f.Scale = parts[j].kind, parts[j].scale
		}
	}
	return nil
}

func (c *compiler) collectIndexes() error {
	for _, x := range c.d.indexes {
		for _, name := range x.fields {
			i := slices.IndexFunc(c.plan.fields, func(f Field) bool { return f.Name == name })
			if i < 0 {
				var known []string
				for _, f := range c.plan.fields {
					known = append(known, f.Name)
				}
				return c.d.errorf(x.at, "the index names the field %s, which does not exist%s", name, suggest(name, known))
			}
			if c.plan.fields[i].Kind == avro.JSON {
				return c.d.errorf(x.at, "the field %s holds nested values, which cannot be indexed", name)
			}
			c.plan.fields[i].indexed = true
		}
		c.plan.indexes = append(c.plan.indexes, Index{Fields: x.fields, Unique: x.unique})
	}
	return nil
}

// checkShared refuses what would depend on the order of partitions, and settles
// how partial values are merged.
func (c *compiler) checkShared() error {
	if !c.plan.shared {
		return nil
	}
	for i := range c.plan.fields {
		f, d := &c.plan.fields[i], &c.d.fields[i]
		for _, o := range d.ops {
			kind := map[string]mergeKind{"from": mergeLast, "last": mergeLast, "set": mergeLast, "clear": mergeLast, "first": mergeFirst, "min": mergeMin, "max": mergeMax}[o.name]
			if kind == mergeNone {
				kind = mergeSum
			}
			if f.merge != mergeNone && f.merge != kind {
				return c.d.errorf(o.ref.at, "%s cannot be combined with what stands before: rows of this projection are fed by several streams, whose events have no order", o.name)
			}
			f.merge = kind
		}
		if f.merge == mergeSum && f.Kind == avro.Double {
			return c.d.errorf(d.at, "floating-point numbers cannot be added up over several streams: the sum would depend on their order; use a decimal")
		}
		if d.hasInitial && f.merge != mergeLast {
			return c.d.errorf(d.at, "initial is not possible here: rows of this projection are fed by several streams, and each would bring it along")
		}
	}
	return nil
}
