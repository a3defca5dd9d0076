package projection

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Change says what it takes to bring rows from one plan to another.
type Change string

// Changes, the least first.
const (
	ChangeNone     Change = "none"     // the rows are the same
	ChangeIndex    Change = "index"    // in place: indexes come or go, rows stay
	ChangeBackfill Change = "backfill" // fields are new, the others stay
	ChangeRebuild  Change = "rebuild"
)

// Difference is what differs between two plans of one projection.
type Difference struct {
	// Change is the greatest of its parts.
	Change Change
	Parts  []PartDifference
}

// PartDifference is a field, an index or the shape of rows that differs, and how,
// in the words of definitions.
type PartDifference struct {
	Name   string
	Change Change
	Detail string
}

// Diff compares two plans of one projection by what they make of events, whatever
// their definitions look like: a field that is written in another order or form
// does not differ.
func Diff(before, after *Plan) Difference {
	d := differ{before: before, after: after}
	d.shape()
	d.fields()
	d.indexes()
	if d.out.Change == "" {
		d.out.Change = ChangeNone
	}
	return d.out
}

type differ struct {
	before, after *Plan
	out           Difference
}

func (d *differ) add(name string, change Change, format string, args ...any) {
	d.out.Parts = append(d.out.Parts, PartDifference{name, change, fmt.Sprintf(format, args...)})
	order := []Change{ChangeNone, ChangeIndex, ChangeBackfill, ChangeRebuild}
	if slices.Index(order, change) > slices.Index(order, d.out.Change) {
		d.out.Change = change
	}
}

func (d *differ) shape() {
	was, is := d.before.outline, d.after.outline
	for _, part := range []struct{ name, was, is string }{{"category", was.categories, is.categories}, {"key", was.key, is.key}, {"remove", was.remove, is.remove}, {"fold", was.fold, is.fold}} {
		if part.was != part.is {
			d.add("("+part.name+")", ChangeRebuild, "%s, it was %s", orNone(part.is), orNone(part.was))
		}
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func (d *differ) fields() {
	olds := make(map[string]fieldOutline)
	for _, f := range d.before.outline.fields {
		olds[f.name] = f
	}
	for _, f := range d.after.outline.fields {
		was, known := olds[f.name]
		delete(olds, f.name)
		switch {
		case !known && d.after.fold != nil:
			d.add(f.name, ChangeRebuild, "the field is new: %s", f.typ)
		case !known && f.top != f.name && slices.ContainsFunc(d.before.outline.fields, func(o fieldOutline) bool { return o.top == f.top }):
			d.add(f.name, ChangeRebuild, "the field is new inside %s: %s, %s", f.top, f.typ, f.how) // backfills give rows whole fields
		case !known:
			d.add(f.name, ChangeBackfill, "the field is new: %s, %s", f.typ, f.how)
		case was.typ != f.typ:
			d.add(f.name, ChangeRebuild, "it is %s, it was %s", f.typ, was.typ)
		case was.how != f.how:
			gone, come := missing(was.how, f.how), missing(f.how, was.how)
			d.add(f.name, ChangeRebuild, "fed by %s, it was fed by %s", orNone(come), orNone(gone))
		case was.maxText != f.maxText && f.maxText != 0 && (was.maxText == 0 || f.maxText < was.maxText):
			d.add(f.name, ChangeIndex, "at most %d bytes now, as it is indexed", f.maxText)
		}
	}
	for _, name := range sortedNames(olds) {
		d.add(name, ChangeRebuild, "the field is gone")
	}
}

// missing returns the parts of one outline that the other lacks.
func missing(of, from string) string {
	have := strings.Split(from, "; ")
	var list []string
	for _, part := range strings.Split(of, "; ") {
		if !slices.Contains(have, part) {
			list = append(list, part)
		}
	}
	return strings.Join(list, "; ")
}

func (d *differ) indexes() {
	have := func(list []Index, x Index) bool {
		return slices.ContainsFunc(list, func(y Index) bool { return x.Unique == y.Unique && slices.Equal(x.Fields, y.Fields) })
	}
	for _, x := range d.after.indexes {
		if !have(d.before.indexes, x) {
			d.add("index on "+strings.Join(x.Fields, ", "), ChangeIndex, "it is new")
		}
	}
	for _, x := range d.before.indexes {
		if !have(d.after.indexes, x) {
			d.add("index on "+strings.Join(x.Fields, ", "), ChangeIndex, "it is gone")
		}
	}
}

// outline is a plan in words: all that decides about rows, and nothing else.
type outline struct {
	categories, key, remove, fold string
	fields                        []fieldOutline
}

type fieldOutline struct {
	name, typ, how string
	top            string // the row's field that it is in
	maxText        int
}

// describe makes the plan's outline, and its hash of that.
func (p *Plan) describe(keyed, removes []string) {
	o := &p.outline
	o.categories, o.remove = strings.Join(p.categories, ", "), strings.Join(removes, ", ")
	switch p.key.kind {
	case keyStream:
		o.key = "the stream"
	case keyConstant:
		o.key = fmt.Sprintf("constant %q", p.key.value)
	case keyBucket:
		o.key = p.key.bucket + " by " + p.key.by
	default:
		o.key = strings.TrimSpace(strings.Join(p.key.parts, ", ") + " " + strings.Join(slices.Compact(keyed), "; "))
	}
	if p.fold != nil {
		o.fold = fmt.Sprintf("Go, revision %d", p.fold.revision)
	}
	o.fields = nil
	p.outlineFields(p.fields)
	h := sha256.New()
	fmt.Fprintf(h, "2 %q %q %q %q %t\n", o.categories, o.key, o.remove, o.fold, p.shared)
	for _, f := range o.fields {
		fmt.Fprintf(h, "%q %q %q %d\n", f.name, f.typ, f.how, f.maxText)
	}
	p.hash = hex.EncodeToString(h.Sum(nil)[:16])
}

func (p *Plan) outlineFields(fields []Field) {
	for i := range fields {
		f := &fields[i]
		if f.Shape == ShapeObject {
			p.outlineFields(f.Fields)
			continue
		}
		c := &p.columns[f.column]
		out := fieldOutline{name: c.name, top: c.path[0], typ: c.typ.words(), how: strings.Join(c.how, "; "), maxText: c.maxText}
		if f.Key {
			out.how = "the key"
		}
		if c.initial.set && c.typ.shape < ShapeSet {
			out.how = strings.TrimPrefix(out.how+"; begins as "+string(c.initial.append(nil, c.typ)), "; ")
		}
		p.outline.fields = append(p.outline.fields, out)
	}
}

// words say all of a type, its children too.
func (t valueType) words() string {
	s := t.String()
	if t.scale != 0 {
		s += fmt.Sprintf(" of scale %d", t.scale)
	}
	if t.counted {
		s = "count of distinct " + t.items.String()
	}
	if t.children != nil {
		var parts []string
		for i := range t.children.columns {
			c := &t.children.columns[i]
			part := c.name + " " + c.typ.words()
			if c.initial.set {
				part += " begins as " + string(c.initial.append(nil, c.typ))
			}
			parts = append(parts, part)
		}
		s += " (" + strings.Join(parts, ", ") + ")"
	}
	return s
}
