package projection

import (
	"slices"
	"strings"

	"cel.dev/cel-go/cel"

	"github.com/refoldhq/refold/pkg/avro"
)

// Compile types a definition against the contracts. The error is a
// [*SourceError] at the first mistake.
func Compile(d *Definition, contracts *avro.Contracts) (*Plan, error) {
	if d.err != nil {
		return nil, d.err
	}
	c := compiler{d: d, contracts: contracts, environments: make(map[*avro.EventType]*cel.Env),
		plan: &Plan{name: d.Name, source: d.Source, categories: slices.Compact(slices.Sorted(slices.Values(d.Categories))), programs: make(map[string]map[string]*program), former: make(map[[2]string]*program)}}
	steps := []func() error{c.categories, c.keyShape, c.collectFields, c.collectRemove, c.keys, c.collectIndexes, c.finish}
	if d.fold != nil {
		steps = []func() error{c.categories, c.keyShape, c.collectTyped, c.bindFold, c.collectIndexes, c.finish}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if d.check != nil {
		if err := d.check(c.plan); err != nil {
			return nil, err
		}
	}
	return c.plan, nil
}

type compiler struct {
	d            *Definition
	contracts    *avro.Contracts
	plan         *Plan
	types        []*avro.EventType
	environments map[*avro.EventType]*cel.Env
	removes      []string // how rows are removed, in words
	keyed        []string // how keys are made, in words
}

func (c *compiler) categories() error {
	for _, name := range c.plan.categories {
		contract, ok := c.contracts.Category(name)
		if !ok {
			var known []string
			for _, k := range c.contracts.Categories() {
				known = append(known, k.Name)
			}
			return c.d.errorf(c.d.categoryAt, "there is no category %s%s", name, suggest(name, known))
		}
		c.types = append(c.types, contract.Types...)
		c.plan.programs[name] = make(map[string]*program)
	}
	return nil
}

func (c *compiler) keyShape() error {
	k := c.d.key
	c.plan.key = keyPlan{kind: k.kind, bucket: k.bucket, by: k.by, value: k.value}
	if !k.each {
		for _, p := range k.parts {
			if p.event == "" {
				c.plan.key.parts = append(c.plan.key.parts, p.path[len(p.path)-1])
			}
		}
	}
	c.plan.shared = k.kind != keyStream || len(c.plan.categories) > 1
	return nil
}

// names tells whether an event's name in a definition means a type: the type's own
// or a former one, its category before it or not.
func names(event string, t *avro.EventType) bool {
	event = strings.TrimPrefix(event, t.Category+"/")
	return event == t.Name || slices.Contains(t.Former, event)
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
		p = &program{typ: t, index: c.plan.count}
		c.plan.count++
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

// value resolves a path in an event type.
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
		return source{}, avro.Type{}, c.d.errorf(at, "the event %s has no field %s%s", t.Name, strings.Join(path, "."), suggest(path[0], fieldNames(t)))
	}
	if typ.Kind == avro.Null {
		return source{}, avro.Type{}, c.d.errorf(at, "the field %s of %s is always null", strings.Join(path, "."), t.Name)
	}
	p := c.program(t)
	i := slices.IndexFunc(p.paths, func(have []string) bool { return slices.Equal(have, now) })
	if i < 0 {
		i = len(p.paths)
		p.paths = append(p.paths, now)
	}
	return source{kind: fromField, index: i}, typ, nil
}

// origin names an event type in words: as it was named first, so that a plan is
// the same before and after a rename.
func origin(t *avro.EventType) string { return t.Category + "/" + t.Origin() }

// words name what a source gives: a field as it was named first, whatever a
// definition calls it.
func (c *compiler) words(t *avro.EventType, s source, path []string) string {
	if p := c.program(t); s.kind == fromField && s.index < len(p.paths) {
		return t.OriginOf(p.paths[s.index]...)
	}
	return strings.Join(path, ".")
}

// rowType is the type that values of an event's type have in a row.
func rowType(t avro.Type) valueType {
	switch t.Kind {
	case avro.Int:
		return valueType{kind: avro.Long}
	case avro.Float:
		return valueType{kind: avro.Double}
	case avro.Array:
		items := rowType(*t.Items)
		if items.shape != ShapeValue {
			items.kind = avro.Null
		}
		return valueType{kind: avro.JSON, shape: ShapeList, items: items.kind}
	case avro.Record, avro.Map, avro.JSON:
		return valueType{kind: avro.JSON, shape: ShapeDocument}
	case avro.Decimal:
		return valueType{kind: avro.Decimal, scale: t.Scale}
	default:
		return valueType{kind: t.Kind}
	}
}

// operand is what a reference takes from one event type.
type operand struct {
	event  *avro.EventType
	source source
	typ    valueType
	words  string // what it is, for people and for the plan's hash
	when   int
}

// operand resolves a reference in one of its event types. Where it names no value
// it means the path otherwise.
func (c *compiler) operand(t *avro.EventType, r ref, otherwise []string) (operand, error) {
	o := operand{event: t, when: none}
	var err error
	if o.when, err = c.condition(t, r); err != nil {
		return o, err
	}
	switch {
	case r.value != nil:
		o.source, o.typ, o.words, err = c.anyValue(t, r.value, o.when)
	case len(r.path) > 0 || otherwise != nil:
		path := r.path
		if len(path) == 0 {
			path = otherwise
		}
		var typ avro.Type
		o.source, typ, err = c.value(t, path, r.at)
		o.typ, o.words = rowType(typ), c.words(t, o.source, path)
	}
	if err == nil && len(r.transforms) > 0 {
		err = c.transformed(t, r, &o)
	}
	if r.when != nil {
		o.words = strings.TrimSpace(o.words + " when " + r.when.text)
	}
	return o, err
}

// condition compiles the condition of a reference, if it has one.
func (c *compiler) condition(t *avro.EventType, r ref) (int, error) {
	if r.when == nil {
		return none, nil
	}
	when, typ, err := c.compileExpression(t, r.when, none)
	if err == nil && typ.kind != avro.Bool {
		err = c.d.errorf(r.when.at, "a condition is true or false, and %q is of the type %s", r.when.text, typ)
	}
	return when, err
}

// anyValue resolves a path of the event, or else an expression.
func (c *compiler) anyValue(t *avro.EventType, x *exprDef, guard int) (source, valueType, string, error) {
	path := strings.Split(x.text, ".")
	if _, err := t.Newest().TypeOf(path...); err == nil || strings.HasPrefix(x.text, "$") {
		s, typ, err := c.value(t, path, x.at)
		return s, rowType(typ), c.words(t, s, path), err
	}
	i, typ, err := c.compileExpression(t, x, guard)
	return source{kind: fromExpression, index: i}, typ, "= " + x.text, err
}

func (c *compiler) transformed(t *avro.EventType, r ref, o *operand) error {
	if o.source.kind == fromExpression {
		return c.d.errorf(r.at, "transform follows a field, not an expression: the language has such functions itself")
	}
	for _, name := range r.transforms {
		switch name {
		case "trim", "lower", "upper":
			if o.typ.kind != avro.String {
				return c.d.errorf(r.at, "%s is for text, and %s is of the type %s", name, r, o.typ)
			}
		default:
			if o.typ.kind != avro.Timestamp && (o.typ.kind != avro.Date || name == "hour") {
				return c.d.errorf(r.at, "%s is for times, and %s is of the type %s", name, r, o.typ)
			}
			o.typ = valueType{kind: avro.String}
		}
		o.words += " | " + name
	}
	p := c.program(t)
	p.derived = append(p.derived, derived{o.source, r.transforms})
	o.source = source{kind: fromDerived, index: len(p.derived) - 1}
	return nil
}

func (c *compiler) collectRemove() error {
	for _, r := range c.d.remove {
		if len(r.path) > 0 || r.value != nil || r.transforms != nil {
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
			when, err := c.condition(t, r)
			if err != nil {
				return err
			}
			p := c.program(t)
			p.removes = append(p.removes, when)
			p.always = p.always || when == none
			words := origin(t)
			if r.when != nil {
				words += " when " + r.when.text
			}
			c.removes = append(c.removes, words)
		}
	}
	slices.Sort(c.removes)
	return nil
}

func (c *compiler) collectIndexes() error {
	for _, x := range c.d.indexes {
		index := Index{Fields: x.fields, Unique: x.unique}
		var texts []int
		for _, name := range x.fields {
			i := slices.IndexFunc(c.plan.fields, func(f Field) bool { return f.Name == name })
			if i < 0 {
				return c.d.errorf(x.at, "the index names the field %s, which does not exist%s", name, suggest(name, fieldsNames(c.plan.fields)))
			}
			f := &c.plan.fields[i]
			if f.Kind == avro.JSON {
				if f.Shape == ShapeObject || f.Shape == ShapeChildren {
					return c.d.errorf(x.at, "the field %s holds %s, which cannot be indexed", name, map[Shape]string{ShapeObject: "an object", ShapeChildren: "children"}[f.Shape])
				}
				if len(x.fields) > 1 || x.unique {
					return c.d.errorf(x.at, "the field %s holds a %s, whose members are indexed by an index of its own, which is not unique", name, f.Shape)
				}
				index.Contains = true
				continue
			}
			switch f.Kind {
			case avro.String, avro.Bytes:
				texts = append(texts, i)
			}
		}
		for _, i := range texts {
			c.limitText(&c.plan.fields[i], maxIndexedText/len(texts))
		}
		c.plan.indexes = append(c.plan.indexes, index)
	}
	return nil
}

// limitText bounds the text of an indexed field: all texts of one index share
// what an entry of it holds.
func (c *compiler) limitText(f *Field, most int) {
	if f.MaxText == 0 || most < f.MaxText {
		f.MaxText = most
	}
	col := &c.plan.columns[f.column]
	col.maxText = f.MaxText
	if f.Kind == avro.Bytes { // they are indexed in base64
		col.maxText = f.MaxText * 3 / 4
	}
}

func fieldsNames(fields []Field) (names []string) {
	for _, f := range fields {
		names = append(names, f.Name)
	}
	return names
}

// finish fills in what the folder looks up instead of finding it out.
func (c *compiler) finish() error {
	p := c.plan
	p.layout = newLayout(p.fields, p.columns)
	for i := range p.columns {
		switch m := p.columns[i].merge; {
		case m == mergeLast, m == mergeFirst, m == mergeItems, p.columns[i].typ.counted:
			p.stateful = append(p.stateful, i)
		}
	}
	slices.SortFunc(p.stateful, func(a, b int) int { return compareNames(p.columns[a].name, p.columns[b].name) })
	for _, programs := range p.programs {
		for _, program := range programs {
			program.finish(p.columns)
		}
	}
	p.describe(c.keyed, c.removes)
	return nil
}

func (p *program) finish(columns []column) {
	summed := make(map[int]bool)
	for _, o := range p.ops {
		summed[o.column] = summed[o.column] || (o.kind == opAdd || o.kind == opSubtract) && (o.typ.kind == avro.Long || o.typ.kind == avro.Double)
	}
	p.always = p.always || len(p.ops) == 0
	for i := range p.ops {
		o := &p.ops[i]
		p.always = p.always || o.when == none
		if columns[o.column].maxText > 0 && o.kind < opInclude && o.source.kind != fromConstant {
			p.texts = append(p.texts, i)
		}
		if summed[o.column] {
			p.sums = append(p.sums, i)
		}
		if o.kind == opInclude || o.kind == opPut || o.kind == opChild && !o.drop {
			p.grows = append(p.grows, i)
		}
	}
}
