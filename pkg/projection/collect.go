package projection

import (
	"bytes"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
)

// applyItems folds an operator on a set, a map or children into a cell.
func (f *Folder) applyItems(o *op, to *cell, shared bool) {
	if o.kind == opEmpty {
		to.items = nil
		return
	}
	if to.items == nil {
		to.items = &items{order: orderOf(o.typ)}
	}
	switch o.kind {
	case opInclude, opExclude:
		f.eachItem(&o.source, func(key []byte) { f.setItem(o, to.items, key, nil, shared) })
	case opPut, opDelete:
		var value []byte
		if o.kind == opPut {
			var v cell
			f.cellOf(&o.source, &v)
			value = v.append(nil, valueType{kind: o.typ.items, scale: o.typ.scale})
		}
		f.eachItem(&o.key, func(key []byte) { f.setItem(o, to.items, key, value, shared) })
	case opChild:
		f.eachItem(&o.key, func(key []byte) { f.applyChild(o, to.items, key) })
	}
}

// setItem puts an item or takes it away. The value is the row's from then on.
func (f *Folder) setItem(o *op, s *items, key, value []byte, shared bool) {
	gone := o.kind == opExclude || o.kind == opDelete
	switch {
	case !shared && gone:
		s.drop(key)
	case !shared, o.typ.counted:
		x := s.at(key)
		x.gone, x.value = false, value
	default:
		if x := s.at(key); f.wins(&x.stamp, true) {
			x.gone, x.value = gone, value
		}
	}
}

func (f *Folder) applyChild(o *op, s *items, key []byte) {
	if o.drop {
		s.drop(key)
		return
	}
	if !slices.ContainsFunc(o.child, func(c op) bool { return f.holds(c.when) }) {
		return
	}
	x := s.at(key)
	if x.row == nil {
		child := o.typ.children
		x.gone, x.row = false, make([]cell, len(child.columns))
		initialize(x.row, child.columns)
		var k cell
		f.cellOf(&o.key, &k)
		x.row[child.key].assign(&k)
	}
	for i := range o.child {
		if c := &o.child[i]; f.holds(c.when) {
			f.apply(c, x.row, nil)
		}
	}
}

// eachItem calls each with the text of a scalar, or of the items of a list; null
// has none. The text is valid until the next event.
func (f *Folder) eachItem(s *source, each func(key []byte)) {
	v := f.value(s)
	switch v.Kind {
	case avro.Null:
	case avro.JSON:
		_ = eachScalar(v.Bytes, func(text []byte, _ cell) error { // it was made by us
			each(text)
			return nil
		})
	default:
		each(f.keep(v.AppendText))
	}
}

// wins notes the event's stamp if it is to stand: as the latest of all, or as the
// first. Within one event the later operator is the later one.
func (f *Folder) wins(have *stamp, latest bool) bool {
	now := f.stampOf()
	if have.seq != 0 {
		if c := now.compare(*have); latest && c < 0 || !latest && c >= 0 {
			return false
		}
	}
	*have = now
	return true
}

func (f *Folder) stampOf() stamp {
	if f.stamp.seq == 0 {
		e := f.event
		f.stamp = stamp{time: e.Time, seq: e.Seq, slot: uint16(e.Slot)}
		for i, name := range f.plan.categories {
			if name == e.Category {
				f.stamp.category = uint16(i)
			}
		}
	}
	return f.stamp
}

// Transforms of text, and of times to the text of their bucket.
var transforms = []string{"trim", "lower", "upper", "hour", "day", "month", "year"}

// transform applies transforms in order; null stays null.
func (f *Folder) transform(v avro.Value, names []string) (avro.Value, error) {
	for _, name := range names {
		if v.Kind == avro.Null {
			return v, nil
		}
		switch name {
		case "trim":
			v.Bytes = bytes.TrimSpace(v.Bytes)
		case "lower":
			v.Bytes = f.keep(func(b []byte) []byte { return append(b, strings.ToLower(string(v.Bytes))...) })
		case "upper":
			v.Bytes = f.keep(func(b []byte) []byte { return append(b, strings.ToUpper(string(v.Bytes))...) })
		default:
			at := v.Int
			if v.Kind == avro.Date {
				at *= 24 * 60 * 60 * 1_000_000
			}
			v = avro.Value{Kind: avro.String, Bytes: f.keep(func(b []byte) []byte {
				return event.Time(at).Std().AppendFormat(b, bucketLayouts[name])
			})}
		}
	}
	if v.Kind == avro.String && !utf8.Valid(v.Bytes) {
		return v, poison("a transformed text is not valid UTF-8")
	}
	return v, nil
}
