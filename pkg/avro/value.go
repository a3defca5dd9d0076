package avro

import (
	"encoding/base64"
	"math"
	"math/big"
	"strconv"

	"github.com/google/uuid"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// Value is one decoded value. Which of its parts has a meaning follows from its
// kind; the zero value is null.
type Value struct {
	Kind Kind
	// Int is the value of a Bool (0 or 1), Int, Long, Timestamp (microseconds
	// since 1970), Date (days since 1970) and TimeOfDay (microseconds since
	// midnight), the index of an Enum's symbol, and the scale of a Decimal.
	Int int64
	// Float is the value of a Float or Double; it is finite.
	Float float64
	// Bytes is the text of a String, Enum or UUID, the Bytes, the unscaled value
	// of a Decimal in two's complement, big-endian, or rendered JSON. It aliases
	// the payload unless the kind is JSON.
	Bytes []byte
}

const (
	minDate = -719162 // 0001-01-01
	maxDate = 2932896 // 9999-12-31
	dayUS   = 24 * 60 * 60 * 1_000_000
)

// normalizeTime makes microseconds of milliseconds and checks the bounds.
func normalizeTime(n *node, v *Value) error {
	if n.millis {
		if v.Int > math.MaxInt64/1000 || v.Int < math.MinInt64/1000 {
			return errTime
		}
		v.Int *= 1000
	}
	ok := true
	switch n.kind {
	case Timestamp:
		ok = v.Int >= int64(event.MinTime) && v.Int <= int64(event.MaxTime)
	case Date:
		ok = v.Int >= minDate && v.Int <= maxDate
	case TimeOfDay:
		ok = v.Int >= 0 && v.Int < dayUS
	}
	if !ok {
		return errTime
	}
	return nil
}

func validUUID(b []byte) bool {
	if len(b) != 36 {
		return false
	}
	_, err := uuid.ParseBytes(b)
	return err == nil
}

// pow10 are the powers of ten that an int64 holds.
var pow10 = func() (p [19]int64) {
	p[0] = 1
	for i := 1; i < len(p); i++ {
		p[i] = p[i-1] * 10
	}
	return p
}()

// fitsPrecision tells whether a decimal has at most so many digits.
func fitsPrecision(b []byte, precision int) bool {
	if len(b) == 0 {
		return false
	}
	if v, ok := SmallDecimal(b); ok {
		return precision >= len(pow10) || v < pow10[precision] && v > -pow10[precision]
	}
	if (8*len(b)-1)*1000 <= precision*3321 { // 2^(8n-1) <= 10^precision, as 10 > 2^3.321
		return true
	}
	if len(b) > 512 { // a precision that needs more is refused by no schema parser, but by us
		return false
	}
	return len(new(big.Int).Abs(BigDecimal(b)).Text(10)) <= precision
}

// SmallDecimal returns the unscaled value of a Decimal's Bytes if eight of them
// hold it.
func SmallDecimal(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 8 {
		return 0, false
	}
	v := int64(int8(b[0]))
	for _, c := range b[1:] {
		v = v<<8 | int64(c)
	}
	return v, true
}

// BigDecimal returns the unscaled value of a Decimal's Bytes.
func BigDecimal(b []byte) *big.Int {
	v := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0]&0x80 != 0 {
		v.Sub(v, new(big.Int).Lsh(big.NewInt(1), uint(8*len(b))))
	}
	return v
}

// AppendDecimal appends a decimal's text: the unscaled value with so many
// digits behind the point.
func AppendDecimal(dst []byte, unscaled *big.Int, scale int) []byte {
	return appendScaled(dst, unscaled.Append(nil, 10), scale)
}

// AppendSmallDecimal is AppendDecimal for what 64 bits hold.
func AppendSmallDecimal(dst []byte, unscaled int64, scale int) []byte {
	var digits [20]byte
	return appendScaled(dst, strconv.AppendInt(digits[:0], unscaled, 10), scale)
}

func appendScaled(dst, digits []byte, scale int) []byte {
	if len(digits) > 0 && digits[0] == '-' {
		dst, digits = append(dst, '-'), digits[1:]
	}
	if scale == 0 {
		return append(dst, digits...)
	}
	if len(digits) <= scale {
		dst = append(dst, '0', '.')
		for range scale - len(digits) {
			dst = append(dst, '0')
		}
		return append(dst, digits...)
	}
	dst = append(dst, digits[:len(digits)-scale]...)
	return append(append(dst, '.'), digits[len(digits)-scale:]...)
}

// AppendJSON appends the value as it stands in JSON, see [Schema.AppendJSON].
func (v Value) AppendJSON(dst []byte) []byte {
	switch v.Kind {
	case Bool:
		return strconv.AppendBool(dst, v.Int != 0)
	case Int, Long:
		return strconv.AppendInt(dst, v.Int, 10)
	case Float:
		return appendJSONFloat(dst, v.Float, 32)
	case Double:
		return appendJSONFloat(dst, v.Float, 64)
	case JSON:
		return append(dst, v.Bytes...)
	case Null:
		return append(dst, "null"...)
	case String, Enum, UUID:
		return strictjson.AppendText(dst, v.Bytes)
	case Bytes:
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, v.Bytes)
		return append(dst, '"')
	default:
		dst = append(dst, '"')
		dst = v.AppendText(dst)
		return append(dst, '"')
	}
}

// AppendText appends the value as plain text, as a row's key has it.
func (v Value) AppendText(dst []byte) []byte {
	switch v.Kind {
	case String, Enum, UUID:
		return append(dst, v.Bytes...)
	case Bytes:
		return base64.StdEncoding.AppendEncode(dst, v.Bytes)
	case Timestamp:
		return event.Time(v.Int).Append(dst)
	case Date:
		return event.Time(v.Int*dayUS).Std().AppendFormat(dst, "2006-01-02")
	case TimeOfDay:
		return event.Time(v.Int).Std().AppendFormat(dst, "15:04:05.999999")
	case Decimal:
		if small, ok := SmallDecimal(v.Bytes); ok {
			return AppendSmallDecimal(dst, small, int(v.Int))
		}
		return AppendDecimal(dst, BigDecimal(v.Bytes), int(v.Int))
	default:
		return v.AppendJSON(dst)
	}
}

// appendJSONFloat writes the shortest text that reads back the same, without an
// exponent where that is not much longer, as ECMAScript does.
func appendJSONFloat(dst []byte, f float64, bits int) []byte {
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		return strconv.AppendFloat(dst, f, 'e', -1, bits)
	}
	return strconv.AppendFloat(dst, f, 'f', -1, bits)
}
