package query_test

import (
	"encoding/json"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/refoldhq/refold/pkg/query"
)

// The oracle answers queries from a plain slice, slowly and obviously. It shares
// no code with what it judges.

// item is a row: the text of each field's value, nil for null. One that has sparse
// lacks its nulls in the database, as rows do that are older than a field.
type item map[string]*string

const sparse = "sparse"

var kinds = map[string]string{"key": "text", "name": "text", "n": "number", "f": "number", "price": "number", "at": "time", "ok": "bool", "color": "text", "ref": "text", "tags": "list"}

var domains = map[string][]string{
	"name":  {"", "a", "A", "b%", "a_b", "ä", "z\"q", "comma,here", `back\slash`, "(paren)"},
	"n":     {"-3", "0", "7", "9007199254740993", "9007199254740992"},
	"f":     {"-1.5", "0.1", "1e3", "2"},
	"price": {"0.00", "10.50", "9.99", "-1.00"},
	"at":    {"2024-01-01T00:00:00Z", "2024-01-01T00:00:00.5Z", "2023-12-31T23:59:59.999999Z"},
	"ok":    {"true", "false"},
	"color": {"RED", "GREEN", "BLUE"},
	"ref":   {"00000000-0000-0000-0000-000000000001", "ffffffff-0000-0000-0000-000000000000"},
	"tags":  {`[]`, `["a"]`, `["b","a"]`, `["c,\"d","a","a"]`},
}

func (i item) json() string {
	all := map[string]any{}
	for name := range domains {
		v := i[name]
		switch {
		case v == nil && i[sparse] != nil:
		case v == nil:
			all[name] = nil
		case kinds[name] == "number" && name != "price":
			all[name] = json.Number(*v)
		case kinds[name] == "bool":
			all[name] = *v == "true"
		case kinds[name] == "list":
			all[name] = json.RawMessage(*v)
		default:
			all[name] = *v
		}
	}
	raw, _ := json.Marshal(all)
	return string(raw)
}

// compareValues compares as SQL does; neither is null.
func compareValues(kind, a, b string) int {
	switch kind {
	case "number":
		x, _ := new(big.Rat).SetString(a)
		y, _ := new(big.Rat).SetString(b)
		return x.Cmp(y)
	case "time": // fractions of unequal length
		a, b = strings.TrimSuffix(a, "Z"), strings.TrimSuffix(b, "Z")
		if !strings.Contains(a, ".") {
			a += "."
		}
		if !strings.Contains(b, ".") {
			b += "."
		}
		return strings.Compare(a+strings.Repeat("0", 30-len(a)), b+strings.Repeat("0", 30-len(b)))
	default:
		return strings.Compare(a, b)
	}
}

// truth is SQL's: nil is unknown.
type truth *bool

func known(b bool) truth { return &b }

// filter is a condition with its meaning.
type filter struct {
	text  string // as a part of or=(...)
	holds func(item) truth
}

func quoteValue(v string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`
}

func generateFilter(t *rapid.T, depth int) filter {
	if depth < 3 && rapid.IntRange(0, 3).Draw(t, "branch") == 0 {
		word := rapid.SampledFrom([]string{"and", "or", "not.and", "not.or"}).Draw(t, "word")
		var parts []filter
		for range rapid.IntRange(1, 3).Draw(t, "parts") {
			parts = append(parts, generateFilter(t, depth+1))
		}
		return join(word, parts)
	}
	name := rapid.SampledFrom([]string{"key", "name", "n", "f", "price", "at", "ok", "color", "ref", "tags"}).Draw(t, "field")
	domain := domains[name]
	if name == "key" {
		domain = []string{"k0", "k1", "k5", "other"}
	}
	value := rapid.SampledFrom(domain).Draw(t, "value")
	ops := []string{"eq", "neq", "gt", "gte", "lt", "lte", "in", "is"}
	if kinds[name] == "list" {
		ops = []string{"cs", "is"}
	}
	if kinds[name] == "text" {
		ops = append(ops, "like", "ilike")
	}
	op := rapid.SampledFrom(ops).Draw(t, "op")
	f := leafFilter(t, name, op, value, domain)
	if rapid.Bool().Draw(t, "negated") {
		inner := f.holds
		f.text = strings.Replace(f.text, name+".", name+".not.", 1)
		f.holds = func(i item) truth { return negate(inner(i)) }
	}
	return f
}

func negate(b truth) truth {
	if b == nil {
		return nil
	}
	return known(!*b)
}

func join(word string, parts []filter) filter {
	texts := make([]string, len(parts))
	for i, p := range parts {
		texts[i] = p.text
	}
	bare := strings.TrimPrefix(word, "not.")
	return filter{word + "(" + strings.Join(texts, ",") + ")", func(i item) truth {
		result := kleene(bare, parts, i)
		if bare != word {
			result = negate(result)
		}
		return result
	}}
}

// kleene is the three-valued and, or.
func kleene(word string, parts []filter, i item) truth {
	unknown := false
	for _, p := range parts {
		b := p.holds(i)
		if b == nil {
			unknown = true
		} else if *b == (word == "or") {
			return b
		}
	}
	if unknown {
		return nil
	}
	return known(word == "and")
}

func leafFilter(t *rapid.T, name, op, value string, domain []string) filter {
	switch op {
	case "cs":
		list := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", `c,"d`, "e"}), 1, 2).Draw(t, "held")
		quoted := make([]string, len(list))
		for i, v := range list {
			quoted[i] = quoteValue(v)
		}
		return filter{name + ".cs.(" + strings.Join(quoted, ",") + ")", func(i item) truth {
			if i[name] == nil {
				return nil
			}
			var held []string
			if err := json.Unmarshal([]byte(*i[name]), &held); err != nil {
				panic(err)
			}
			return known(!slices.ContainsFunc(list, func(v string) bool { return !slices.Contains(held, v) }))
		}}
	case "is":
		word := "null"
		if kinds[name] == "bool" {
			word = rapid.SampledFrom([]string{"null", "true", "false"}).Draw(t, "word")
		}
		return filter{name + ".is." + word, func(i item) truth {
			return known(i[name] == nil && word == "null" || i[name] != nil && *i[name] == word)
		}}
	case "in":
		list := rapid.SliceOfN(rapid.SampledFrom(domain), 1, 3).Draw(t, "list")
		quoted := make([]string, len(list))
		for i, v := range list {
			quoted[i] = quoteValue(v)
		}
		return filter{name + ".in.(" + strings.Join(quoted, ",") + ")", func(i item) truth {
			if i[name] == nil {
				return nil
			}
			return known(slices.ContainsFunc(list, func(v string) bool { return compareValues(kinds[name], *i[name], v) == 0 }))
		}}
	case "like", "ilike":
		pattern := rapid.SampledFrom([]string{"*", "a*", "%B%", "_", `b\%`, "k_", "*e*"}).Draw(t, "pattern")
		return filter{name + "." + op + "." + quoteValue(pattern), func(i item) truth {
			if i[name] == nil {
				return nil
			}
			text, p := *i[name], strings.ReplaceAll(pattern, "*", "%")
			if op == "ilike" {
				text, p = strings.ToLower(text), strings.ToLower(p)
			}
			return known(likes([]rune(p), []rune(text)))
		}}
	}
	return filter{name + "." + op + "." + quoteValue(value), func(i item) truth {
		if i[name] == nil {
			return nil
		}
		c := compareValues(kinds[name], *i[name], value)
		return known(map[string]bool{"eq": c == 0, "neq": c != 0, "gt": c > 0, "gte": c >= 0, "lt": c < 0, "lte": c <= 0}[op])
	}}
}

func likes(p, s []rune) bool {
	switch {
	case len(p) == 0:
		return len(s) == 0
	case p[0] == '%':
		return likes(p[1:], s) || len(s) > 0 && likes(p, s[1:])
	case p[0] == '\\':
		return len(s) > 0 && len(p) > 1 && s[0] == p[1] && likes(p[2:], s[1:])
	default:
		return len(s) > 0 && (p[0] == '_' || p[0] == s[0]) && likes(p[1:], s[1:])
	}
}

type sorting struct {
	name       string
	descending bool
	nullsFirst bool
}

func generateOrder(t *rapid.T) (text string, order []sorting) {
	names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"name", "n", "f", "price", "at", "ok", "color", "ref", "key"}), 0, 4, rapid.ID).Draw(t, "order")
	var parts []string
	for _, name := range names {
		s := sorting{name: name, descending: rapid.Bool().Draw(t, "descending")}
		part := name + map[bool]string{true: ".desc", false: ".asc"}[s.descending]
		s.nullsFirst = s.descending
		switch rapid.IntRange(0, 2).Draw(t, "nulls") {
		case 1:
			part, s.nullsFirst = part+".nullsfirst", true
		case 2:
			part, s.nullsFirst = part+".nullslast", false
		}
		parts, order = append(parts, part), append(order, s)
	}
	last := len(order) > 0 && order[len(order)-1].descending
	return strings.Join(parts, ","), append(order, sorting{"key", last, false})
}

func compareItems(order []sorting, a, b item) int {
	for _, s := range order {
		x, y := a[s.name], b[s.name]
		c := 0
		switch {
		case x == nil && y == nil:
		case x == nil:
			c = map[bool]int{true: -1, false: 1}[s.nullsFirst]
		case y == nil:
			c = map[bool]int{true: 1, false: -1}[s.nullsFirst]
		default:
			if c = compareValues(kinds[s.name], *x, *y); s.descending {
				c = -c
			}
		}
		if c != 0 {
			return c
		}
	}
	return 0
}

func generateItems(t *rapid.T) []item {
	items := make([]item, rapid.IntRange(0, 25).Draw(t, "rows"))
	for n := range items {
		key := fmt.Sprintf("k%d", n)
		items[n] = generatedItems.Draw(t, key)
		items[n]["key"] = &key
	}
	return items
}

// generatedItems have no key.
var generatedItems = rapid.Custom(func(t *rapid.T) item {
	i := item{}
	if yes := "yes"; rapid.Bool().Draw(t, sparse) {
		i[sparse] = &yes
	}
	for _, name := range []string{"name", "n", "f", "price", "at", "ok", "color", "ref", "tags"} {
		if rapid.IntRange(0, 3).Draw(t, "null") > 0 {
			v := rapid.SampledFrom(domains[name]).Draw(t, name)
			i[name] = &v
		}
	}
	return i
})

func (w *world) replace(items []item) {
	keys, data := []string{}, []string{}
	for _, i := range items {
		keys, data = append(keys, *i["key"]), append(data, i.json())
	}
	require.NoError(w.t, pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `delete from refold.rows_items_v1`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `insert into refold.rows_items_v1 (projection_name, version, key, data) select 'items', 1, k, d::jsonb from unnest($1::text[], $2::text[]) u (k, d)`, keys, data)
		return err
	}))
}

// walk returns the keys of all pages.
func (r *replica) walk(path string, values url.Values) (keys []string, pages int) {
	r.t.Helper()
	for {
		pages++
		l := r.get(path + "?" + values.Encode()).list(r.t)
		for _, row := range l.Rows {
			keys = append(keys, row["key"].(string))
		}
		if l.Next == nil {
			return keys, pages
		}
		values.Set("cursor", *l.Next)
	}
}

func TestListsAnswerAsPlainSlicesWould(t *testing.T) {
	w := setup(t)
	r := w.replicaAt(w.pool.Config().ConnString(), noCache)
	rapid.Check(t, func(rt *rapid.T) {
		items := generateItems(rt)
		w.replace(items)
		for range 3 {
			values := url.Values{"select": {"key"}, "limit": {fmt.Sprint(rapid.IntRange(1, 10).Draw(rt, "limit"))}, "count": {"exact"}}
			var want []item
			filters := []filter{}
			for range rapid.IntRange(0, 2).Draw(rt, "filters") {
				f := generateFilter(rt, 0)
				filters = append(filters, f)
				values.Add("and", "("+f.text+")")
			}
			where, err := query.ParseWhere(url.Values{"and": values["and"]})
			require.NoError(t, err)
			for _, i := range items {
				selected, err := where.Selects(w.plan, *i["key"], []byte(i.json()))
				require.NoError(t, err)
				if selected == slices.ContainsFunc(filters, func(f filter) bool { b := f.holds(i); return b == nil || !*b }) {
					rt.Fatalf("%v of %s without the database: %t", values, i.json(), selected)
				}
				if !slices.ContainsFunc(filters, func(f filter) bool { b := f.holds(i); return b == nil || !*b }) {
					want = append(want, i)
				}
			}
			text, order := generateOrder(rt)
			if text != "" {
				values.Set("order", text)
			}
			slices.SortFunc(want, func(a, b item) int { return compareItems(order, a, b) })
			wantKeys := []string{}
			for _, i := range want {
				wantKeys = append(wantKeys, *i["key"])
			}
			first := r.get("/v1/read-models/items?" + values.Encode()).list(t)
			if int(*first.Count) != len(want) {
				rt.Fatalf("count %d, want %d: %v", *first.Count, len(want), values)
			}
			keys, _ := r.walk("/v1/read-models/items", values)
			if !slices.Equal(keys, wantKeys) {
				rt.Fatalf("%v\n got %v\nwant %v", values, keys, wantKeys)
			}
		}
	})
}
