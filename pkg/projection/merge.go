package projection

import (
	"fmt"
	"slices"
	"strings"

	"github.com/refoldhq/refold/pkg/avro"
)

// UpsertSQL returns the statement that writes rows into a leaf table, which must
// be a quoted name: whole rows of one stream replace what stands there, parts of
// shared rows are merged into it. Its parameters are those of MergeSQL; a state
// may be null.
func (p *Plan) UpsertSQL(leaf string) string {
	if p.shared {
		return p.MergeSQL(leaf)
	}
	return fmt.Sprintf(`insert into %s (projection_name, version, key, data, state)
		select $1, $2, k, d, s from unnest($3::text[], $4::jsonb[], $5::jsonb[]) u (k, d, s)
		on conflict (key) do update set data = excluded.data, state = excluded.state, updated_at = clock_timestamp()`, leaf)
}

// MergeSQL returns the statement that merges parts of shared rows into a leaf
// table, which must be a quoted name. Its parameters are the projection's name,
// the version, and arrays of keys, data and states, sorted by key in byte order
// and without repetition; rows are locked in that order, so that two partitions
// cannot deadlock. Nothing is read before the lock of a row is held.
func (p *Plan) MergeSQL(leaf string) string {
	data, state := p.merged(nil)
	return fmt.Sprintf(mergeStatement, leaf, data, state)
}

// MergeFieldsSQL is [Plan.MergeSQL] for some of the fields: of rows that are there
// the others stay as they are.
func (p *Plan) MergeFieldsSQL(leaf string, names []string) string {
	data, state := p.merged(names)
	return fmt.Sprintf(mergeStatement, leaf, "t.data || "+data, "coalesce(t.state, '{}') || "+state)
}

// mergeStatement keeps the name of every field that has a state, as [Row.AppendState]
// does: with null where nothing is there yet.
const mergeStatement = `insert into %s as t (projection_name, version, key, data, state)
		select $1, $2, k, d, s from unnest($3::text[], $4::jsonb[], $5::jsonb[]) u (k, d, s) order by k collate "C"
		on conflict (key) do update set data = %s, state = %s, updated_at = clock_timestamp()`

// merged returns the objects of the named fields' merged values and states; of
// all without names.
func (p *Plan) merged(names []string) (data, state string) {
	wanted := func(name string) bool { return names == nil || slices.Contains(names, name) }
	var fields []Field
	for _, f := range p.fields {
		if wanted(f.Name) {
			fields = append(fields, f)
		}
	}
	var states []string
	for _, i := range p.stateful {
		if c := &p.columns[i]; wanted(c.path[0]) {
			states = append(states, quote(c.name), c.stateSQL())
		}
	}
	return p.mergeFields(fields), object(states)
}

func (p *Plan) mergeFields(fields []Field) string {
	var pairs []string
	for _, f := range fields {
		if f.Shape == ShapeObject {
			pairs = append(pairs, quote(f.Name), p.mergeFields(f.Fields))
		} else {
			pairs = append(pairs, quote(f.Name), p.columns[f.column].mergeSQL())
		}
	}
	return object(pairs)
}

// object builds a JSON object of names and values in turn; a function takes 100
// arguments only.
func object(pairs []string) string {
	const most = 90
	var parts []string
	for len(pairs) > most {
		parts = append(parts, "jsonb_build_object("+strings.Join(pairs[:most], ", ")+")")
		pairs = pairs[most:]
	}
	parts = append(parts, "jsonb_build_object("+strings.Join(pairs, ", ")+")")
	return strings.Join(parts, " || ")
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// inSQL is the column's value in a row's data, as jsonb or as text.
func (c *column) inSQL(row, last string) string {
	for i, name := range c.path {
		arrow := "->"
		if i == len(c.path)-1 {
			arrow = last
		}
		row += arrow + quote(name)
	}
	return row
}

// mergeSQL merges t.data and excluded.data of one column. A row may lack a field
// that is new: then excluded's value stands, its initial one too.
func (c *column) mergeSQL() string {
	was, now := c.inSQL("t.data", "->"), c.inSQL("excluded.data", "->")
	wasText, nowText := c.inSQL("t.data", "->>"), c.inSQL("excluded.data", "->>")
	switch c.merge {
	case mergeSum:
		sum := fmt.Sprintf("coalesce((%s)::numeric, 0) + (%s)::numeric", wasText, nowText)
		if c.typ.kind == avro.Decimal { // numeric keeps the greater scale, and both have the schema's
			return "to_jsonb((" + sum + ")::text)"
		}
		return "to_jsonb(" + sum + ")"
	case mergeMin, mergeMax:
		than := "<"
		if c.merge == mergeMax {
			than = ">"
		}
		return fmt.Sprintf("case when %s is null or %s %s %s then %s else %s end", wasText, c.comparable(nowText), than, c.comparable(wasText), now, was)
	case mergeLast, mergeFirst:
		return fmt.Sprintf(`case when %s then %s else coalesce(%s, %s) end`, c.newerSQL(), now, was, now)
	case mergeItems:
		return c.itemsSQL()
	default:
		return fmt.Sprintf("coalesce(%s, %s)", was, now)
	}
}

// newerSQL tells whether excluded's stamp wins.
func (c *column) newerSQL() string {
	name := quote(c.name)
	than := ">"
	if c.merge == mergeFirst {
		than = "<"
	}
	return fmt.Sprintf(`excluded.state->>%s is not null and (t.state->>%s is null or (excluded.state->>%s) collate "C" %s (t.state->>%s) collate "C")`, name, name, name, than, name)
}

func (c *column) stateSQL() string {
	if c.merge == mergeItems {
		return "(select jsonb_object_agg(k, v) from " + c.unionSQL() + " m)"
	}
	name := quote(c.name)
	return fmt.Sprintf(`case when %s then excluded.state->%s else t.state->%s end`, c.newerSQL(), name, name)
}

// unionSQL is the items of both states, of each key that of the greatest stamp.
func (c *column) unionSQL() string {
	name := quote(c.name)
	stamp := "v#>>'{}'"
	if c.typ.shape == ShapeMap {
		stamp = "v->>0"
	}
	each := func(state string) string {
		return fmt.Sprintf("select key as k, value as v from jsonb_each(case jsonb_typeof(%s->%s) when 'object' then %s->%s end)", state, name, state, name)
	}
	return fmt.Sprintf(`(select distinct on (k) k, v from (%s union all %s) u order by k, (%s) collate "C" desc)`, each("t.state"), each("excluded.state"), stamp)
}

// itemsSQL is what the items of both states make of the data.
func (c *column) itemsSQL() string {
	from := " from " + c.unionSQL() + " m where "
	switch {
	case c.typ.counted:
		return "to_jsonb((select count(*)" + from + "v#>>'{}' like '%+'))"
	case c.typ.shape == ShapeMap:
		return "(select coalesce(jsonb_object_agg(k, v->1), '{}')" + from + "v->>0 like '%+')"
	case c.typ.items == avro.Long:
		return "(select coalesce(jsonb_agg(k::numeric order by k::numeric), '[]')" + from + "v#>>'{}' like '%+')"
	default:
		return `(select coalesce(jsonb_agg(k order by k collate "C"), '[]')` + from + "v#>>'{}' like '%+')"
	}
}

// comparable casts a column's text to what it is compared as.
func (c *column) comparable(text string) string {
	switch c.typ.kind {
	case avro.Long, avro.Double, avro.Decimal:
		return "(" + text + ")::numeric"
	case avro.Timestamp:
		return "refold.time(" + text + ")"
	default:
		return "(" + text + `) collate "C"`
	}
}
