package strictjson

import (
	"bytes"
	"cmp"
	"errors"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// JSONB writes JSON as Postgres prints it from a jsonb: members by the length of
// their name and then by its bytes, the last of equal names, one space behind
// colons and commas, numbers without exponents, as few escapes as there can be.
// So a row is, byte for byte, what the table will show. The zero value is ready;
// it is not safe for concurrent use.
type JSONB struct {
	in      []byte
	at      int
	members []member // of all open objects
	scratch []byte
}

// member is one member of an open object.
type member struct {
	name       []byte // without escapes
	start, end int    // of name and value in the output
}

var errNotJSON = errors.New("it is no JSON")

// Append appends src, which is not checked as a [Reader] would, in that form. The
// error says that it is no JSON or is nested too deeply.
func (c *JSONB) Append(dst, src []byte) ([]byte, error) {
	c.in, c.at, c.members = src, 0, c.members[:0]
	dst, err := c.value(dst, 0)
	if err != nil {
		return dst, err
	}
	if c.space(); c.at != len(c.in) {
		return dst, errNotJSON
	}
	return dst, nil
}

const maxJSONBDepth = 200

func (c *JSONB) value(dst []byte, depth int) ([]byte, error) {
	c.space()
	if c.at >= len(c.in) || depth > maxJSONBDepth {
		return dst, errNotJSON
	}
	switch b := c.in[c.at]; {
	case b == '{':
		return c.object(dst, depth)
	case b == '[':
		return c.array(dst, depth)
	case b == '"':
		raw, err := c.text()
		if err != nil {
			return dst, err
		}
		return AppendText(dst, raw), nil
	case b == '-' || b >= '0' && b <= '9':
		return c.number(dst)
	}
	for _, word := range [...]string{"null", "true", "false"} {
		if rest := c.in[c.at:]; len(rest) >= len(word) && string(rest[:len(word)]) == word {
			c.at += len(word)
			return append(dst, word...), nil
		}
	}
	return dst, errNotJSON
}

func (c *JSONB) space() {
	for c.at < len(c.in) && (c.in[c.at] == ' ' || c.in[c.at] == '\n' || c.in[c.at] == '\t' || c.in[c.at] == '\r') {
		c.at++
	}
}

// next consumes b if it comes next.
func (c *JSONB) next(b byte) bool {
	if c.space(); c.at < len(c.in) && c.in[c.at] == b {
		c.at++
		return true
	}
	return false
}

func (c *JSONB) array(dst []byte, depth int) (_ []byte, err error) {
	c.at++
	dst = append(dst, '[')
	for first := true; !c.next(']'); first = false {
		if !first {
			if !c.next(',') {
				return dst, errNotJSON
			}
			dst = append(dst, ", "...)
		}
		if dst, err = c.value(dst, depth+1); err != nil {
			return dst, err
		}
	}
	return append(dst, ']'), nil
}

func (c *JSONB) object(dst []byte, depth int) (_ []byte, err error) {
	c.at++
	begin, first := len(dst), len(c.members)
	dst = append(dst, '{')
	sorted := true
	for !c.next('}') {
		if len(c.members) > first {
			if !c.next(',') {
				return dst, errNotJSON
			}
			dst = append(dst, ", "...)
		}
		if c.space(); c.at >= len(c.in) || c.in[c.at] != '"' {
			return dst, errNotJSON
		}
		m := member{start: len(dst)}
		if m.name, err = c.text(); err != nil {
			return dst, err
		}
		if !c.next(':') {
			return dst, errNotJSON
		}
		if dst, err = c.value(append(AppendText(dst, m.name), ": "...), depth+1); err != nil {
			return dst, err
		}
		m.end = len(dst)
		sorted = sorted && (len(c.members) == first || compareNames(c.members[len(c.members)-1], m) < 0)
		c.members = append(c.members, m)
	}
	if !sorted {
		dst = c.reorder(dst, begin, c.members[first:])
	}
	c.members = c.members[:first]
	return append(dst, '}'), nil
}

func compareNames(a, b member) int {
	return cmp.Or(cmp.Compare(len(a.name), len(b.name)), bytes.Compare(a.name, b.name))
}

// reorder sorts the members of the object that begins at begin.
func (c *JSONB) reorder(dst []byte, begin int, members []member) []byte {
	slices.SortStableFunc(members, compareNames)
	c.scratch = append(c.scratch[:0], dst[begin:]...)
	dst = append(dst[:begin], '{')
	for i, m := range members {
		if i+1 < len(members) && compareNames(m, members[i+1]) == 0 {
			continue // a later one of the same name wins
		}
		if len(dst) > begin+1 {
			dst = append(dst, ", "...)
		}
		dst = append(dst, c.scratch[m.start-begin:m.end-begin]...)
	}
	return dst
}

// text reads a string and returns it without escapes.
func (c *JSONB) text() ([]byte, error) {
	c.at++
	start := c.at
	for ; c.at < len(c.in); c.at++ {
		switch c.in[c.at] {
		case '"':
			c.at++
			return c.in[start : c.at-1], nil
		case '\\':
			return c.escapedText(start)
		}
	}
	return nil, errNotJSON
}

func (c *JSONB) escapedText(start int) ([]byte, error) {
	out := slices.Clone(c.in[start:c.at])
	for c.at < len(c.in) {
		b := c.in[c.at]
		c.at++
		if b == '"' {
			return out, nil
		}
		if b != '\\' {
			out = append(out, b)
			continue
		}
		if c.at >= len(c.in) {
			return nil, errNotJSON
		}
		b = c.in[c.at]
		c.at++
		if b == 'u' {
			r, ok := c.unit()
			if ok && utf16.IsSurrogate(r) && c.at+1 < len(c.in) && c.in[c.at] == '\\' && c.in[c.at+1] == 'u' {
				c.at += 2
				var low rune
				low, ok = c.unit()
				r = utf16.DecodeRune(r, low)
			}
			if !ok {
				return nil, errNotJSON
			}
			out = utf8.AppendRune(out, r)
			continue
		}
		i := bytes.IndexByte([]byte(`"\/bfnrt`), b)
		if i < 0 {
			return nil, errNotJSON
		}
		out = append(out, "\"\\/\b\f\n\r\t"[i])
	}
	return nil, errNotJSON
}

func (c *JSONB) unit() (rune, bool) {
	if c.at+4 > len(c.in) {
		return 0, false
	}
	n, err := strconv.ParseUint(string(c.in[c.at:c.at+4]), 16, 16)
	c.at += 4
	return rune(n), err == nil
}

// AppendText appends text, which is valid UTF-8, as a JSON string with Postgres's escapes.
func AppendText(dst, text []byte) []byte {
	const digits = "0123456789abcdef"
	dst = append(dst, '"')
	start := 0
	for i, b := range text {
		if b >= 0x20 && b != '"' && b != '\\' {
			continue
		}
		dst = append(dst, text[start:i]...)
		start = i + 1
		switch b {
		case '"', '\\':
			dst = append(dst, '\\', b)
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', digits[b>>4], digits[b&15])
		}
	}
	return append(append(dst, text[start:]...), '"')
}

// number appends a number without its exponent, with the digits behind the point
// that were written.
func (c *JSONB) number(dst []byte) ([]byte, error) {
	start, point, exponent := c.at, -1, 0
	zero := true
	i := c.at
	if c.in[i] == '-' {
		i++
	}
	first := i
	for ; i < len(c.in); i++ {
		b := c.in[i]
		if b >= '0' && b <= '9' {
			zero = zero && b == '0'
			continue
		}
		if b == '.' && point < 0 {
			point = i
			continue
		}
		break
	}
	end := i
	if i < len(c.in) && (c.in[i] == 'e' || c.in[i] == 'E') {
		for i++; i < len(c.in) && (c.in[i] == '+' || c.in[i] == '-' || c.in[i] >= '0' && c.in[i] <= '9'); i++ {
		}
		var err error
		if exponent, err = strconv.Atoi(string(c.in[end+1 : i])); err != nil || exponent > 1<<17 || exponent < -1<<17 {
			return dst, errNotJSON
		}
	}
	if c.at = i; end == first {
		return dst, errNotJSON
	}
	if exponent == 0 {
		if zero {
			start = first // there is no negative zero
		}
		return append(dst, c.in[start:end]...), nil
	}
	return appendShifted(dst, c.in[start:first], c.in[first:end], point-first, exponent, zero), nil
}

// appendShifted appends digits with the point moved by exponent places.
func appendShifted(dst, sign, text []byte, point, exponent int, zero bool) []byte {
	digits := text
	fraction := 0
	if point >= 0 {
		digits = append(slices.Clone(text[:point]), text[point+1:]...)
		fraction = len(text) - point - 1
	}
	fraction -= exponent
	for ; fraction < 0; fraction++ {
		digits = append(digits[:len(digits):len(digits)], '0')
	}
	if !zero {
		dst = append(dst, sign...)
	}
	for len(digits) <= fraction {
		digits = append([]byte{'0'}, digits...)
	}
	whole := bytes.TrimLeft(digits[:len(digits)-fraction], "0")
	if len(whole) == 0 {
		whole = []byte{'0'}
	}
	dst = append(dst, whole...)
	if fraction > 0 {
		dst = append(append(dst, '.'), digits[len(digits)-fraction:]...)
	}
	return dst
}
