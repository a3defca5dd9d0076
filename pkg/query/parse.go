package query

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// listRequest is a list query as a client wrote it.
type listRequest struct {
	query  readmodel.ListQuery
	fields selection
}

// bad returns the error of one parameter.
func bad(parameter, reason string) error {
	return &readmodel.QueryError{Parameter: parameter, Reason: reason}
}

// parameters reads those of the URL.
func parameters(r *http.Request) (url.Values, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, problem.BadRequest("the query string is malformed")
	}
	return values, nil
}

// noParameters refuses a request that has any.
func noParameters(r *http.Request) error {
	if r.URL.RawQuery == "" {
		return nil
	}
	values, err := parameters(r)
	for name := range values {
		return bad(name, "there are no parameters here")
	}
	return err
}

// parseGet reads the parameters of a read by key.
func parseGet(r *http.Request) (fields selection, err error) {
	if r.URL.RawQuery == "" {
		return nil, nil
	}
	values, err := parameters(r)
	for name, texts := range values {
		switch {
		case name != "select":
			return nil, bad(name, "a read by key takes select only")
		case len(texts) != 1:
			return nil, bad(name, "stands more than once")
		}
		if fields, err = parseSelection(texts[0]); err != nil {
			return nil, err
		}
	}
	return fields, err
}

// parseList reads the parameters of a list. Names and values are judged later, by
// the plan of the version that answers.
func parseList(values url.Values) (l listRequest, err error) {
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names) // so that the same query has one form
	var conditions []readmodel.Condition
	for _, name := range names {
		switch name {
		case "limit", "cursor", "select", "count", "order":
			if len(values[name]) != 1 {
				return l, bad(name, "stands more than once")
			}
			err = l.parseOption(name, values[name][0])
		default:
			conditions, err = parseFilters(conditions, name, values[name])
		}
		if err != nil {
			return l, err
		}
	}
	l.query.Where = readmodel.And(conditions...)
	return l, nil
}

func (l *listRequest) parseOption(name, value string) (err error) {
	switch name {
	case "limit":
		if l.query.Limit, err = strconv.Atoi(value); err != nil || l.query.Limit < 1 || l.query.Limit > readmodel.MaxLimit {
			return bad(name, "a number from 1 to "+strconv.Itoa(readmodel.MaxLimit))
		}
	case "cursor":
		if value == "" {
			return bad(name, "is empty: leave it out to begin")
		}
		l.query.Cursor = value
	case "count":
		count, ok := map[string]readmodel.Count{"none": readmodel.CountNone, "exact": readmodel.CountExact, "planned": readmodel.CountPlanned}[value]
		if !ok {
			return bad(name, "exact, planned or none")
		}
		l.query.Count = count
	case "select":
		l.fields, err = parseSelection(value)
	case "order":
		l.query.Order, err = parseOrder(value)
	}
	return err
}

func parseOrder(text string) (order []readmodel.Order, err error) {
	for part := range strings.SplitSeq(text, ",") {
		words := strings.Split(part, ".")
		o := readmodel.Order{Field: words[0]}
		words = words[1:]
		if len(words) > 0 && (words[0] == "asc" || words[0] == "desc") {
			o.Descending, words = words[0] == "desc", words[1:]
		}
		if len(words) > 0 && (words[0] == "nullsfirst" || words[0] == "nullslast") {
			o.Nulls, words = readmodel.NullsLast, words[1:]
			if strings.HasSuffix(part, "nullsfirst") {
				o.Nulls = readmodel.NullsFirst
			}
		}
		if len(words) > 0 || o.Field == "" {
			return nil, bad("order", "is field[.asc|.desc][.nullsfirst|.nullslast], not "+strconv.Quote(part))
		}
		order = append(order, o)
	}
	return order, nil
}

// parseFilters reads field=op.value, or=(...) and and=(...), all of which must hold.
func parseFilters(to []readmodel.Condition, name string, values []string) ([]readmodel.Condition, error) {
	for _, value := range values {
		if len(to) >= readmodel.MaxConditions {
			return nil, bad(name, "a query has at most "+strconv.Itoa(readmodel.MaxConditions)+" conditions")
		}
		var c readmodel.Condition
		var err error
		if word := strings.TrimPrefix(name, "not."); word == "and" || word == "or" {
			p := &treeParser{name: name, rest: value}
			c = p.logic(word, word != name, 1)
			if p.err == nil && p.rest != "" {
				p.fail("goes on after its last parenthesis")
			}
			err = p.err
		} else {
			c, err = parseFilter(name, value)
		}
		if err != nil {
			return nil, err
		}
		to = append(to, c)
	}
	return to, nil
}

// parseFilter reads op.value, not.op.value, in.(...) and cs.(...). The value is
// everything that follows, as it stands.
func parseFilter(field, text string) (c readmodel.Condition, err error) {
	rest, negated := strings.CutPrefix(text, "not.")
	op, value, found := strings.Cut(rest, ".")
	if !found {
		return c, bad(field, "a filter is op.value, as in eq.5")
	}
	values := []string{value}
	if op == "in" || op == "cs" {
		p := &treeParser{name: field, rest: value}
		values = p.list()
		if p.err == nil && p.rest != "" {
			p.fail("goes on after its list")
		}
		if p.err != nil {
			return c, p.err
		}
	}
	if c, err = readmodel.Where(field, op, values...); err == nil && negated {
		c = readmodel.Not(c)
	}
	return c, err
}

// treeParser reads the inside of or=(...) and and=(...):
//
//	(a.eq.1,b.not.in.("x,y",z),and(c.is.null,not.or(d.gt.2,e.lt.3)))
//
// A value ends at a comma or a parenthesis, unless it stands in double quotes, in
// which \ escapes.
type treeParser struct {
	name string // of the parameter
	rest string
	err  error
}

func (p *treeParser) fail(reason string) {
	if p.err == nil {
		p.err = bad(p.name, reason)
	}
}

func (p *treeParser) take(text string) bool {
	rest, ok := strings.CutPrefix(p.rest, text)
	p.rest = rest
	return ok
}

func (p *treeParser) logic(word string, negated bool, depth int) readmodel.Condition {
	if depth > readmodel.MaxDepth {
		p.fail("conditions are nested at most " + strconv.Itoa(readmodel.MaxDepth) + " deep")
		return readmodel.Condition{}
	}
	if !p.take("(") {
		p.fail(word + " takes conditions in parentheses")
		return readmodel.Condition{}
	}
	var parts []readmodel.Condition
	for p.err == nil {
		parts = append(parts, p.element(depth))
		if len(parts) > readmodel.MaxConditions {
			p.fail("a query has at most " + strconv.Itoa(readmodel.MaxConditions) + " conditions")
		}
		if p.take(")") {
			break
		}
		if !p.take(",") {
			p.fail("a condition ends with a comma or a parenthesis")
		}
	}
	if p.err != nil {
		return readmodel.Condition{}
	}
	c := readmodel.And(parts...)
	if word == "or" {
		c = readmodel.Or(parts...)
	}
	if negated {
		c = readmodel.Not(c)
	}
	return c
}

func (p *treeParser) element(depth int) readmodel.Condition {
	for _, word := range []string{"and", "or"} {
		if strings.HasPrefix(p.rest, word+"(") {
			p.take(word)
			return p.logic(word, false, depth+1)
		}
		if strings.HasPrefix(p.rest, "not."+word+"(") {
			p.take("not." + word)
			return p.logic(word, true, depth+1)
		}
	}
	field := p.word()
	op := p.word()
	negated := op == "not"
	if negated {
		op = p.word()
	}
	values := []string{""}
	if op == "in" || op == "cs" {
		values = p.list()
	} else {
		values[0] = p.value()
	}
	if p.err != nil {
		return readmodel.Condition{}
	}
	c, err := readmodel.Where(field, op, values...)
	if err != nil && p.err == nil {
		p.err = err
	}
	if negated {
		c = readmodel.Not(c)
	}
	return c
}

// word takes what stands before the next point.
func (p *treeParser) word() string {
	i := strings.IndexAny(p.rest, ".,()\"")
	if i <= 0 || p.rest[i] != '.' {
		p.fail("a condition is field.op.value")
		return ""
	}
	word := p.rest[:i]
	p.rest = p.rest[i+1:]
	return word
}

func (p *treeParser) value() string {
	if p.take(`"`) {
		return p.quoted()
	}
	i := strings.IndexAny(p.rest, `,()`)
	if i < 0 {
		i = len(p.rest)
	}
	value := p.rest[:i]
	p.rest = p.rest[i:]
	return value
}

func (p *treeParser) quoted() string {
	var value strings.Builder
	for i := 0; i < len(p.rest); i++ {
		switch ch := p.rest[i]; {
		case ch == '\\' && i+1 < len(p.rest):
			i++
			value.WriteByte(p.rest[i])
		case ch == '"':
			p.rest = p.rest[i+1:]
			return value.String()
		default:
			value.WriteByte(ch)
		}
	}
	p.fail("a quote is not closed")
	return ""
}

// list takes (a,"b,c",d); () is a list of nothing.
func (p *treeParser) list() (values []string) {
	if !p.take("(") {
		p.fail("in and cs take a list in parentheses")
		return nil
	}
	if p.take(")") {
		return nil
	}
	for p.err == nil {
		values = append(values, p.value())
		if p.take(")") {
			return values
		}
		if !p.take(",") {
			p.fail("a list is not closed")
		}
		if len(values) > readmodel.MaxValues {
			p.fail("a list has at most " + strconv.Itoa(readmodel.MaxValues) + " values")
		}
	}
	return nil
}
