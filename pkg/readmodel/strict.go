package readmodel

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/projection"
)

// Strict mode: on a large table, a filter or an order that no index serves is
// refused, with the index that would serve it. What is served may still be slow
// (a range that holds most rows, sorted otherwise), and then runs out of time.

// estimate is how many rows a version has, roughly.
type estimate struct {
	mu   sync.Mutex
	rows int64
	at   time.Time
}

const estimateFor = 10 * time.Second

func (r *Reader) estimate(ctx context.Context, m *Model) (int64, error) {
	m.estimate.mu.Lock()
	rows, at := m.estimate.rows, m.estimate.at
	m.estimate.mu.Unlock()
	if !at.IsZero() && time.Since(at) < estimateFor {
		return rows, nil
	}
	err := r.pool.QueryRow(ctx, `select greatest(c.reltuples::bigint, pg_stat_get_live_tuples(c.oid), case when c.reltuples < 0 then pg_relation_size(c.oid) / 500 end)
		from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'refold' and c.relname = $1`, m.Version.Leaf).Scan(&rows)
	if err == nil {
		m.estimate.mu.Lock()
		m.estimate.rows, m.estimate.at = rows, time.Now()
		m.estimate.mu.Unlock()
	}
	return rows, err
}

// strict tells whether an index serves a query, and refuses one that none serves on
// a table that is large.
func (r *Reader) strict(ctx context.Context, m *Model, where Condition, order []term) (served bool, err error) {
	refusal := m.served(where, order)
	if refusal == nil || r.strictRows < 0 {
		return refusal == nil, nil
	}
	rows, err := r.estimate(ctx, m)
	if err == nil && rows > r.strictRows {
		err = refusal
	}
	return false, err
}

// use is how a condition could use an index.
type use uint8

const (
	useNone  use = iota
	useRange     // a range of one field
	useList      // some values of one field
	useOne       // one value of one field
)

func (c Condition) use() use {
	if len(c.path) > 0 {
		return useNone
	}
	switch c.op {
	case opEq, opIs:
		return useOne
	case opIn:
		return useList
	case opGt, opGte, opLt, opLte:
		return useRange
	case opLike:
		if !strings.ContainsAny(c.values[0][:min(1, len(c.values[0]))], `%*_\`) && c.values[0] != "" {
			return useRange // a fixed beginning
		}
	}
	return useNone
}

// served returns nil when an index serves the filter and one serves the order, and
// else the refusal.
func (m *Model) served(where Condition, order []term) error {
	fixed, ok := m.filterServed(where)
	if !ok {
		return m.refuse("filter", m.filterIndex(where))
	}
	if fixed == useList || boundKeys(where) != nil || len(conjuncts(where)) == 1 && conjuncts(where)[0].op == opOr {
		return nil // what an index has found is sorted
	}
	for _, index := range m.indexes {
		if orderServed(where, index, order) {
			return nil
		}
	}
	var fields []string
	for _, p := range conjuncts(where) {
		if p.use() == useOne && p.field != "key" && m.sorts(p.field) && !slices.Contains(fields, p.field) {
			fields = append(fields, p.field)
		}
	}
	for _, t := range order {
		if t.name != "key" && !slices.Contains(fields, t.name) {
			fields = append(fields, t.name)
		}
	}
	return m.refuse("order", fields)
}

// indexesOf returns the fields of each index of values in order, the primary key's
// last.
func indexesOf(plan *projection.Plan) (list [][]string) {
	for _, x := range plan.Indexes() {
		if !x.Contains {
			list = append(list, append(slices.Clone(x.Fields), "key"))
		}
	}
	return append(list, []string{"key"})
}

// contains tells whether an index of members serves a condition.
func (m *Model) contains(c Condition) bool {
	return c.op == opContains && len(c.path) == 0 && slices.ContainsFunc(m.Plan.Indexes(), func(x projection.Index) bool { return x.Contains && x.Fields[0] == c.field })
}

// filterServed tells whether an index finds the rows of a condition, and by what.
func (m *Model) filterServed(c Condition) (by use, ok bool) {
	all := conjuncts(c)
	if len(all) == 0 {
		return useNone, true
	}
	for _, p := range all {
		if p.op == opOr && !slices.ContainsFunc(p.parts, func(part Condition) bool { _, ok := m.filterServed(part); return !ok || part.op == opAll }) {
			ok = true
		}
		if m.contains(p) {
			by, ok = max(by, useList), true
		}
		for _, index := range m.indexes {
			if index[0] == p.field && p.use() != useNone {
				by, ok = max(by, p.use()), true
			}
		}
	}
	return by, ok
}

// filterIndex names the fields by which a filter could be served; nil when no
// index can serve it.
func (m *Model) filterIndex(where Condition) (fields []string) {
	for _, want := range []use{useOne, useList, useRange} {
		for _, p := range conjuncts(where) {
			if p.use() == want && m.sorts(p.field) && !slices.Contains(fields, p.field) {
				fields = append(fields, p.field)
			}
		}
		if len(fields) > 0 && want != useOne {
			break // behind a range an index helps no further
		}
	}
	if len(fields) > 0 {
		return fields
	}
	for _, p := range conjuncts(where) {
		if p.op == opContains && len(p.path) == 0 && m.hasMembers(p.field) {
			return []string{p.field}
		}
	}
	return nil
}

// sorts tells whether an index can have a field's values in order.
func (m *Model) sorts(name string) bool {
	col, err := findColumn(m.Plan, name, false)
	return err == nil && col.kind != avro.JSON
}

// hasMembers tells whether an index can have a field's members.
func (m *Model) hasMembers(name string) bool {
	return slices.ContainsFunc(m.Plan.Fields(), func(f projection.Field) bool {
		return f.Name == name && f.Kind == avro.JSON && f.Shape != projection.ShapeObject && f.Shape != projection.ShapeChildren
	})
}

// orderServed tells whether an index yields rows in an order, once the fields that
// have one value are left out.
func orderServed(where Condition, index []string, order []term) bool {
	one := map[string]bool{}
	for _, p := range conjuncts(where) {
		if p.use() == useOne {
			one[p.field] = true
		}
	}
	rest := slices.DeleteFunc(slices.Clone(order), func(t term) bool { return one[t.name] })
	columns := slices.DeleteFunc(slices.Clone(index), func(name string) bool { return one[name] })
	if len(rest) > len(columns) {
		return false
	}
	for i, t := range rest {
		if t.name != columns[i] || t.name != "key" && !t.plain() || t.descending != rest[0].descending {
			return false
		}
	}
	return true
}

func (m *Model) refuse(parameter string, fields []string) error {
	if len(fields) == 0 {
		return badQuery(parameter, "the read model %s is large and no index can serve this: add a condition that one serves", m.Plan.Name())
	}
	return &QueryError{Parameter: parameter, Index: fields,
		Reason: "the read model " + m.Plan.Name() + " is large and no index serves this: declare {fields: [" + strings.Join(fields, ", ") + "]}"}
}
