package avro

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"
)

// ErrCorrupt is wrapped by every error about a payload that is not what its
// schema says: truncated, with a length beyond its end, an unknown branch or
// symbol, invalid text, or bytes left over.
var ErrCorrupt = errors.New("corrupt Avro payload")

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

// Errors that need no data, so that a hostile payload costs no formatting.
var (
	errTruncated = corrupt("it ends inside a value")
	errVarint    = corrupt("a number of more bytes than its type holds")
	errRange     = corrupt("an int beyond 32 bits")
	errBool      = corrupt("a boolean that is neither 0 nor 1")
	errBranch    = corrupt("a union branch that does not exist")
	errSymbol    = corrupt("an enum symbol that does not exist")
	errText      = corrupt("text that is not valid UTF-8 or holds NUL")
	errFloat     = corrupt("a float that is not finite")
	errLeftOver  = corrupt("bytes are left over")
	errBlock     = corrupt("a block that is not as long as it says")
	errTime      = corrupt("a time outside the years 0001 to 9999")
	errUUID      = corrupt("a uuid that is none")
	errDecimal   = corrupt("a decimal of more digits than its precision")
)

// Scan walks a whole payload and returns an error that wraps [ErrCorrupt] unless
// it is exactly one value of the schema. It allocates nothing and looks at each
// byte at most once, so its time is bounded by the payload's length.
func (s *Schema) Scan(payload []byte) error {
	c := cursor{in: payload}
	if err := c.skip(s.root); err != nil {
		return err
	}
	return c.end()
}

// cursor reads a payload. Nothing is read beyond the end.
type cursor struct {
	in []byte
	at int
}

func (c *cursor) end() error {
	if c.at != len(c.in) {
		return errLeftOver
	}
	return nil
}

// long reads a zig-zag varint of at most ten bytes.
func (c *cursor) long() (int64, error) {
	if c.at < len(c.in) && c.in[c.at] < 0x80 { // one byte is by far the most frequent
		b := int64(c.in[c.at])
		c.at++
		return b>>1 ^ -(b & 1), nil
	}
	v, n := binary.Uvarint(c.in[c.at:])
	if n == 0 {
		return 0, errTruncated
	}
	if n < 0 {
		return 0, errVarint
	}
	c.at += n
	return int64(v>>1) ^ -int64(v&1), nil
}

func (c *cursor) int() (int64, error) {
	v, err := c.long()
	if err == nil && (v > math.MaxInt32 || v < math.MinInt32) {
		return 0, errRange
	}
	return v, err
}

func (c *cursor) take(n int64) ([]byte, error) {
	if n < 0 || n > int64(len(c.in)-c.at) {
		return nil, errTruncated
	}
	b := c.in[c.at : c.at+int(n) : c.at+int(n)]
	c.at += int(n)
	return b, nil
}

// bytes reads a length and as many bytes, which alias the payload.
func (c *cursor) bytes() ([]byte, error) {
	n, err := c.long()
	if err != nil {
		return nil, err
	}
	return c.take(n)
}

func (c *cursor) text() ([]byte, error) {
	b, err := c.bytes()
	if err != nil {
		return nil, err
	}
	if !validText(b) {
		return nil, errText
	}
	return b, nil
}

func validText(b []byte) bool { return utf8.Valid(b) && bytes.IndexByte(b, 0) < 0 }

func (c *cursor) bool() (int64, error) {
	b, err := c.take(1)
	if err != nil {
		return 0, err
	}
	if b[0] > 1 {
		return 0, errBool
	}
	return int64(b[0]), nil
}

func (c *cursor) float(k Kind) (float64, error) {
	var f float64
	if k == Float {
		b, err := c.take(4)
		if err != nil {
			return 0, err
		}
		f = float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))
	} else {
		b, err := c.take(8)
		if err != nil {
			return 0, err
		}
		f = math.Float64frombits(binary.LittleEndian.Uint64(b))
	}
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0, errFloat
	}
	return f, nil
}

// branch reads the index of a union and returns its branch.
func (c *cursor) branch(n *node) (int, error) {
	i, err := c.long()
	if err != nil {
		return 0, err
	}
	if i < 0 || i >= int64(len(n.branches)) {
		return 0, errBranch
	}
	return int(i), nil
}

func (c *cursor) symbol(n *node) (int, error) {
	i, err := c.long()
	if err != nil {
		return 0, err
	}
	if i < 0 || i >= int64(len(n.symbols)) {
		return 0, errSymbol
	}
	return int(i), nil
}

// skip walks one value of the type n.
func (c *cursor) skip(n *node) error {
	switch n.kind {
	case Record:
		for _, f := range n.fields {
			if err := c.skip(f.node); err != nil {
				return err
			}
		}
		return nil
	case Union:
		i, err := c.branch(n)
		if err != nil {
			return err
		}
		return c.skip(n.branches[i])
	case Array, Map:
		var b blocks
		for {
			if more, err := c.next(&b); !more {
				return err
			}
			if err := c.skipItem(n); err != nil {
				return err
			}
		}
	default:
		var v Value
		return c.leaf(n, &v)
	}
}

func (c *cursor) skipItem(n *node) error {
	if n.kind == Map {
		if _, err := c.text(); err != nil {
			return err
		}
	}
	return c.skip(n.items)
}

// blocks is where a walk through the items of an array or a map stands.
type blocks struct {
	left int64 // items of the present block
	end  int   // of the present block, if it said its length; else 0
}

// next tells whether another item follows. As every item takes at least one
// byte, a count beyond what is left is refused at once. A negative count is
// followed by the block's length in bytes.
func (c *cursor) next(b *blocks) (bool, error) {
	if b.left > 0 {
		b.left--
		return true, nil
	}
	if b.end > 0 && c.at != b.end {
		return false, errBlock
	}
	count, err := c.long()
	if err != nil || count == 0 {
		return false, err
	}
	b.end = 0
	if count < 0 {
		size, err := c.long()
		if err != nil {
			return false, err
		}
		if count == math.MinInt64 || size < 0 || size > int64(len(c.in)-c.at) {
			return false, errBlock
		}
		count, b.end = -count, c.at+int(size)
	}
	if count > int64(len(c.in)-c.at) {
		return false, errTruncated
	}
	b.left = count - 1
	return true, nil
}

// leaf reads one value that is neither record, union, array nor map.
func (c *cursor) leaf(n *node, v *Value) (err error) {
	v.Kind = n.kind
	switch n.kind {
	case Null:
	case Bool:
		v.Int, err = c.bool()
	case Int:
		v.Int, err = c.int()
	case Long:
		v.Int, err = c.long()
	case Float, Double:
		v.Float, err = c.float(n.kind)
	case String:
		v.Bytes, err = c.text()
	case UUID:
		if v.Bytes, err = c.bytes(); err == nil && !validUUID(v.Bytes) {
			err = errUUID
		}
	case Enum:
		var i int
		if i, err = c.symbol(n); err == nil {
			v.Int, v.Bytes = int64(i), n.symbolText[i]
		}
	case Fixed:
		v.Kind = Bytes
		v.Bytes, err = c.take(int64(n.size))
	case Bytes:
		v.Bytes, err = c.bytes()
	case Decimal:
		err = c.decimal(n, v)
	default:
		err = c.time(n, v)
	}
	return err
}

func (c *cursor) decimal(n *node, v *Value) (err error) {
	if n.fixed {
		v.Bytes, err = c.take(int64(n.size))
	} else {
		v.Bytes, err = c.bytes()
	}
	v.Int = int64(n.scale)
	if err == nil && !fitsPrecision(v.Bytes, n.precision) {
		return errDecimal
	}
	return err
}

// time reads a Timestamp, a Date or a TimeOfDay.
func (c *cursor) time(n *node, v *Value) (err error) {
	if n.kind == Date || n.kind == TimeOfDay && n.millis {
		v.Int, err = c.int()
	} else {
		v.Int, err = c.long()
	}
	if err != nil {
		return err
	}
	return normalizeTime(n, v)
}
