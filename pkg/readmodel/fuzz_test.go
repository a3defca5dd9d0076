package readmodel

import (
	"bytes"
	"encoding/base64"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/schemas"
)

func usersPlan(t testing.TB) *projection.Plan {
	t.Helper()
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	definitions, err := projection.LoadDefinitions(schemas.FS)
	require.NoError(t, err)
	i := slices.IndexFunc(definitions, func(d *projection.Definition) bool { return d.Name == "rm_users" })
	plan, err := projection.Compile(definitions[i], contracts)
	require.NoError(t, err)
	return plan
}

var words = regexp.MustCompile(`\$?[A-Za-z0-9_]+`)

// Nothing of a condition becomes SQL but the names of the plan's fields: every word
// of what is compiled is one of ours.
func FuzzConditionBecomesNoSQL(f *testing.F) {
	plan := usersPlan(f)
	ours := map[string]bool{}
	for word := range strings.FieldsSeq(`and or not true false null is any like ilike data key collate C text numeric boolean timestamptz refold time jsonb`) {
		ours[word] = true
	}
	for _, field := range plan.Fields() {
		ours[field.Name] = true
	}
	for _, seed := range [][3]string{{"email", "eq", "a@b.c"}, {"logins", "gt", "5"}, {"createdAt", "lte", "2024-01-01T00:00:00Z"}, {"active", "is", "true"}, {"key", "in", "a"},
		{"name", "ilike", "*x*"}, {"email'); drop table x; --", "eq", "1"}, {"email", "eq", "'; drop table x; --"}, {"email->a'b", "eq", "x"}, {"logins", "eq", "1e9"}, {"logins", "is", "null); drop"}} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, field, op, value string) {
		c, err := Where(field, op, value)
		if err != nil {
			return
		}
		s := &statement{plan: plan}
		sql, err := s.sql(Not(Or(c, And(c, c))), 0)
		if err != nil {
			return
		}
		for _, word := range words.FindAllString(sql, -1) {
			if !ours[word] && word[0] != '$' {
				t.Fatalf("%q of %q %q %q is in %s", word, field, op, value, sql)
			}
		}
		if strings.ContainsAny(sql, ";\\") || strings.Contains(sql, "--") || strings.Contains(sql, "/*") {
			t.Fatal(sql)
		}
		evaluate(plan, c, "key", []byte(`{"email": "a@b.c", "logins": 5, "createdAt": "2024-01-01T00:00:00Z", "active": true}`)) // must not panic
	})
}

// Only what was signed is read, and it is read as it was.
func FuzzCursor(f *testing.F) {
	key, bound := []byte("key"), []byte("bound")
	text, empty := "é\"", ""
	good := place{version: 3, plan: "abc", values: []*string{&text, nil, &empty}}
	f.Add(good.encode(key, bound))
	f.Add(good.encode(key, []byte("other")))
	f.Add("AQ")
	f.Fuzz(func(t *testing.T, cursor string) {
		p, err := decodePlace(cursor, key, bound)
		if err == nil && p.encode(key, bound) != cursor {
			t.Fatalf("%q is read and is not what was given", cursor)
		}
	})
}

// FuzzCursorBody signs whatever it is, as somebody could who has the key, so that
// what lies behind the signature is reached.
func FuzzCursorBody(f *testing.F) {
	key, bound := []byte("key"), []byte("bound")
	text, empty := "é\"", ""
	for _, p := range []place{{version: 3, plan: "abc", values: []*string{&text, nil, &empty}}, {}, {version: 1 << 30, plan: strings.Repeat("x", 64)}} {
		raw, err := base64.RawURLEncoding.DecodeString(p.encode(key, bound))
		require.NoError(f, err)
		f.Add(raw[:len(raw)-cursorMAC])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := decodePlace(base64.RawURLEncoding.EncodeToString(append(bytes.Clone(body), sign(key, body, bound)...)), key, bound)
		if err != nil {
			return
		}
		again, err := decodePlace(p.encode(key, bound), key, bound) // varints have several forms
		require.NoError(t, err)
		require.Equal(t, p, again)
	})
}

func FuzzChangeID(f *testing.F) {
	f.Add(standing{1, 5, 7, &Progress{branch: 9, categories: []categoryProgress{{"User", []int64{0, 5, 1 << 40}, make([]uint32, 3)}}}}.id())
	f.Add("AQ")
	f.Fuzz(func(t *testing.T, id string) {
		s, err := parseStanding(id)
		if err != nil || s.id() == id {
			return
		}
		again, err := parseStanding(s.id()) // varints have several forms
		require.NoError(t, err)
		require.Equal(t, s.id(), again.id())
	})
}

func FuzzAnnouncement(f *testing.F) {
	a := Announcement{Projection: "rm_users", Version: 2, Category: "User", Generation: 1, Partition: 3, From: 5, To: 9, Seqs: []int64{1, 2}, Keys: []uint32{1, 2, 3}}
	f.Add(a.Payload())
	a.Many, a.Keys = true, nil
	f.Add(a.Payload())
	f.Add("catalogue")
	f.Fuzz(func(t *testing.T, payload string) {
		a, err := ParseAnnouncement(payload)
		if err != nil {
			return
		}
		if a.Many {
			a.Keys = nil // a payload has one or the other
		}
		again, err := ParseAnnouncement(a.Payload())
		require.NoError(t, err)
		require.Equal(t, a, again)
	})
}

func FuzzLike(f *testing.F) {
	f.Add("%a_b%", "xaxb")
	f.Add(`a\%`, "a%")
	f.Add("%%%%%%%%a", strings.Repeat("b", 100))
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if !validText(pattern) || !validText(text) || len(pattern) > 50 || (len(pattern)-len(strings.TrimRight(pattern, `\`)))%2 == 1 {
			return
		}
		var b strings.Builder
		b.WriteString(`(?s)\A`)
		escaped := false
		for _, r := range pattern {
			switch {
			case escaped:
				b.WriteString(regexp.QuoteMeta(string(r)))
				escaped = false
			case r == '\\':
				escaped = true
			case r == '%':
				b.WriteString(".*")
			case r == '_':
				b.WriteString(".")
			default:
				b.WriteString(regexp.QuoteMeta(string(r)))
			}
		}
		if want := regexp.MustCompile(b.String() + `\z`).MatchString(text); like([]rune(pattern), []rune(text)) != want {
			t.Fatalf("%q like %q: want %t", text, pattern, want)
		}
	})
}

func TestAnAnnouncementFitsAPayload(t *testing.T) {
	a := Announcement{Projection: strings.Repeat("p", 40), Version: 1 << 30, Category: strings.Repeat("C", 64), Generation: 1 << 30, From: 1 << 60, To: 1<<60 + 1}
	for range maxAnnouncedSeqs {
		a.Seqs = append(a.Seqs, 1<<60)
	}
	for i := range MaxAnnouncedKeys {
		a.Keys = append(a.Keys, uint32(i)<<20)
	}
	require.LessOrEqual(t, len(a.Payload()), maxPayload)
	many := a
	many.Merge(a)
	require.True(t, many.Many)
	parsed, err := ParseAnnouncement(many.Payload())
	require.NoError(t, err)
	require.True(t, parsed.Many)
}

func TestFieldsAreNamedByPointing(t *testing.T) {
	type row struct {
		ID       string
		LastSeen int64
		URLPath  *string
		Mail     string `json:"email,omitempty"`
	}
	require.Equal(t, "id", FieldOf(func(r *row) *string { return &r.ID }).name)
	require.Equal(t, "lastSeen", FieldOf(func(r *row) *int64 { return &r.LastSeen }).name)
	require.Equal(t, "urlPath", NullableOf(func(r *row) **string { return &r.URLPath }).name)
	require.Equal(t, "email", FieldOf(func(r *row) *string { return &r.Mail }).name)
	require.Panics(t, func() { FieldOf(func(*row) *string { return new(string) }) })
}
