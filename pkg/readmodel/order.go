package readmodel

import (
	"strings"

	"github.com/refoldhq/refold/pkg/projection"
)

// Order is one term of an order. Nulls come last in ascending and first in
// descending order, as in Postgres, unless said otherwise.
type Order struct {
	Field      string // or key
	Descending bool
	Nulls      Nulls
}

// Nulls says where rows without a value stand.
type Nulls uint8

// Places of nulls.
const (
	NullsDefault Nulls = iota
	NullsFirst
	NullsLast
)

// term is an order's term on a plan.
type term struct {
	column
	descending bool
	nullsFirst bool
}

// terms finds the columns of an order and makes it complete: rows that are equal
// in all of it are ordered by key, in the direction of the last term, so that one
// index serves all of it.
func terms(plan *projection.Plan, order []Order) ([]term, error) {
	if len(order) > MaxOrder {
		return nil, badQuery("order", "at most %d fields", MaxOrder)
	}
	var list []term
	seen := map[string]bool{}
	for _, o := range order {
		col, err := findColumn(plan, o.Field, false)
		if err != nil {
			return nil, badQuery("order", "the read model %s has no field %.100q", plan.Name(), o.Field)
		}
		if _, err := col.normalize(Condition{op: opEq, field: o.Field}); err != nil {
			return nil, badQuery("order", "the field %s has no order", o.Field)
		}
		if seen[o.Field] {
			return nil, badQuery("order", "the field %s stands twice", o.Field)
		}
		seen[o.Field] = true
		list = append(list, term{col, o.Descending, o.Nulls == NullsFirst || o.Nulls == NullsDefault && o.Descending})
		if o.Field == "key" { // unique: what follows would not matter
			return list, nil
		}
	}
	down := len(list) > 0 && list[len(list)-1].descending
	key, _ := findColumn(plan, "key", false)
	return append(list, term{key, down, down}), nil
}

// plain tells whether nulls stand where Postgres puts them by itself.
func (t term) plain() bool { return t.nullsFirst == t.descending }

func (t term) sql() string {
	direction := " asc nulls last"
	switch {
	case t.descending && t.nullsFirst:
		direction = " desc nulls first"
	case t.descending:
		direction = " desc nulls last"
	case t.nullsFirst:
		direction = " asc nulls first"
	}
	return t.expression() + direction
}

func orderSQL(list []term) string {
	parts := make([]string, len(list))
	for i, t := range list {
		parts[i] = t.sql()
	}
	return strings.Join(parts, ", ")
}

// behind returns conditions that together select exactly the rows behind a place
// in the order, each row by one of them. They are kept apart because each is one
// range of an index; as one disjunction they would be a filter, and a page would
// cost as much as all pages before it.
func (s *statement) behind(list []term, at []*string) []string {
	var ranges []string
	equal := ""
	for i, t := range list {
		x, v := t.expression(), at[i]
		switch {
		case v == nil && t.nullsFirst:
			ranges = append(ranges, equal+x+" is not null")
		case v != nil:
			than := " > "
			if t.descending {
				than = " < "
			}
			ranges = append(ranges, equal+x+than+t.cast(s.bind(*v)))
			if !t.nullsFirst && t.name != "key" {
				ranges = append(ranges, equal+x+" is null")
			}
		}
		switch {
		case i == len(list)-1: // nothing follows that could be equal so far
		case v == nil:
			equal += x + " is null and "
		default:
			equal += x + " = " + t.cast(s.bind(*v)) + " and "
		}
	}
	return ranges
}
