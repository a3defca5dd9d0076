package strictjson_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/strictjson"
)

type part struct {
	Name string `json:"name"`
	Size *int16 `json:"size"`
}

type base struct {
	Kind string `json:"kind,omitempty"`
}

type document struct {
	base
	Exported
	ID     int64            `json:"id"`
	Count  uint8            `json:"count,omitempty"`
	Ratio  float32          `json:"ratio,omitempty"`
	On     bool             `json:"on,omitempty"`
	At     time.Time        `json:"at,omitzero"`
	Raw    []byte           `json:"raw,omitempty"`
	Parts  []part           `json:"parts,omitempty"`
	Extra  map[string]int32 `json:"extra,omitempty"`
	Hidden string           `json:"-"`
	Plain  string           `json:",omitempty"`
}

// Exported is embedded, so its fields are the document's.
type Exported struct {
	Note string `json:"note,omitempty"`
}

func TestUnmarshalReadsWhatFits(t *testing.T) {
	var d document
	require.NoError(t, strictjson.Unmarshal([]byte(`{"id":"9223372036854775807","count":255,"ratio":1.5,"on":true,"at":"2026-01-02T03:04:05Z","raw":"AQI=",
		"parts":[{"name":"x","size":-32768},{"name":"é","size":null},{"name":""}],"extra":{"a":1,"b":-2},"note":"n","Plain":"p"}`), &d))
	require.EqualValues(t, 9223372036854775807, d.ID)
	require.Equal(t, []byte{1, 2}, d.Raw)
	require.EqualValues(t, -32768, *d.Parts[0].Size)
	require.Nil(t, d.Parts[1].Size)
	require.Equal(t, map[string]int32{"a": 1, "b": -2}, d.Extra)
	require.Equal(t, "n", d.Note)
	require.Equal(t, 2026, d.At.Year())
}

func TestUnmarshalRefuses(t *testing.T) {
	for in, pointer := range map[string]string{ // what does not fit
		`[]`: "", `null`: "", `{}`: "", `{"id":1.0}`: "/id", `{"id":1e3}`: "/id", `{"id":-0}`: "/id", `{"id":9223372036854775808}`: "/id", `{"id":"1 "}`: "/id", `{"id":null}`: "/id",
		`{"id":1,"count":256}`: "/count", `{"id":1,"count":-1}`: "/count", `{"id":1,"count":"1"}`: "/count", `{"id":1,"ratio":1e39}`: "/ratio", `{"id":1,"ratio":"1"}`: "/ratio",
		`{"id":1,"on":1}`: "/on", `{"id":1,"at":"yesterday"}`: "/at", `{"id":1,"at":7}`: "/at", `{"id":1,"raw":"AQI"}`: "/raw", `{"id":1,"raw":[1]}`: "/raw",
		`{"id":1,"parts":[{"name":"x"},{}]}`: "/parts/1", `{"id":1,"parts":[{"name":"x","size":32768}]}`: "/parts/0/size", `{"id":1,"parts":{}}`: "/parts",
		`{"id":1,"extra":{"a":2147483648}}`: "/extra/a", `{"id":1,"extra":[]}`: "/extra", `{"id":1,"parts":[null]}`: "/parts/0",
	} {
		var misfit *strictjson.Misfit
		err := strictjson.Unmarshal([]byte(in), new(document))
		require.ErrorAs(t, err, &misfit, in)
		require.Equal(t, pointer, misfit.Pointer, in)
	}
	for in, pointer := range map[string]string{ // what is not the JSON that we take
		``: "", `{"id":1`: "/id", `{"id":1}x`: "", `{"id":1,"id":1}`: "/id", `{"Id":1}`: "/Id", `{"id":1,"Hidden":"x"}`: "/Hidden", `{"id":1,"parts":[{"nope":1}]}`: "/parts/0/nope",
		`{"id":1,"note":"\u0000"}`: "/note", "{\"id\":1,\"note\":\"\xff\"}": "/note", `{"id":1,"note":"\ud800"}`: "/note", `{"id":01}`: "/id", `{"id":tru}`: "/id",
		`{"id":1,"extra":{"a":1,"a":2}}`: "/extra/a", `{"id":1,"kind":"x"}{}`: "",
	} {
		err := strictjson.Unmarshal([]byte(in), new(document))
		var syntax *strictjson.Error
		require.ErrorAs(t, err, &syntax, in)
		if !strings.HasPrefix(in, `{"id":1,"kind"`) {
			require.Equal(t, pointer, syntax.Pointer, in)
		}
	}
	require.Error(t, strictjson.Unmarshal([]byte(`{}`), document{}))
	require.Error(t, strictjson.Unmarshal([]byte(`{}`), (*document)(nil)))
	require.Error(t, strictjson.Unmarshal([]byte(`{"C":1}`), &struct{ C chan int }{}))
	require.Error(t, strictjson.Unmarshal([]byte(`{"1":1}`), &map[int]int{}))
}

// What we accept encoding/json accepts too, and reads the same.
func FuzzUnmarshal(f *testing.F) {
	for _, s := range []string{`{"id":1}`, `{"id":"7","count":3,"parts":[{"name":"a","size":5}],"extra":{"k":1}}`, `{"id":1,"at":"2026-01-02T03:04:05.5+02:00","raw":"AAAA"}`,
		`{"id":-5,"ratio":1e10,"note":"\ud83d\ude00","Plain":""}`, `{"id":1,"ID":2}`, `{"id":1,"parts":[[]]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var got, want document
		if err := strictjson.Unmarshal(in, &got); err != nil {
			var misfit *strictjson.Misfit
			var syntax *strictjson.Error
			require.True(t, errors.As(err, &misfit) || errors.As(err, &syntax), "%v", err)
			return
		}
		require.True(t, json.Valid(in), "%q", in)
		d := json.NewDecoder(bytes.NewReader(in))
		d.DisallowUnknownFields()
		if err := d.Decode(&want); err != nil {
			var typed *json.UnmarshalTypeError
			if errors.As(err, &typed) && typed.Value == "string" && typed.Field == "id" {
				return // integers of 64 bits may be strings with us
			}
			t.Fatalf("encoding/json refuses %q: %v", in, err)
		}
		require.Equal(t, want, got)
	})
}
