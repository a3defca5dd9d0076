package projection

import (
	"slices"
	"strconv"

	"github.com/refoldhq/refold/pkg/avro"
)

// Row is one row while it is folded: the whole of it for rows of one stream, a
// part that started empty for shared rows. It is not safe for concurrent use.
type Row struct {
	plan   *Plan
	exists bool
	cells  []cell  // by column
	stamps []stamp // of a shared row, by column: of the value that stands
}

const cellSize = 64 // of a cell, in bytes

// NewRow returns a row that does not exist yet.
func (p *Plan) NewRow() *Row { return &Row{plan: p} }

// Exists tells whether there is a row: it was created and not removed.
func (r *Row) Exists() bool { return r.exists }

// create makes the row as it is before its first event.
func (r *Row) create() {
	r.exists = true
	if r.cells == nil {
		r.cells = make([]cell, len(r.plan.columns))
		if r.plan.shared {
			r.stamps = make([]stamp, len(r.plan.columns))
		}
	}
	initialize(r.cells, r.plan.columns)
}

func initialize(cells []cell, columns []column) {
	for i := range cells {
		cells[i].assign(&columns[i].initial)
		if columns[i].typ.shape >= ShapeSet {
			cells[i].set, cells[i].items = true, nil
		}
	}
}

// remove makes the row one that does not exist.
func (r *Row) remove() {
	r.exists = false
	clear(r.stamps)
}

// Size estimates the memory that the row takes, in bytes.
func (r *Row) Size() int {
	n := 96 + len(r.cells)*cellSize + len(r.stamps)*24
	for i := range r.cells {
		n += cap(r.cells[i].b) + r.cells[i].items.size()
	}
	return n
}

// AppendData appends the row as Postgres prints the jsonb that it becomes: every
// field of the definition, null until set. So a row that was stored and read
// again, and one that was not, have the same bytes. The row must exist.
func (r *Row) AppendData(dst []byte) []byte {
	return r.plan.layout.append(dst, r.cells)
}

// AppendState appends what merging and reloading need and clients never see, as
// Postgres prints it, or nothing for rows that need none.
func (r *Row) AppendState(dst []byte) []byte {
	if len(r.plan.stateful) == 0 && !r.plan.shared {
		return dst
	}
	dst = append(dst, '{')
	first := len(dst)
	for _, i := range r.plan.stateful {
		c, col := &r.cells[i], &r.plan.columns[i]
		if len(dst) > first {
			dst = append(dst, ", "...)
		}
		dst = append(append(append(dst, '"'), col.name...), `": `...)
		switch {
		case c.items != nil && len(c.items.list) > 0:
			dst = c.items.appendState(dst, col.typ, r.plan.categories)
		case r.stamps != nil && r.stamps[i].seq != 0:
			dst = append(r.stamps[i].append(append(dst, '"'), r.plan.categories), '"')
		default:
			dst = append(dst, "null"...)
		}
	}
	return append(dst, '}')
}

// layout is how cells become an object: pieces of text, each but the last with
// the column whose value follows it.
type layout struct {
	parts []layoutPart
	tail  []byte
}

type layoutPart struct {
	before []byte
	column int
	typ    valueType
}

func (l *layout) append(dst []byte, cells []cell) []byte {
	for i := range l.parts {
		p := &l.parts[i]
		dst = append(dst, p.before...)
		dst = cells[p.column].append(dst, p.typ)
	}
	return append(dst, l.tail...)
}

// newLayout lays fields out as jsonb does: by the length of their names, then by
// their bytes.
func newLayout(fields []Field, columns []column) *layout {
	l := &layout{}
	l.add(fields, columns)
	return l
}

func (l *layout) add(fields []Field, columns []column) {
	l.tail = append(l.tail, '{')
	sorted := slices.Clone(fields)
	slices.SortFunc(sorted, func(a, b Field) int { return compareNames(a.Name, b.Name) })
	for i := range sorted {
		f := &sorted[i]
		if i > 0 {
			l.tail = append(l.tail, ", "...)
		}
		l.tail = append(append(append(l.tail, '"'), f.Name...), `": `...)
		if f.Shape == ShapeObject {
			l.add(f.Fields, columns)
			continue
		}
		l.parts = append(l.parts, layoutPart{before: l.tail, column: f.column, typ: columns[f.column].typ})
		l.tail = nil
	}
	l.tail = append(l.tail, '}')
}

func appendFloat(dst []byte, f float64) []byte { return strconv.AppendFloat(dst, f, 'f', -1, 64) }

func (c *cell) appendWhole(dst []byte) []byte {
	if c.big != nil {
		return c.big.Append(dst, 10)
	}
	return strconv.AppendInt(dst, c.i, 10)
}

func (c *cell) appendDecimal(dst []byte, scale int) []byte {
	if c.big != nil {
		return avro.AppendDecimal(dst, c.big, scale)
	}
	return avro.AppendSmallDecimal(dst, c.i, scale)
}
