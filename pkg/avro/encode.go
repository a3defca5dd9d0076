package avro

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"time"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// DataError says that JSON, fine as such, does not fit the schema.
type DataError struct {
	// Pointer is the place in the document that the reader reads.
	Pointer string
	Msg     string
}

func (e *DataError) Error() string { return e.Msg + " at " + e.Pointer }

func misfit(r *strictjson.Reader, format string, args ...any) error {
	return &DataError{Pointer: r.Pointer(), Msg: fmt.Sprintf(format, args...)}
}

// EncodeJSON reads one value from r and appends it to dst in Avro, in one pass.
//
// Records are objects with plain field names; a field with a default may be left
// out, an unknown one is refused. Unions are written without type wrappers.
// Integers are numbers without fraction and exponent, longs may be strings too;
// floats are finite. Bytes and fixed are base64, decimals strings at exactly the
// schema's scale, timestamps RFC 3339, dates 2006-01-02, times of day
// 15:04:05.999999. Nothing is rounded, truncated or replaced.
//
// The error is a [*DataError] for data that does not fit and a
// [*strictjson.Error] for what is no acceptable JSON; dst is worthless then.
func (s *Schema) EncodeJSON(dst []byte, r *strictjson.Reader) ([]byte, error) {
	return encode(dst, s.root, r)
}

func encode(dst []byte, n *node, r *strictjson.Reader) ([]byte, error) {
	switch n.kind {
	case Record:
		return encodeRecord(dst, n, r)
	case Union:
		return encodeUnion(dst, n, r)
	case Array:
		return encodeArray(dst, n, r)
	case Map:
		return encodeMap(dst, n, r)
	case Null:
		if r.Peek() != strictjson.Null {
			return nil, wrongKind(n, r)
		}
		return dst, r.ReadNull()
	case Bool:
		if r.Peek() != strictjson.Bool {
			return nil, wrongKind(n, r)
		}
		v, err := r.ReadBool()
		return appendBool(dst, v), err
	case Int, Long:
		return encodeInteger(dst, n, r)
	case Float, Double:
		return encodeFloat(dst, n, r)
	default:
		return encodeText(dst, n, r)
	}
}

// wrongKind refuses a value of another kind. What is no value at all, or a
// broken one, is an error of the JSON first.
func wrongKind(n *node, r *strictjson.Reader) error {
	pointer, found := r.Pointer(), r.Peek()
	if err := r.Skip(); err != nil {
		return err
	}
	return &DataError{Pointer: pointer, Msg: fmt.Sprintf("%s where the schema has %s", found, n.kind)}
}

// span is where the encoding of a field lies in dst.
type span struct{ field, start, end int }

func encodeRecord(dst []byte, n *node, r *strictjson.Reader) ([]byte, error) {
	if r.Peek() != strictjson.Object {
		return nil, wrongKind(n, r)
	}
	start := len(dst)
	var few [16]span // most records have no more fields, and then nothing is allocated
	spans := few[:0]
	next := 0
	err := r.ReadObject(func(key []byte) (err error) {
		i := n.fieldIndex(key, next)
		if i < 0 {
			return misfit(r, "the field %q is not in the schema of %s", key, n.name)
		}
		next = i + 1
		from := len(dst)
		if dst, err = encode(dst, n.fields[i].node, r); err != nil {
			return err
		}
		spans = append(spans, span{i, from, len(dst)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if inOrder(spans, len(n.fields)) {
		return dst, nil
	}
	return rearrange(dst, start, n, spans, r)
}

// fieldIndex finds a field by its name, looking first where it belongs when the
// fields come in the schema's order.
func (n *node) fieldIndex(key []byte, guess int) int {
	if guess < len(n.fields) && n.fields[guess].name == string(key) {
		return guess
	}
	for i, f := range n.fields {
		if f.name == string(key) {
			return i
		}
	}
	return -1
}

func inOrder(spans []span, fields int) bool {
	if len(spans) != fields {
		return false
	}
	for i, s := range spans {
		if s.field != i {
			return false
		}
	}
	return true
}

// rearrange puts the encoded fields into the schema's order, with defaults for
// those that were left out.
func rearrange(dst []byte, start int, n *node, spans []span, r *strictjson.Reader) ([]byte, error) {
	given := bytes.Clone(dst[start:])
	dst = dst[:start]
	for i, f := range n.fields {
		at := slices.IndexFunc(spans, func(s span) bool { return s.field == i })
		switch {
		case at >= 0:
			dst = append(dst, given[spans[at].start-start:spans[at].end-start]...)
		case f.hasDefault:
			dst = append(dst, f.def...)
		default:
			return nil, misfit(r, "the field %q is missing and has no default", f.name)
		}
	}
	return dst, nil
}

var kindBytes = map[strictjson.Kind]byte{strictjson.Null: 'n', strictjson.Bool: 'b', strictjson.Number: 'd', strictjson.String: 's', strictjson.Array: 'a', strictjson.Object: 'o'}

func encodeUnion(dst []byte, n *node, r *strictjson.Reader) ([]byte, error) {
	kind := kindBytes[r.Peek()]
	chosen := -1
	for i, b := range n.branches {
		switch {
		case b.jsonKind() == kind:
			chosen = i
		case kind == 's' && b.kind == Long && chosen < 0: // longs may be strings
			chosen = i
		}
	}
	if chosen < 0 {
		return nil, wrongKind(n, r)
	}
	return encode(appendLong(dst, int64(chosen)), n.branches[chosen], r)
}

// encodeArray writes one block. The number of items precedes them and is known
// only behind them, so it gets the room of a long varint, moved together at the end.
func encodeArray(dst []byte, n *node, r *strictjson.Reader) ([]byte, error) {
	if r.Peek() != strictjson.Array {
		return nil, wrongKind(n, r)
	}
	start, count := len(dst), 0
	err := r.ReadArray(func(int) (err error) {
		count++
		dst, err = encode(dst, n.items, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	return closeBlock(dst, start, count), nil
}

func encodeMap(dst []byte, n *node, r *strictjson.Reader) ([]byte, error) {
	if r.Peek() != strictjson.Object {
		return nil, wrongKind(n, r)
	}
	start, count := len(dst), 0
	err := r.ReadObject(func(key []byte) (err error) {
		count++
		dst, err = encode(appendBytes(dst, key), n.items, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	return closeBlock(dst, start, count), nil
}

// closeBlock makes one block of the items from start on.
func closeBlock(dst []byte, start, count int) []byte {
	if count == 0 {
		return append(dst, 0)
	}
	var head [10]byte
	dst = slices.Insert(dst, start, appendLong(head[:0], int64(count))...)
	return append(dst, 0)
}

func encodeInteger(dst []byte, n *node, r *strictjson.Reader) ([]byte, error) {
	var text []byte
	var err error
	switch k := r.Peek(); {
	case k == strictjson.Number:
		text, err = r.ReadNumber()
	case k == strictjson.String && n.kind == Long:
		text, err = r.ReadString()
	default:
		return nil, wrongKind(n, r)
	}
	if err != nil {
		return nil, err
	}
	v, ok := parseInteger(text)
	if !ok || n.kind == Int && (v > math.MaxInt32 || v < math.MinInt32) {
		return nil, misfit(r, "%.60q is no %s", text, n.kind)
	}
	return appendLong(dst, v), nil
}

// parseInteger takes an optional minus and digits without leading zeros only.
func parseInteger(text []byte) (int64, bool) {
	digits := text
	if len(digits) > 0 && digits[0] == '-' {
		digits = digits[1:]
	}
	if len(digits) == 0 || len(digits) > 19 || digits[0] == '0' && len(text) > 1 {
		return 0, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	v, err := strconv.ParseInt(string(text), 10, 64)
	return v, err == nil
}

func encodeFloat(dst []byte, n *node, r *strictjson.Reader) ([]byte, error) {
	if r.Peek() != strictjson.Number {
		return nil, wrongKind(n, r)
	}
	text, err := r.ReadNumber()
	if err != nil {
		return nil, err
	}
	bits := 64
	if n.kind == Float {
		bits = 32
	}
	v, err := strconv.ParseFloat(string(text), bits)
	if err != nil {
		return nil, misfit(r, "%s is beyond the range of %s", text, n.kind)
	}
	return appendFloat(dst, n.kind, v), nil
}

// encodeText encodes the types that are strings in JSON.
func encodeText(dst []byte, n *node, r *strictjson.Reader) ([]byte, error) {
	if r.Peek() != strictjson.String {
		return nil, wrongKind(n, r)
	}
	text, err := r.ReadString()
	if err != nil {
		return nil, err
	}
	switch n.kind {
	case String:
		return appendBytes(dst, text), nil
	case UUID:
		if validUUID(text) {
			return appendBytes(dst, text), nil
		}
	case Enum:
		for i, symbol := range n.symbolText {
			if bytes.Equal(symbol, text) {
				return appendLong(dst, int64(i)), nil
			}
		}
	case Bytes, Fixed:
		return encodeBase64(dst, n, text, r)
	case Decimal:
		return encodeDecimal(dst, n, text, r)
	case Timestamp:
		if t, err := event.ParseTime(string(text)); err == nil && !(n.millis && t%1000 != 0) {
			return appendTime(dst, n, int64(t)), nil
		}
	case Date:
		if t, err := time.Parse(time.DateOnly, string(text)); err == nil && t.Year() >= 1 {
			return appendLong(dst, t.Unix()/86400), nil
		}
	case TimeOfDay:
		if t, ok := parseTimeOfDay(string(text)); ok && !(n.millis && t%1000 != 0) {
			return appendTime(dst, n, t), nil
		}
	}
	return nil, misfit(r, "%.60q is no %s that the schema takes", text, n.kind)
}

func appendTime(dst []byte, n *node, us int64) []byte {
	if n.millis {
		return appendLong(dst, floorDiv(us, 1000))
	}
	return appendLong(dst, us)
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// parseTimeOfDay parses 15:04:05 with up to six digits behind a point.
func parseTimeOfDay(s string) (us int64, ok bool) {
	t, err := event.ParseTime("1970-01-01T" + s + "Z")
	return int64(t), err == nil && t >= 0 && int64(t) < dayUS
}

func encodeBase64(dst []byte, n *node, text []byte, r *strictjson.Reader) ([]byte, error) {
	raw, err := base64.StdEncoding.Strict().AppendDecode(nil, text)
	if err != nil || bytes.ContainsAny(text, "\r\n") {
		return nil, misfit(r, "a string that is not base64")
	}
	if n.fixed {
		if len(raw) != n.size {
			return nil, misfit(r, "%d bytes where the schema has exactly %d", len(raw), n.size)
		}
		return append(dst, raw...), nil
	}
	return appendBytes(dst, raw), nil
}

func encodeDecimal(dst []byte, n *node, text []byte, r *strictjson.Reader) ([]byte, error) {
	digits, ok := decimalDigits(text, n.scale)
	if !ok {
		return nil, misfit(r, "%.60q is no decimal with exactly %d digits behind the point", text, n.scale)
	}
	v, ok := new(big.Int).SetString(string(digits), 10)
	if !ok || len(bytes.TrimLeft(bytes.TrimPrefix(digits, []byte("-")), "0")) > n.precision {
		return nil, misfit(r, "%.60q has more than %d digits", text, n.precision)
	}
	raw := twosComplement(v)
	if !n.fixed {
		return appendBytes(dst, raw), nil
	}
	if len(raw) > n.size {
		return nil, misfit(r, "%.60q does not fit %d bytes", text, n.size)
	}
	sign := byte(0)
	if v.Sign() < 0 {
		sign = 0xff
	}
	for range n.size - len(raw) {
		dst = append(dst, sign)
	}
	return append(dst, raw...), nil
}

// decimalDigits takes the point out of a decimal and checks its form: an
// optional minus, digits without leading zeros, exactly scale digits behind.
func decimalDigits(text []byte, scale int) ([]byte, bool) {
	whole, fraction, point := bytes.Cut(text, []byte("."))
	if point != (scale > 0) || len(fraction) != scale || len(text) > 400 {
		return nil, false
	}
	unsigned := bytes.TrimPrefix(whole, []byte("-"))
	if len(unsigned) == 0 || len(unsigned) > 1 && unsigned[0] == '0' {
		return nil, false
	}
	digits := append(append([]byte(nil), whole...), fraction...)
	for _, c := range digits[len(whole)-len(unsigned):] {
		if c < '0' || c > '9' {
			return nil, false
		}
	}
	return digits, true
}

// twosComplement returns the fewest bytes that hold v, big-endian.
func twosComplement(v *big.Int) []byte {
	if v.Sign() >= 0 {
		raw := v.Bytes()
		if len(raw) == 0 || raw[0]&0x80 != 0 {
			raw = append([]byte{0}, raw...)
		}
		return raw
	}
	size := len(new(big.Int).Not(v).Bytes())
	if size == 0 || new(big.Int).Not(v).Bytes()[0]&0x80 != 0 {
		size++
	}
	raw := new(big.Int).Add(v, new(big.Int).Lsh(big.NewInt(1), uint(8*size))).Bytes()
	for len(raw) < size {
		raw = append([]byte{0}, raw...)
	}
	return raw
}
