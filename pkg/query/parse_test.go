package query

import (
	"net/url"
	"strings"
	"testing"

	"github.com/refoldhq/refold/pkg/readmodel"
)

// ParseWhere is parseList for the tests outside.
func ParseWhere(values url.Values) (readmodel.Condition, error) {
	l, err := parseList(values)
	return l.query.Where, err
}

// What is read has one meaning: written again from the same parameters it has the
// same normal form, and nothing a client sends makes the parser fail in another way
// than by an error.
func FuzzParseList(f *testing.F) {
	for _, seed := range []string{
		"email=eq.a@b.c&order=createdAt.desc,id&limit=20&select=id,email&count=exact",
		`or=(a.eq.1,b.not.in.("x,y",z),and(c.is.null,not.or(d.gt.2,e.lt.3)))`,
		"key=in.(a,b,c)", "n=not.gte.5", "not.and=(a.eq.1)", "a->b->>c=eq.x", "tags=cs.(a,b)",
		"or=(((", "or=(a.eq.\"", "in=in.()", "order=a.desc.nullslast", strings.Repeat("and=(", 20),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		values, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		l, err := parseList(values)
		if err != nil {
			return
		}
		again, err := parseList(values)
		if err != nil || again.query.Where.String() != l.query.Where.String() {
			t.Fatalf("%q is read in two ways: %v", query, err)
		}
	})
}
