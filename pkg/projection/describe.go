package projection

import (
	"fmt"
	"slices"
	"strings"
)

// Change says what it takes to bring rows from one plan to another, the greatest
// of what its fields and indexes take.
type Change string

// Changes, in order.
const (
	ChangeNone     Change = "none"     // the rows are the same
	ChangeIndex    Change = "index"    // indexes come or go; rows stay
	ChangeBackfill Change = "backfill" // fields are new; the others stay
	ChangeRebuild  Change = "rebuild"
)

// Difference is what differs between two plans of one projection.
type Difference struct {
	Change Change
	Parts  []PartDifference
}

// PartDifference is a field, an index or the shape of rows that differs.
type PartDifference struct {
	Name   string
	Change Change
	Detail string
}

// Compare compares two plans field by field.
func Compare(before, after *Plan) Difference {
	var d Difference
	add := func(name string, change Change, detail string) {
		d.Parts = append(d.Parts, PartDifference{name, change, detail})
	}
	if was, is := before.describeShape(), after.describeShape(); was != is {
		add("(rows)", ChangeRebuild, "the key, the categories or what removes rows is another: "+is+", it was "+was)
	}
	olds := make(map[string]int)
	for i := range before.fields {
		olds[before.fields[i].Name] = i
	}
	for i := range after.fields {
		name := after.fields[i].Name
		k, known := olds[name]
		delete(olds, name)
		switch {
		case !known:
			add(name, ChangeBackfill, "the field is new")
		case before.describeField(k) != after.describeField(i):
			add(name, ChangeRebuild, "it is made of "+after.describeField(i)+", it was made of "+before.describeField(k))
		}
	}
	for _, name := range sortedNames(olds) {
		add(name, ChangeRebuild, "the field is gone")
	}
	compareIndexes(before, after, add)
	d.Change = ChangeNone
	for _, p := range d.Parts {
		d.Change = greater(d.Change, p.Change)
	}
	if d.Change == ChangeNone && before.Hash() != after.Hash() {
		d.Change = ChangeRebuild // something that is not described
	}
	return d
}

func compareIndexes(before, after *Plan, add func(string, Change, string)) {
	have := func(list []Index, x Index) bool {
		return slices.ContainsFunc(list, func(y Index) bool { return x.Unique == y.Unique && slices.Equal(x.Fields, y.Fields) })
	}
	for _, x := range after.indexes {
		if !have(before.indexes, x) {
			add("index on "+strings.Join(x.Fields, ", "), ChangeIndex, "it is new")
		}
	}
	for _, x := range before.indexes {
		if !have(after.indexes, x) {
			add("index on "+strings.Join(x.Fields, ", "), ChangeIndex, "it is gone")
		}
	}
}

func greater(a, b Change) Change {
	order := []Change{ChangeNone, ChangeIndex, ChangeBackfill, ChangeRebuild}
	if slices.Index(order, b) > slices.Index(order, a) {
		return b
	}
	return a
}

func (p *Plan) describeShape() string {
	var removes []string
	for _, category := range p.categories {
		for _, typ := range sortedNames(p.programs[category]) {
			prog := p.programs[category][typ]
			if prog.remove {
				removes = append(removes, category+"/"+typ)
			}
			for _, s := range prog.key {
				removes = append(removes, category+"/"+typ+" by "+prog.describeSource(s))
			}
		}
	}
	return fmt.Sprintf("%q %v %q %q %v", p.categories, p.key.kind, p.key.bucket+p.key.by+p.key.value, p.key.parts, removes)
}

func (p *Plan) describeField(field int) string {
	f := &p.fields[field]
	var parts []string
	for _, category := range p.categories {
		for _, typ := range sortedNames(p.programs[category]) {
			prog := p.programs[category][typ]
			for i := range prog.ops {
				if prog.ops[i].field == field {
					parts = append(parts, fmt.Sprintf("%s/%s %d %s", category, typ, prog.ops[i].kind, prog.describeSource(prog.ops[i].source)))
				}
			}
		}
	}
	return fmt.Sprintf("%v scale %d key %t initial %v merge %d: %s", f.Kind, f.Scale, f.Key, f.initial, f.merge, strings.Join(parts, "; "))
}

// describeSource names what a source gives, whatever its place among the decoded
// values.
func (prog *program) describeSource(s source) string {
	if s.kind == fromField && s.index < len(prog.paths) {
		return strings.Join(prog.paths[s.index], ".")
	}
	return fmt.Sprintf("%d %v", s.kind, s.value)
}
