package query

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// compiled is one list query.
type compiled struct {
	plan   *projection.Plan
	query  readmodel.Query
	limit  int
	fields []string // nil: all
	order  []orderTerm
	shape  string // what a cursor is bound to
}

type orderTerm struct {
	name       string
	expression string
	cast       string
	descending bool
}

const (
	defaultLimit = 100
	maxLimit     = 1000
)

// compile makes SQL of a query string: names from the plan, values bound.
func compile(plan *projection.Plan, values url.Values) (*compiled, error) {
	c := &compiled{plan: plan, limit: defaultLimit}
	where := []string{"true"}
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	cursor := ""
	for _, name := range names {
		list := values[name]
		var err error
		switch name {
		case "limit":
			c.limit, err = parseLimit(list[0])
		case "cursor":
			cursor = list[0]
		case "select":
			err = c.parseSelect(list[0])
		case "count":
			if c.query.Count = list[0] == "exact"; !c.query.Count && list[0] != "none" && list[0] != "planned" {
				err = problem.BadRequest("count is exact, planned or none")
			}
		case "order":
			err = c.parseOrder(list[0])
		default:
			for _, condition := range list {
				var sql string
				if sql, err = c.condition(name, condition); err != nil {
					break
				}
				where = append(where, sql)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	if !slices.ContainsFunc(c.order, func(t orderTerm) bool { return t.name == "key" }) {
		c.order = append(c.order, orderTerm{name: "key", expression: `key`, cast: `::text collate "C"`})
	}
	c.shape = c.describe(values)
	if cursor != "" {
		sql, err := c.after(cursor)
		if err != nil {
			return nil, err
		}
		where = append(where, sql)
	}
	var terms []string
	for _, t := range c.order {
		direction := " asc nulls last"
		if t.descending {
			direction = " desc nulls last"
		}
		terms = append(terms, t.expression+direction)
	}
	c.query.Where, c.query.Order, c.query.Limit = strings.Join(where, " and "), strings.Join(terms, ", "), c.limit+1
	return c, nil
}

func parseLimit(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxLimit {
		return 0, problem.BadRequest("limit is a number from 1 to 1000")
	}
	return n, nil
}

// field returns the SQL of a field's value and the cast of values compared with it.
func (c *compiled) field(name string) (expression, cast string, kind avro.Kind, err error) {
	if name == "key" {
		return "key", `::text collate "C"`, avro.String, nil
	}
	for _, f := range c.plan.Fields() {
		if f.Name != name {
			continue
		}
		switch f.Kind {
		case avro.Long, avro.Double, avro.Decimal:
			cast = "::text::numeric"
		case avro.Bool:
			cast = "::text::boolean"
		case avro.Timestamp:
			cast = "::text::timestamptz"
		case avro.JSON:
			return "", "", 0, problem.BadRequest("the field " + name + " holds nested values, which cannot be compared")
		default:
			cast = `::text collate "C"`
		}
		return readmodel.Expression(f), cast, f.Kind, nil
	}
	return "", "", 0, problem.BadRequest("the read model has no field "+strconv.Quote(name)).With("parameter", name)
}

func (c *compiled) parseSelect(text string) error {
	for name := range strings.SplitSeq(text, ",") {
		known := name == "key" || slices.ContainsFunc(c.plan.Fields(), func(f projection.Field) bool { return f.Name == name })
		if !known {
			return problem.BadRequest("the read model has no field "+strconv.Quote(name)).With("parameter", "select")
		}
		c.fields = append(c.fields, name)
	}
	return nil
}

func (c *compiled) parseOrder(text string) error {
	for part := range strings.SplitSeq(text, ",") {
		name, direction, _ := strings.Cut(part, ".")
		expression, cast, _, err := c.field(name)
		if err != nil {
			return err
		}
		if direction != "" && direction != "asc" && direction != "desc" {
			return problem.BadRequest("order is field, field.asc or field.desc, not " + strconv.Quote(part))
		}
		c.order = append(c.order, orderTerm{name, expression, cast, direction == "desc"})
	}
	return nil
}

var comparisons = map[string]string{"eq": "=", "neq": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}

// condition compiles field=op.value.
func (c *compiled) condition(name, text string) (string, error) {
	expression, cast, kind, err := c.field(name)
	if err != nil {
		return "", err
	}
	negated := strings.HasPrefix(text, "not.")
	op, value, found := strings.Cut(strings.TrimPrefix(text, "not."), ".")
	if !found {
		return "", problem.BadRequest("the filter of "+name+" is op.value").With("parameter", name)
	}
	var sql string
	switch {
	case comparisons[op] != "":
		if err := check(kind, value); err != nil {
			return "", err
		}
		sql = expression + " " + comparisons[op] + " " + c.bind(value) + cast
	case op == "is":
		word, ok := map[string]string{"null": "null", "true": "true", "false": "false"}[value]
		if !ok || word != "null" && kind != avro.Bool {
			return "", problem.BadRequest("is takes null, and true or false for booleans")
		}
		sql = expression + " is " + word
	case op == "in":
		if sql, err = c.in(expression, cast, kind, value); err != nil {
			return "", err
		}
	case op == "like" || op == "ilike":
		if kind != avro.String && kind != avro.Enum && kind != avro.UUID {
			return "", problem.BadRequest("like compares text, and " + name + " is of the type " + kind.String())
		}
		sql = expression + " " + op + " " + c.bind(strings.ReplaceAll(value, "*", "%")) + "::text"
	default:
		return "", problem.BadRequest("unknown operator "+strconv.Quote(op)).With("parameter", name)
	}
	if negated {
		sql = "not (" + sql + ")"
	}
	return "(" + sql + ")", nil
}

const maxIn = 1000

func (c *compiled) in(expression, cast string, kind avro.Kind, value string) (string, error) {
	if len(value) < 2 || value[0] != '(' || value[len(value)-1] != ')' {
		return "", problem.BadRequest("in takes a list in parentheses")
	}
	items, err := splitList(value[1 : len(value)-1])
	if err != nil {
		return "", err
	}
	if len(items) > maxIn {
		return "", problem.BadRequest("in takes at most 1000 values")
	}
	var bound []string
	for _, item := range items {
		if err := check(kind, item); err != nil {
			return "", err
		}
		bound = append(bound, c.bind(item)+cast)
	}
	return expression + " in (" + strings.Join(bound, ", ") + ")", nil
}

// splitList splits at commas outside of double quotes; \ escapes inside them.
func splitList(text string) (items []string, err error) {
	var item strings.Builder
	quoted := false
	for i := 0; i < len(text); i++ {
		switch ch := text[i]; {
		case ch == '"':
			quoted = !quoted
		case ch == '\\' && quoted && i+1 < len(text):
			i++
			item.WriteByte(text[i])
		case ch == ',' && !quoted:
			items = append(items, item.String())
			item.Reset()
		default:
			item.WriteByte(ch)
		}
	}
	if quoted {
		return nil, problem.BadRequest("a quote in the list is not closed")
	}
	return append(items, item.String()), nil
}

// check refuses a value that does not fit a field's type.
func check(kind avro.Kind, value string) error {
	ok := !strings.Contains(value, "\x00")
	switch kind {
	case avro.Long, avro.Double, avro.Decimal:
		_, err := strconv.ParseFloat(value, 64)
		ok = err == nil && len(value) <= 400 && strings.Trim(value, "0123456789+-.eE") == ""
	case avro.Bool:
		ok = value == "true" || value == "false"
	case avro.Timestamp:
		_, err := event.ParseTime(value)
		ok = err == nil
	}
	if !ok {
		return problem.BadRequest(fmt.Sprintf("%.60q is no value of the type %s", value, kind))
	}
	return nil
}

func (c *compiled) bind(value any) string {
	c.query.Args = append(c.query.Args, value)
	return "$" + strconv.Itoa(len(c.query.Args))
}

// describe identifies the query apart from its limit and cursor.
func (c *compiled) describe(values url.Values) string {
	h := fnv.New64a()
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	fmt.Fprint(h, c.plan.Name(), c.plan.Hash())
	for _, name := range names {
		if name != "cursor" && name != "limit" && name != "select" && name != "count" {
			fmt.Fprintf(h, "&%q=%q", name, values[name])
		}
	}
	return strconv.FormatUint(h.Sum64(), 36)
}

// cursor is where a page ended: the values that it is ordered by. Values and not
// positions, so it stays good while rows come and go.
type cursor struct {
	Shape  string    `json:"s"`
	Values []*string `json:"v"`
}

func (c *compiled) cursorAfter(row json.RawMessage, key string) string {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(row, &members); err != nil {
		return "" // what the database gave is JSON
	}
	at := cursor{Shape: c.shape}
	for _, t := range c.order {
		if t.name == "key" {
			at.Values = append(at.Values, &key)
			continue
		}
		at.Values = append(at.Values, textOf(members[t.name]))
	}
	raw, err := json.Marshal(at)
	if err != nil {
		return "" // strings only
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

func textOf(raw json.RawMessage) *string {
	if raw == nil || string(raw) == "null" {
		return nil
	}
	var text string
	if json.Unmarshal(raw, &text) != nil {
		text = string(raw)
	}
	return &text
}

// after compiles "behind the cursor" by the order, nulls last.
func (c *compiled) after(text string) (string, error) {
	bad := problem.BadRequest("the cursor was changed or belongs to another query").With("parameter", "cursor")
	raw, err := base64.RawURLEncoding.DecodeString(text)
	var at cursor
	if err != nil || json.Unmarshal(raw, &at) != nil || at.Shape != c.shape || len(at.Values) != len(c.order) {
		return "", bad
	}
	var alternatives []string
	equal := "true"
	for i, t := range c.order {
		v := at.Values[i]
		if v == nil { // nulls are last, so nothing of this field is behind
			equal += " and " + t.expression + " is null"
			continue
		}
		_, _, kind, err := c.field(t.name)
		if err != nil || check(kind, *v) != nil {
			return "", bad
		}
		bound := c.bind(*v) + t.cast
		than := ">"
		if t.descending {
			than = "<"
		}
		alternatives = append(alternatives, fmt.Sprintf("(%s and (%s %s %s or %s is null))", equal, t.expression, than, bound, t.expression))
		equal += fmt.Sprintf(" and %s = %s", t.expression, bound)
	}
	if len(alternatives) == 0 {
		return "", bad
	}
	return "(" + strings.Join(alternatives, " or ") + ")", nil
}
