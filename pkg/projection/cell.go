package projection

import (
	"bytes"
	"cmp"
	"math"
	"math/big"
	"strconv"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// cell is one value of a row; the zero value is null. Which of its parts has a
// meaning follows from its column.
type cell struct {
	set bool
	// i is a Bool, Long, Timestamp, Date or TimeOfDay, the bits of a Double, and the
	// unscaled value of a Decimal.
	i int64
	// big stands in for i where 64 bits do not suffice: in a Decimal, and in a sum
	// of a shared row, whose parts must not overflow in one order and not in another.
	// It is never changed in place.
	big *big.Int
	// b is the text of a String, Enum or UUID, Bytes, or JSON as jsonb prints it, in
	// memory of the row's own.
	b []byte
	// items are those of a set, a map or of children.
	items *items
}

func (c *cell) float() float64     { return math.Float64frombits(uint64(c.i)) }
func (c *cell) setFloat(f float64) { c.i = int64(math.Float64bits(f)) }

// assign takes a value over, into the memory that the cell has.
func (c *cell) assign(v *cell) {
	c.set, c.i, c.big, c.items = v.set, v.i, v.big, nil
	c.b = append(c.b[:0], v.b...)
}

// clear makes the cell null and keeps its memory.
func (c *cell) clear() { *c = cell{b: c.b[:0]} }

// add adds a whole number or an unscaled decimal; what 64 bits do not hold
// becomes big.
func (c *cell) add(v *cell, subtract bool) {
	c.set = true
	if c.big == nil && v.big == nil {
		if sum, ok := addLong(c.i, v.i, subtract); ok {
			c.i = sum
			return
		}
	}
	a, b := c.whole(), v.whole()
	if subtract {
		a.Sub(a, b)
	} else {
		a.Add(a, b)
	}
	c.i, c.big = 0, a
	c.settle()
}

// settle leaves big only what needs it, so that a value has one form.
func (c *cell) settle() {
	if c.big != nil && c.big.IsInt64() {
		c.i, c.big = c.big.Int64(), nil
	}
}

// whole returns the value as a number that the caller may change.
func (c *cell) whole() *big.Int {
	if c.big != nil {
		return new(big.Int).Set(c.big)
	}
	return big.NewInt(c.i)
}

func (c *cell) addFloat(v *cell, subtract bool) {
	c.set = true
	if subtract {
		c.setFloat(positiveZero(c.float() - v.float()))
	} else {
		c.setFloat(positiveZero(c.float() + v.float()))
	}
}

// positiveZero spares rows the negative zero, which jsonb does not have.
func positiveZero(f float64) float64 {
	if f == 0 {
		return 0
	}
	return f
}

func addLong(a, b int64, subtract bool) (int64, bool) {
	if subtract {
		d := a - b
		return d, (d < a) == (b > 0)
	}
	s := a + b
	return s, (s > a) == (b > 0)
}

func compare(a, b *cell, kind avro.Kind) int {
	switch kind {
	case avro.Decimal:
		if a.big != nil || b.big != nil {
			return a.whole().Cmp(b.whole())
		}
		return cmp.Compare(a.i, b.i)
	case avro.Double:
		return cmp.Compare(a.float(), b.float())
	case avro.String, avro.Enum, avro.UUID:
		return bytes.Compare(a.b, b.b)
	default:
		return cmp.Compare(a.i, b.i)
	}
}

// load takes over what an event gives, aliasing it.
func (c *cell) load(v *avro.Value) {
	*c = cell{set: v.Kind != avro.Null}
	switch v.Kind {
	case avro.Decimal:
		var ok bool
		if c.i, ok = avro.SmallDecimal(v.Bytes); !ok {
			c.big = avro.BigDecimal(v.Bytes)
			c.settle()
		}
	case avro.Double, avro.Float:
		c.setFloat(positiveZero(v.Float))
	default:
		c.i, c.b = v.Int, v.Bytes
	}
}

// append appends the value as jsonb prints it.
func (c *cell) append(dst []byte, t valueType) []byte {
	if !c.set {
		return append(dst, "null"...)
	}
	switch t.shape {
	case ShapeSet:
		if t.counted && c.items != nil {
			return strconv.AppendInt(dst, int64(c.items.len()), 10)
		}
		if t.counted { // a row that was read without its state
			return strconv.AppendInt(dst, c.i, 10)
		}
		return c.items.appendSet(dst, t)
	case ShapeMap:
		return c.items.appendMap(dst)
	case ShapeChildren:
		return c.items.appendChildren(dst, t.children)
	}
	switch t.kind {
	case avro.Bool, avro.TimeOfDay, avro.Timestamp, avro.Date, avro.Bytes:
		return avro.Value{Kind: t.kind, Int: c.i, Bytes: c.b}.AppendJSON(dst)
	case avro.Long:
		return c.appendWhole(dst)
	case avro.Double:
		return appendFloat(dst, c.float())
	case avro.Decimal:
		return append(c.appendDecimal(append(dst, '"'), t.scale), '"')
	case avro.JSON:
		return append(dst, c.b...)
	default:
		return strictjson.AppendText(dst, c.b)
	}
}

// appendText appends the value as plain text, as keys have it.
func (c *cell) appendText(dst []byte, t valueType) []byte {
	switch t.kind {
	case avro.Long:
		return c.appendWhole(dst)
	case avro.Decimal:
		return c.appendDecimal(dst, t.scale)
	case avro.Double:
		return avro.Value{Kind: avro.Double, Float: c.float()}.AppendText(dst)
	default:
		return avro.Value{Kind: t.kind, Int: c.i, Bytes: c.b}.AppendText(dst)
	}
}
