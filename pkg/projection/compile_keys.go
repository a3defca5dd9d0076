package projection

import (
	"slices"
	"strings"

	"github.com/refoldhq/refold/pkg/avro"
)

// keyIn returns what a key is made of in an event type, if it says so.
func keyIn(k keyDef, et *avro.EventType) (ref, bool) {
	for _, r := range k.parts {
		if r.event == "" || r.event == "*" || names(r.event, et) {
			return r, true
		}
	}
	return ref{}, false
}

// keys resolves the key in every event that the plan uses, and types the fields
// that show it.
func (c *compiler) keys() error {
	if c.d.key.kind != keyFields {
		return c.keyFields(nil)
	}
	for _, r := range c.d.key.parts {
		if r.event == "" {
			continue
		}
		if _, err := c.eventTypes(r); err != nil {
			return err
		}
		if len(r.path) == 0 && r.value == nil {
			return c.d.errorf(r.at, "a key is made of a value: want %s.field", r.event)
		}
		if r.when != nil {
			return c.d.errorf(r.when.at, "a key has no condition: put it on what feeds the fields")
		}
	}
	parts := make([]typer, max(1, len(c.plan.key.parts)))
	for _, et := range c.types {
		p := c.plan.programs[et.Category][et.Name]
		if p == nil {
			continue
		}
		if err := c.keysOf(et, p, parts); err != nil {
			return err
		}
		if len(p.keys) == 0 {
			return c.d.errorf(c.d.key.at, "the key says nothing of the event %s, which the projection uses: add %s.field", et.Name, et.Name)
		}
	}
	slices.Sort(c.keyed)
	return c.keyFields(parts)
}

// keysOf resolves the key in one event type: all parts of one key, or a key for
// each reference.
func (c *compiler) keysOf(et *avro.EventType, p *program, types []typer) error {
	var composite keySource
	for i, r := range c.d.key.parts {
		if r.event != "" && r.event != "*" && !names(r.event, et) {
			continue
		}
		s, typ, err := c.keyPart(et, r)
		if err != nil {
			return err
		}
		into := &types[0]
		if len(c.plan.key.parts) > 1 {
			into = &types[i]
		}
		if !into.take(typ) {
			return c.d.errorf(r.at, "%s of %s is of the type %s, in another event of the type %s", strings.Join(r.path, "."), et.Name, typ, into.typ)
		}
		if r.event == "" && !c.d.key.each {
			composite.parts = append(composite.parts, s)
			continue
		}
		p.keys = append(p.keys, keySource{parts: []source{s}, each: c.d.key.each})
	}
	if len(composite.parts) > 0 {
		p.keys = append(p.keys, composite)
	}
	return nil
}

func (c *compiler) keyPart(et *avro.EventType, r ref) (source, valueType, error) {
	o, err := c.operand(et, r, nil)
	if err != nil {
		return source{}, valueType{}, err
	}
	typ := o.typ
	if o.source.kind == fromExpression && c.program(et).exprs[o.source.index].key {
		return source{}, typ, c.d.errorf(r.at, "the key cannot be made of itself")
	}
	if o.source.kind == fromExpression {
		return source{}, typ, c.d.errorf(r.at, "a key is made of fields, not of expressions: want Event.field, or a transform")
	}
	if c.d.key.each {
		if typ.shape != ShapeList || !countable(typ.items) {
			return source{}, typ, c.d.errorf(r.at, "each needs a list of texts, whole numbers or times: %s of %s is of the type %s", strings.Join(r.path, "."), et.Name, typ)
		}
		typ = valueType{kind: typ.items}
	}
	if typ.kind == avro.JSON {
		return source{}, typ, c.d.errorf(r.at, "a key cannot be made of %s, which is of the type %s", strings.Join(r.path, "."), typ)
	}
	c.keyed = append(c.keyed, origin(et)+": by "+o.words)
	return o.source, typ, nil
}

func (c *compiler) keyFields(parts []typer) error {
	for i := range c.plan.fields {
		f := &c.plan.fields[i]
		if !f.Key {
			continue
		}
		typ := valueType{kind: avro.String}
		switch {
		case c.plan.key.kind != keyFields:
		case len(parts) == 1:
			typ = parts[0].typ
		default:
			j := slices.Index(c.plan.key.parts, f.Name)
			if j < 0 {
				return c.d.errorf(c.d.fields[i].at, "the field %s shows a part of the key, whose parts are %s", f.Name, strings.Join(c.plan.key.parts, ", "))
			}
			typ = parts[j].typ
		}
		if c.d.key.each && !slices.Contains([]avro.Kind{avro.String, avro.Enum, avro.UUID, avro.Long}, typ.kind) {
			typ = valueType{kind: avro.String} // as the list has it
		}
		f.Kind, f.Scale = typ.kind, typ.scale
		c.plan.columns[f.column].typ = typ
	}
	return nil
}
