package readmodel

import (
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
)

// normalize checks the values of a condition against the column's type and
// returns them as they are compared.
func (c column) normalize(cond Condition) ([]string, error) {
	switch cond.op {
	case opIs:
		word := strings.ToLower(cond.values[0])
		if word != "null" && (c.kind != avro.Bool || word != "true" && word != "false") {
			return nil, badQuery(cond.field, "is takes null, and true or false for booleans")
		}
		return []string{word}, nil
	case opLike, opILike:
		return c.normalizePattern(cond)
	case opContains:
		if c.kind != avro.JSON {
			return nil, badQuery(cond.field, "cs asks about lists, and the field is of the type %s", c.kind)
		}
	default:
		if c.kind == avro.JSON {
			return nil, badQuery(cond.field, "the field holds nested values: name one as %s->member, ask for null, or what a list holds by cs", cond.field)
		}
	}
	values := slices.Clone(cond.values)
	for i, v := range values {
		normal, ok := c.normalizeValue(v)
		if !ok {
			return nil, badQuery(cond.field, "%.60q is no value of the type %s", v, c.kind)
		}
		values[i] = normal
	}
	for _, p := range cond.path {
		if !validText(p) {
			return nil, badQuery(cond.field, "the path is no text")
		}
	}
	return values, nil
}

// normalizePattern takes * for %, and refuses a pattern that ends in the middle of
// an escape, which is an error of the server.
func (c column) normalizePattern(cond Condition) ([]string, error) {
	if c.kind != avro.String && c.kind != avro.Enum && c.kind != avro.UUID && c.kind != avro.Date {
		return nil, badQuery(cond.field, "like compares text, and the field is of the type %s", c.kind)
	}
	pattern := strings.ReplaceAll(cond.values[0], "*", "%")
	escapes := len(pattern) - len(strings.TrimRight(pattern, `\`))
	if !validText(pattern) || escapes%2 == 1 || len(pattern) > 1000 {
		return nil, badQuery(cond.field, "%.60q is no pattern", cond.values[0])
	}
	return []string{pattern}, nil
}

func validText(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// normalizeValue tells whether a text is a value of the column's type, and returns
// the form in which rows hold it.
func (c column) normalizeValue(v string) (string, bool) {
	switch c.kind {
	case avro.Long:
		return v, isNumber(v, false, 0)
	case avro.Double:
		return v, isNumber(v, true, -1)
	case avro.Decimal:
		return v, isNumber(v, false, c.scale)
	case avro.Bool:
		return v, v == "true" || v == "false"
	case avro.Timestamp:
		t, err := event.ParseTime(v)
		return t.String(), err == nil
	case avro.Date:
		_, err := time.Parse(time.DateOnly, v)
		return v, err == nil
	case avro.TimeOfDay:
		t, err := event.ParseTime("1970-01-01T" + v + "Z")
		return strings.TrimSuffix(strings.TrimPrefix(t.String(), "1970-01-01T"), "Z"), err == nil
	case avro.UUID:
		id, err := uuid.Parse(v)
		return id.String(), err == nil && len(v) == 36
	case avro.Bytes:
		_, err := base64.StdEncoding.DecodeString(v)
		return v, err == nil
	default:
		return v, validText(v)
	}
}

const (
	maxDigits   = 34
	maxExponent = 400
)

// isNumber tells whether a text is a decimal number of at most 34 digits, with at
// most scale behind the point (any number when negative) and, where allowed, an
// exponent up to 400: 9 kB of them become 131 MB in the server.
func isNumber(v string, exponent bool, scale int) bool {
	mantissa, power, hasPower := strings.Cut(strings.ToLower(v), "e")
	if hasPower {
		n, err := strconv.Atoi(power)
		if !exponent || err != nil || n < -maxExponent || n > maxExponent {
			return false
		}
	}
	if mantissa != "" && (mantissa[0] == '-' || mantissa[0] == '+') {
		mantissa = mantissa[1:]
	}
	whole, fraction, hasPoint := strings.Cut(mantissa, ".")
	if whole == "" || hasPoint && fraction == "" || len(whole)+len(fraction) > maxDigits || scale >= 0 && len(fraction) > scale {
		return false
	}
	return strings.Trim(whole+fraction, "0123456789") == ""
}
