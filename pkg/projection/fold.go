package projection

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"math"
	"math/big"
	"slices"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
)

// Outcome says what an event is to a plan.
type Outcome int

const (
	// Filtered: the plan does not use events of this type.
	Filtered Outcome = iota
	// Applies: the event concerns the row of Folder.Key.
	Applies
)

// Poison says why an event cannot be applied, whoever tries.
type Poison struct{ Reason string }

func (e *Poison) Error() string { return e.Reason }

func poison(format string, args ...any) error { return &Poison{fmt.Sprintf(format, args...)} }

// Limits that are decided here, so that live runs and rebuilds agree.
const (
	maxIndexedText = 2000 // bytes; a btree entry holds 2,704
	maxKey         = 2000
)

// Folder folds the events of one partition. It is not safe for concurrent use.
type Folder struct {
	plan      *Plan
	selectors map[selectorKey]*avro.Selector
	values    []avro.Value
	key       []byte
	event     *event.Event
	program   *program
	stamp     string
}

type selectorKey struct {
	writer  *avro.Schema
	program *program
}

// NewFolder returns a folder.
func (p *Plan) NewFolder() *Folder {
	return &Folder{plan: p, selectors: make(map[selectorKey]*avro.Selector)}
}

// Uses tells whether the plan uses events of a type.
func (p *Plan) Uses(category, typ string) bool { return p.program(category, typ) != nil }

// program returns what is done with events of a type, by the name that they are
// stored under: that of the type or a former one.
func (p *Plan) program(category, typ string) *program {
	if known := p.programs[category][typ]; known != nil || len(p.former) == 0 {
		return known
	}
	return p.former[[2]string{category, typ}]
}

// Begin decodes what the plan needs of an event, whose value was written with
// the schema writer, and finds the key of its row. The event must stay as it is
// until Apply. The error is a [*Poison].
func (f *Folder) Begin(e *event.Event, writer *avro.Schema) (Outcome, error) {
	f.event, f.program, f.stamp = e, f.plan.program(e.Category, e.Type), ""
	if f.program == nil {
		return Filtered, nil
	}
	_, body, err := avro.SplitFrame(e.Value)
	if err != nil {
		return Applies, poison("%v", err)
	}
	selector := f.selectors[selectorKey{writer, f.program}]
	if selector == nil {
		if selector, err = f.program.selector(writer); err != nil {
			return Applies, err
		}
		f.selectors[selectorKey{writer, f.program}] = selector
	}
	f.values = slices.Grow(f.values[:0], len(f.program.paths))[:len(f.program.paths)]
	if err := selector.Select(body, f.values); err != nil {
		return Applies, poison("%v", err)
	}
	return Applies, f.makeKey()
}

// selector returns what reads the fields of the newest version from payloads of a
// writer's schema, through upcasters where there are any.
func (p *program) selector(writer *avro.Schema) (*avro.Selector, error) {
	upgrade, err := p.typ.Upgrade(writer)
	if err != nil && writer.Name() != p.typ.Name {
		return nil, poison("the value is a %s, the event a %s", writer.Name(), p.typ.Name)
	}
	if err != nil {
		return nil, poison("the schema of the value cannot be read as that of %s: %v", p.typ.Name, err)
	}
	selector, err := upgrade.Selector(p.paths)
	if err != nil {
		return nil, poison("the schema of the value cannot be read as that of %s: %v", p.typ.Name, err)
	}
	return selector, nil
}

// Key returns the key of the row that the event concerns; it is valid until the
// next Begin.
func (f *Folder) Key() []byte { return f.key }

var bucketLayouts = map[string]string{"hour": "2006-01-02T15:00:00Z", "day": "2006-01-02", "month": "2006-01", "year": "2006"}

func (f *Folder) makeKey() error {
	k := &f.plan.key
	f.key = f.key[:0]
	switch k.kind {
	case keyStream:
		f.key = append(f.key, f.event.Stream...)
	case keyConstant:
		f.key = append(f.key, k.value...)
	case keyBucket:
		t := f.event.Time
		if k.bucket == "$recorded" {
			t = f.event.Recorded
		}
		f.key = t.Std().AppendFormat(f.key, bucketLayouts[k.by])
	default:
		for i, s := range f.program.key {
			v := f.value(s)
			if v.Kind == avro.Null {
				return poison("the event has no value for the key")
			}
			if i > 0 {
				f.key = append(f.key, ',')
			}
			if len(f.program.key) > 1 {
				f.key = appendEscaped(f.key, v.AppendText(nil))
			} else {
				f.key = v.AppendText(f.key)
			}
		}
	}
	if len(f.key) == 0 || len(f.key) > maxKey {
		return poison("the key has %d bytes: want 1 to %d", len(f.key), maxKey)
	}
	return nil
}

// appendEscaped percent-encodes all but RFC 3986's unreserved characters.
func appendEscaped(dst, text []byte) []byte {
	const digits = "0123456789ABCDEF"
	for _, c := range text {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '~':
			dst = append(dst, c)
		default:
			dst = append(dst, '%', digits[c>>4], digits[c&15])
		}
	}
	return dst
}

// value returns what a source gives for the present event; constants apart.
func (f *Folder) value(s source) avro.Value {
	e := f.event
	switch s.kind {
	case fromField:
		return f.values[s.index]
	case fromTime:
		return avro.Value{Kind: avro.Timestamp, Int: int64(e.Time)}
	case fromRecorded:
		return avro.Value{Kind: avro.Timestamp, Int: int64(e.Recorded)}
	case fromID:
		return avro.Value{Kind: avro.UUID, Bytes: e.ID.Append(nil)}
	case fromType:
		return avro.Value{Kind: avro.String, Bytes: []byte(f.program.typ.Name)}
	case fromStream:
		return avro.Value{Kind: avro.String, Bytes: []byte(e.Stream)}
	case fromVersion:
		return avro.Value{Kind: avro.Long, Int: e.Version}
	case fromActor:
		if e.Metadata.Actor == "" {
			return avro.Value{}
		}
		return avro.Value{Kind: avro.String, Bytes: []byte(e.Metadata.Actor)}
	default:
		return avro.Value{}
	}
}

// cellOf returns a source's value as a cell, which aliases the event.
func (f *Folder) cellOf(s source) cell {
	if s.kind == fromConstant {
		return s.value
	}
	v := f.value(s)
	switch v.Kind {
	case avro.Null:
		return cell{}
	case avro.Decimal:
		return cell{set: true, big: avro.BigDecimal(v.Bytes)}
	default:
		return cell{set: true, i: v.Int, f: v.Float, b: v.Bytes}
	}
}

// Apply folds the event of the last Begin into its row. On an error, which is a
// [*Poison], the row is as it was.
func (f *Folder) Apply(row *Row) error {
	if f.program.remove {
		row.exists, row.cells, row.stamps = false, nil, nil
		return nil
	}
	if err := f.check(row); err != nil {
		return err
	}
	if !row.exists {
		row.create()
		f.setKeyFields(row)
	}
	for i := range f.program.ops {
		f.apply(row, &f.program.ops[i])
	}
	return nil
}

// check finds out whether all operators can be applied, before any is.
func (f *Folder) check(row *Row) error {
	for i := range f.program.ops {
		o := &f.program.ops[i]
		field := &f.plan.fields[o.field]
		v := f.cellOf(o.source)
		if field.indexed && len(v.b) > maxIndexedText {
			return poison("the field %s is indexed and would have %d bytes: at most %d", field.Name, len(v.b), maxIndexedText)
		}
		if o.kind != opAdd && o.kind != opSubtract || !v.set {
			continue
		}
		if err := f.checkSum(row, o, field, v); err != nil {
			return err
		}
	}
	return nil
}

// checkSum refuses sums beyond their type. Operators of one field within one
// event are few and checked one by one against the present value.
func (f *Folder) checkSum(row *Row, o *op, field *Field, v cell) error {
	now := field.initial
	if row.exists {
		now = row.cells[o.field]
	}
	switch field.Kind {
	case avro.Long:
		if _, ok := addLong(now.i, v.i, o.kind == opSubtract); !ok {
			return poison("the sum %s would leave 64 bits", field.Name)
		}
	case avro.Double:
		sum := now.f + v.f
		if o.kind == opSubtract {
			sum = now.f - v.f
		}
		if math.IsInf(sum, 0) {
			return poison("the sum %s would not be finite", field.Name)
		}
	}
	return nil
}

func addLong(a, b int64, subtract bool) (int64, bool) {
	if subtract {
		d := a - b
		return d, (d < a) == (b > 0)
	}
	s := a + b
	return s, (s > a) == (b > 0)
}

func (f *Folder) setKeyFields(row *Row) {
	for i := range f.plan.fields {
		if !f.plan.fields[i].Key {
			continue
		}
		switch {
		case f.plan.key.kind != keyFields:
			row.cells[i] = cell{set: true, b: bytes.Clone(f.key)}
		case len(f.program.key) == 1:
			row.cells[i] = f.cellOf(f.program.key[0]).clone()
		default:
			part := slices.Index(f.plan.key.parts, f.plan.fields[i].Name)
			row.cells[i] = f.cellOf(f.program.key[part]).clone()
		}
	}
}

// clone returns the cell with memory of its own.
func (c cell) clone() cell {
	c.b = bytes.Clone(c.b)
	return c
}

func (f *Folder) apply(row *Row, o *op) {
	v := f.cellOf(o.source)
	to := &row.cells[o.field]
	switch o.kind {
	case opAssign:
		if f.plan.shared && !f.later(row, o.field) {
			return
		}
		*to = v.clone()
	case opFirst:
		f.first(row, o.field, v)
	case opAdd, opSubtract:
		if v.set {
			to.add(v, o.kind == opSubtract)
		}
	case opMin, opMax:
		if v.set && (!to.set || compare(v, *to, f.plan.fields[o.field].Kind) < 0 == (o.kind == opMin)) {
			*to = v.clone()
		}
	}
}

// later notes the event's stamp if it is the greatest so far. Within one event
// the last operator wins.
func (f *Folder) later(row *Row, field int) bool {
	if stamp := f.stampOf(); stamp >= row.stamps[field] {
		row.stamps[field] = stamp
		return true
	}
	return false
}

// first keeps the first value that is not null.
func (f *Folder) first(row *Row, field int, v cell) {
	if !v.set {
		return
	}
	if !f.plan.shared {
		if !row.cells[field].set {
			row.cells[field] = v.clone()
		}
		return
	}
	if stamp := f.stampOf(); row.stamps[field] == "" || stamp < row.stamps[field] {
		row.stamps[field], row.cells[field] = stamp, v.clone()
	}
}

// stampOf returns the event's place in the order of (event time, category, slot,
// seq), as text whose byte order is that order.
func (f *Folder) stampOf() string {
	if f.stamp == "" {
		e := f.event
		b := appendHex(make([]byte, 0, 48+len(e.Category)), uint64(e.Time)^1<<63, 16)
		b = append(append(append(b, '/'), e.Category...), '/')
		b = appendHex(b, uint64(e.Slot), 4)
		f.stamp = string(appendHex(append(b, '/'), uint64(e.Seq), 16))
	}
	return f.stamp
}

func appendHex(dst []byte, v uint64, width int) []byte {
	var raw [8]byte
	for i := range raw {
		raw[i] = byte(v >> (56 - 8*i))
	}
	var text [16]byte
	hex.Encode(text[:], raw[:])
	return append(dst, text[16-width:]...)
}

func (c *cell) add(v cell, subtract bool) {
	sign := int64(1)
	if subtract {
		sign = -1
	}
	switch {
	case v.big != nil:
		sum := new(big.Int)
		if c.big != nil {
			sum.Set(c.big)
		}
		if subtract {
			sum.Sub(sum, v.big)
		} else {
			sum.Add(sum, v.big)
		}
		c.big = sum
	default:
		c.i += sign * v.i
		c.f += float64(sign) * v.f
	}
	c.set = true
}

func compare(a, b cell, kind avro.Kind) int {
	switch kind {
	case avro.Decimal:
		return a.big.Cmp(b.big)
	case avro.Double:
		return cmp.Compare(a.f, b.f)
	case avro.String, avro.Enum, avro.UUID:
		return bytes.Compare(a.b, b.b)
	default:
		return cmp.Compare(a.i, b.i)
	}
}
