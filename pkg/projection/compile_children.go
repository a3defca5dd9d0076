package projection

import (
	"fmt"
	"slices"
	"strings"

	"github.com/refoldhq/refold/pkg/avro"
)

// childrenCompiler compiles one field of children.
type childrenCompiler struct {
	*compiler
	f      *fieldDef
	column int
	child  *childPlan
	feeds  map[*avro.EventType]int // of a program: the operator that feeds them
	keys   typer
	how    []string
}

func (c *compiler) children(f *fieldDef, s scope) (Field, error) {
	if s.shared {
		return Field{}, c.d.errorf(f.at, "children are not possible for rows that several streams feed: their changes from two partitions have no order")
	}
	if s.child {
		return Field{}, c.d.errorf(f.at, "children have no children")
	}
	d := f.children
	x := &childrenCompiler{compiler: c, f: f, column: newColumn(f, s), child: &childPlan{}, feeds: make(map[*avro.EventType]int)}
	name := d.key.parts[0].path
	if len(name) == 0 {
		return Field{}, c.d.errorf(d.key.parts[0].at, "the key of children is a field: want Event.field")
	}
	keyName := name[len(name)-1]
	if slices.ContainsFunc(d.fields, func(x fieldDef) bool { return x.name == keyName }) {
		return Field{}, c.d.errorf(d.at, "the field %s is the children's key, so nothing else may feed it", keyName)
	}
	x.child.key = newColumn(&fieldDef{name: keyName}, scope{columns: &x.child.columns})
	fields, err := c.fields(d.fields, scope{columns: &x.child.columns, child: true, emit: x.emit})
	if err != nil {
		return Field{}, err
	}
	if err := x.removals(); err != nil {
		return Field{}, err
	}
	typ := x.layOut(keyName, fields)
	if err := x.clears(typ); err != nil {
		return Field{}, err
	}
	x.describe(&(*s.columns)[x.column], typ)
	return Field{Name: f.name, Kind: avro.JSON, Shape: ShapeChildren, Fields: x.child.fields, column: x.column}, nil
}

// own returns the operator by which an event feeds a child, made at its first use,
// or one that drops a child.
func (x *childrenCompiler) own(t *avro.EventType, drop bool) (*op, error) {
	p, key := x.program(t), x.f.children.key
	if k, ok := x.feeds[t]; ok && !drop {
		return &p.ops[k], nil
	}
	r, ok := keyIn(key, t)
	if !ok {
		return nil, x.d.errorf(key.at, "the key of the children says nothing of the event %s, which feeds them", t.Name)
	}
	operand, err := x.operand(t, r, nil)
	if err == nil && !countable(operand.typ.kind) {
		err = x.d.errorf(r.at, "the key of children is a text, a whole number, a decimal or a time, not of the type %s", operand.typ)
	}
	if err == nil && !x.keys.take(operand.typ) {
		err = x.d.errorf(r.at, "%s of %s is of the type %s, in another event of the type %s", strings.Join(r.path, "."), t.Name, operand.typ, x.keys.typ)
	}
	if err != nil {
		return nil, err
	}
	p.ops = append(p.ops, op{column: x.column, kind: opChild, key: operand.source, when: none, drop: drop})
	if !drop {
		x.feeds[t] = len(p.ops) - 1
	}
	x.how = append(x.how, origin(t)+": by "+operand.words)
	return &p.ops[len(p.ops)-1], nil
}

// emit takes an operator on a field of the children.
func (x *childrenCompiler) emit(t *avro.EventType, o op) error {
	to, err := x.own(t, false)
	if err == nil {
		to.child = append(to.child, o)
	}
	return err
}

// removals compiles the events that drop a child.
func (x *childrenCompiler) removals() error {
	for _, r := range x.f.children.remove {
		if len(r.path) > 0 || r.value != nil || r.transforms != nil {
			return x.d.errorf(r.at, "remove names events, not %s: the key says which child", r)
		}
		types, err := x.eventTypes(r)
		if err != nil {
			return err
		}
		for _, t := range types {
			o, err := x.own(t, true)
			if err != nil {
				return err
			}
			if o.when, err = x.condition(t, r); err != nil {
				return err
			}
			x.how = append(x.how, origin(t)+": remove "+fmt.Sprint(r.when != nil, whenText(r)))
		}
	}
	return nil
}

// layOut settles what a child looks like, once all that feeds it is known, and
// gives the type to the operators.
func (x *childrenCompiler) layOut(keyName string, fields []Field) valueType {
	child, key := x.child, x.keys.typ
	child.columns[child.key].typ = key
	child.fields = append([]Field{{Name: keyName, Kind: key.kind, Scale: key.scale, Key: true, column: child.key}}, fields...)
	child.layout = newLayout(child.fields, child.columns)
	typ := valueType{kind: avro.JSON, shape: ShapeChildren, items: key.kind, children: child}
	for _, t := range x.types {
		if p := x.plan.programs[t.Category][t.Name]; p != nil {
			for k := range p.ops {
				if p.ops[k].column == x.column {
					p.ops[k].typ = typ
				}
			}
		}
	}
	return typ
}

// clears compiles the events that drop all children.
func (x *childrenCompiler) clears(typ valueType) error {
	for _, o := range x.f.ops {
		types, err := x.eventTypes(o.ref)
		if err != nil {
			return err
		}
		for _, t := range types {
			when, err := x.condition(t, o.ref)
			if err != nil {
				return err
			}
			p := x.program(t)
			p.ops = append(p.ops, op{column: x.column, typ: typ, kind: opEmpty, when: when})
			x.how = append(x.how, origin(t)+": clear "+whenText(o.ref))
		}
	}
	return nil
}

// describe says of the column what it is made of, for the plan's identity.
func (x *childrenCompiler) describe(col *column, typ valueType) {
	for k := range x.child.columns {
		for _, words := range x.child.columns[k].how {
			x.how = append(x.how, words+" into "+x.child.columns[k].name)
		}
	}
	slices.Sort(x.how)
	col.typ, col.how = typ, x.how
}
