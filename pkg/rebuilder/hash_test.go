package rebuilder

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// documents are JSON as rows may hold it, and as a hostile fold could write it.
var documents = []string{
	`{}`, `[]`, `null`, `{"b":1,"a":null,"ab":true,"aa":false}`, `{"a":1,"a":2}`, `{"z":{"y":[1,2,{"x":1,"w":2}],"a":"b"},"b":[]}`,
	`{"n":[0,-0,-0.0,1.50,1e5,1E-3,1.5e3,1.5e-3,12e-1,0e10,0e-3,0.0e3,-1.25e1,1e0,123456789012345678901234567890,1e-7,100e-2,0.00e1]}`,
	`{"s":"a\"b\\c\/\b\f\n\r\t\u0001\u001f\u00e9\ud83d\ude00é😀\u007f"}`, `{"\u0061b":1,"ab":2,"é":3,"ß":4}`, " { \"a\" : [ 1 , 2 ] , \"b\" : { } } ",
	`{"long":"` + strings.Repeat("x", 5000) + `"}`,
}

// What is hashed before it is written must be what the server hashes afterwards,
// for every shape of JSON and every length.
func TestRowHashIsThatOfTheServer(t *testing.T) {
	t.Parallel()
	ctx, pool := context.Background(), devstack.MigratedDatabase(t)
	var h rowHasher
	for n := range 40 {
		key := strings.Repeat("kéy", n)
		var want int64
		require.NoError(t, pool.QueryRow(ctx, `select hashtextextended($1, 0)`, key).Scan(&want))
		require.Equal(t, want, int64(hash([]byte(key))), "%d bytes", len(key))
	}
	for _, doc := range documents {
		var text string
		var want, withState int64
		require.NoError(t, pool.QueryRow(ctx, `select $1::text::jsonb::text, refold.row_hash('k', $1::text::jsonb, null), refold.row_hash('k', $1::text::jsonb, $1::text::jsonb)`, doc).Scan(&text, &want, &withState))
		got, err := h.canonical.Append(nil, []byte(doc))
		require.NoError(t, err, doc)
		require.Equal(t, text, string(got))
		sum, err := h.hash("k", []byte(doc), nil)
		require.NoError(t, err)
		require.Equal(t, want, int64(sum))
		sum, err = h.hash("k", []byte(doc), []byte(doc))
		require.NoError(t, err)
		require.Equal(t, withState, int64(sum))
	}
}

func TestBrokenJSONHasNoCanonicalForm(t *testing.T) {
	t.Parallel()
	var c strictjson.JSONB
	for _, doc := range []string{``, `{`, `{"a"}`, `{"a":}`, `[1`, `"a`, `"\x"`, `"\u12"`, `-`, `1e`, `nul`, `{} {}`, `{"a":1 "b":2}`, strings.Repeat("[", 10000), `1e999999999`} {
		_, err := c.Append(nil, []byte(doc))
		require.Error(t, err, doc)
	}
}

func FuzzCanonicalFormIsStable(f *testing.F) {
	for _, doc := range documents {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		var c strictjson.JSONB
		once, err := c.Append(nil, doc)
		if err != nil {
			return
		}
		twice, err := c.Append(nil, once)
		require.NoError(t, err)
		require.Equal(t, string(once), string(twice))
	})
}

func BenchmarkRowHash(b *testing.B) {
	var h rowHasher
	data := []byte(`{"id":"0192f0c1-1111-7000-8000-000000000001","email":"somebody@example.com","logins":12,"lastSeen":"2026-11-25T10:11:12.123456Z"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.hash("0192f0c1-1111-7000-8000-000000000001", data, nil); err != nil {
			b.Fatal(err)
		}
	}
}
