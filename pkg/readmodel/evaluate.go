package readmodel

import (
	"bytes"
	"encoding/json"
	"math/big"
	"strconv"
	"strings"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/projection"
)

// truth is SQL's three-valued logic.
type truth int8

const (
	isFalse   truth = -1
	isUnknown truth = 0
	isTrue    truth = 1
)

func truthOf(b bool) truth {
	if b {
		return isTrue
	}
	return isFalse
}

// check finds out whether a condition fits a plan.
func (c Condition) check(plan *projection.Plan) error {
	s := &statement{plan: plan}
	_, err := s.sql(c, 0)
	return err
}

// Selects tells whether the condition selects a row of the plan, given as JSON, by
// the same rules as the database: without asking it. The error is a [*QueryError].
func (c Condition) Selects(plan *projection.Plan, key string, row []byte) (bool, error) {
	if err := c.check(plan); err != nil {
		return false, err
	}
	return evaluate(plan, c, key, row), nil
}

// evaluation judges conditions on one row as the database would, for those who
// follow changes: there are too many of them to ask the database for each. The
// condition must fit the plan, see [Condition.check].
type evaluation struct {
	plan    *projection.Plan
	key     string
	members map[string]json.RawMessage
}

func evaluate(plan *projection.Plan, c Condition, key string, row []byte) bool {
	e := &evaluation{plan: plan, key: key}
	if json.Unmarshal(row, &e.members) != nil {
		return false // what the database gave is JSON
	}
	return e.truth(c) == isTrue
}

func (e *evaluation) truth(c Condition) truth {
	switch c.op {
	case opAll:
		return isTrue
	case opNot:
		return -e.truth(c.parts[0])
	case opAnd:
		result := isTrue
		for _, p := range c.parts {
			result = min(result, e.truth(p))
		}
		return result
	case opOr:
		result := isFalse
		for _, p := range c.parts {
			result = max(result, e.truth(p))
		}
		return result
	default:
		return e.compare(c)
	}
}

func (e *evaluation) compare(c Condition) truth {
	col, err := findColumn(e.plan, c.field, len(c.path) > 0)
	if err != nil {
		return isFalse
	}
	values, err := col.normalize(c)
	if err != nil {
		return isFalse
	}
	raw := e.members[c.field]
	for _, step := range c.path {
		raw = member(raw, step)
	}
	text := textOf(raw)
	if c.field == "key" && len(c.path) == 0 {
		text = &e.key
	}
	switch {
	case c.op == opIs:
		return truthOf(text == nil && values[0] == "null" || text != nil && *text == values[0])
	case text == nil:
		return isUnknown
	case c.op == opContains:
		return truthOf(containsAll(raw, values))
	case c.op == opLike:
		return truthOf(like([]rune(values[0]), []rune(*text)))
	case c.op == opILike:
		return truthOf(like([]rune(lowerASCII(values[0])), []rune(lowerASCII(*text))))
	}
	result := isFalse
	for _, v := range values {
		result = max(result, truthOf(holds(c.op, col.compare(*text, v))))
	}
	return result
}

func holds(op operator, order int) bool {
	switch op {
	case opEq, opIn:
		return order == 0
	case opNeq:
		return order != 0
	case opGt:
		return order > 0
	case opGte:
		return order >= 0
	case opLt:
		return order < 0
	default:
		return order <= 0
	}
}

// compare compares two values as the database does. The first comes from a row.
func (c column) compare(a, b string) int {
	switch c.kind {
	case avro.Long, avro.Double, avro.Decimal:
		x, err1 := strconv.ParseInt(a, 10, 64)
		y, err2 := strconv.ParseInt(b, 10, 64)
		if err1 == nil && err2 == nil {
			return big.NewInt(x).Cmp(big.NewInt(y))
		}
		p, ok1 := new(big.Rat).SetString(a)
		q, ok2 := new(big.Rat).SetString(b)
		if ok1 && ok2 {
			return p.Cmp(q)
		}
		return 0
	case avro.Timestamp:
		x, err1 := event.ParseTime(a)
		y, err2 := event.ParseTime(b)
		if err1 == nil && err2 == nil {
			return big.NewInt(int64(x)).Cmp(big.NewInt(int64(y)))
		}
		return 0
	default: // false comes before true too
		return strings.Compare(a, b)
	}
}

// member is one step into a nested value: of a list by its index.
func member(raw json.RawMessage, name string) json.RawMessage {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return nil
	}
	switch raw[0] {
	case '{':
		var members map[string]json.RawMessage
		if json.Unmarshal(raw, &members) == nil {
			return members[name]
		}
	case '[':
		var list []json.RawMessage
		i, err := strconv.Atoi(name)
		if err != nil || json.Unmarshal(raw, &list) != nil {
			return nil
		}
		if i < 0 {
			i += len(list)
		}
		if i >= 0 && i < len(list) {
			return list[i]
		}
	}
	return nil
}

func containsAll(raw json.RawMessage, values []string) bool {
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return false
	}
	held := map[string]bool{}
	for _, item := range list {
		if text := textOf(item); text != nil && bytes.HasPrefix(bytes.TrimSpace(item), []byte{'"'}) {
			held[*text] = true
		}
	}
	for _, v := range values {
		if !held[v] {
			return false
		}
	}
	return true
}

// lowerASCII is what ilike does under the collation "C".
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// like matches a pattern with % for any text, _ for one character and \ before
// what stands for itself. It keeps one place to come back to, so its time is at
// most the product of the lengths.
func like(pattern, text []rune) bool {
	p, t, star, from := 0, 0, -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '%':
			star, from = p, t
			p++
			continue
		case p < len(pattern) && pattern[p] == '_':
			p, t = p+1, t+1
			continue
		case p+1 < len(pattern) && pattern[p] == '\\' && pattern[p+1] == text[t]:
			p, t = p+2, t+1
			continue
		case p < len(pattern) && pattern[p] != '\\' && pattern[p] == text[t]:
			p, t = p+1, t+1
			continue
		case star < 0:
			return false
		}
		from++
		p, t = star+1, from
	}
	for p < len(pattern) && pattern[p] == '%' {
		p++
	}
	return p == len(pattern)
}
