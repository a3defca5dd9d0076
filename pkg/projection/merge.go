package projection

import (
	"fmt"
	"slices"
	"strings"

	"github.com/refoldhq/refold/pkg/avro"
)

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

// mergeStatement keeps no stamps of fields that have none yet.
const mergeStatement = `insert into %s as t (projection_name, version, key, data, state)
		select $1, $2, k, d, s from unnest($3::text[], $4::jsonb[], $5::jsonb[]) u (k, d, s) order by k collate "C"
		on conflict (key) do update set data = %s, state = jsonb_strip_nulls(%s), updated_at = clock_timestamp()`

// merged returns the objects of the named fields' merged values and stamps; of
// all without names.
func (p *Plan) merged(names []string) (data, state string) {
	var values, stamps []string
	for _, f := range p.fields {
		if names != nil && !slices.Contains(names, f.Name) {
			continue
		}
		name := quote(f.Name)
		values = append(values, name+", "+f.mergeSQL())
		if f.merge == mergeLast || f.merge == mergeFirst {
			stamps = append(stamps, name+", "+f.stampSQL())
		}
	}
	return object(values), object(stamps)
}

// object builds a JSON object of pairs; a function takes 100 arguments only.
func object(pairs []string) string {
	const most = 45
	var parts []string
	for len(pairs) > most {
		parts = append(parts, "jsonb_build_object("+strings.Join(pairs[:most], ", ")+")")
		pairs = pairs[most:]
	}
	parts = append(parts, "jsonb_build_object("+strings.Join(pairs, ", ")+")")
	return strings.Join(parts, " || ")
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// mergeSQL merges t.data and excluded.data of one field. A row may lack a field
// that is new: then excluded's value stands, its initial one too.
func (f *Field) mergeSQL() string {
	name := quote(f.Name)
	was, now := "t.data->"+name, "excluded.data->"+name
	wasText, nowText := "t.data->>"+name, "excluded.data->>"+name
	switch f.merge {
	case mergeSum:
		sum := fmt.Sprintf("coalesce((%s)::numeric, 0) + (%s)::numeric", wasText, nowText)
		if f.Kind == avro.Decimal { // numeric keeps the greater scale, and both have the schema's
			return "to_jsonb((" + sum + ")::text)"
		}
		return "to_jsonb(" + sum + ")"
	case mergeMin, mergeMax:
		than := "<"
		if f.merge == mergeMax {
			than = ">"
		}
		return fmt.Sprintf("case when %s is null or %s %s %s then %s else %s end", wasText, f.comparable(nowText), than, f.comparable(wasText), now, was)
	case mergeLast, mergeFirst:
		return fmt.Sprintf(`case when %s then %s else coalesce(%s, %s) end`, f.newerSQL(), now, was, now)
	default:
		return fmt.Sprintf("coalesce(%s, %s)", was, now)
	}
}

// newerSQL tells whether excluded's stamp wins.
func (f *Field) newerSQL() string {
	name := quote(f.Name)
	than := ">"
	if f.merge == mergeFirst {
		than = "<"
	}
	return fmt.Sprintf(`excluded.state->>%s is not null and (t.state->>%s is null or (excluded.state->>%s) collate "C" %s (t.state->>%s) collate "C")`, name, name, name, than, name)
}

func (f *Field) stampSQL() string {
	name := quote(f.Name)
	return fmt.Sprintf(`case when %s then excluded.state->%s else t.state->%s end`, f.newerSQL(), name, name)
}

// comparable casts a field's text to what it is compared as.
func (f *Field) comparable(text string) string {
	switch f.Kind {
	case avro.Long, avro.Double, avro.Decimal:
		return "(" + text + ")::numeric"
	case avro.Timestamp:
		return "refold.time(" + text + ")"
	default:
		return "(" + text + `) collate "C"`
	}
}
