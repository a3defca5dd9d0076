package event_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/refoldhq/refold/pkg/event"
)

func mark(category string, slot int, seq int64, written bool) event.Mark {
	return event.Mark{Position: event.Position{Category: category, Slot: slot, Seq: seq}, Written: written}
}

func marks() *rapid.Generator[[]event.Mark] {
	one := rapid.Custom(func(t *rapid.T) event.Mark {
		m := mark(rapid.StringMatching(`[A-Z][A-Za-z0-9]{0,6}`).Draw(t, "category"), rapid.IntRange(0, event.MaxSlots-1).Draw(t, "slot"),
			rapid.Int64Range(0, 1<<62).Draw(t, "seq"), rapid.Bool().Draw(t, "written"))
		m.Event, m.Branch = rapid.Uint32Max(2).Draw(t, "event"), rapid.Uint32Max(2).Draw(t, "branch")
		return m
	})
	return rapid.SliceOfN(one, 0, 40)
}

func TestTokenSurvivesItsText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		token := event.NewToken(marks().Draw(t, "marks")...)
		got, err := event.ParseToken(token.String())
		require.NoError(t, err)
		require.Len(t, got, len(token))
		for i := range got {
			require.Equal(t, token[i], got[i])
		}
	})
}

func TestMergedTokenAsksForAllOfBoth(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := marks().Draw(t, "a"), marks().Draw(t, "b")
		merged := event.Merge(event.NewToken(a...), event.NewToken(b...))
		for _, m := range append(a, b...) {
			require.True(t, covers(merged, m), "%v is not in %v", m, merged)
		}
	})
}

func covers(token event.Token, m event.Mark) bool {
	for _, x := range token {
		if x.Category == m.Category && x.Slot == m.Slot && x.Branch == m.Branch && x.Written == m.Written && (x.Seq > m.Seq && !m.Written || x.Seq >= m.Seq && x.Event == m.Event) {
			return true
		}
	}
	return false
}

func TestDamagedTokensAreRefused(t *testing.T) {
	t.Parallel()
	good := event.NewToken(mark("User", 17, 905, true)).String()
	for i := range good {
		bad := []byte(good)
		bad[i] ^= 1
		_, err := event.ParseToken(string(bad))
		require.ErrorIs(t, err, event.ErrMalformedToken, "byte %d changed", i)
	}
	for _, bad := range []string{"", "x", good + "A", good[:len(good)-1], good + "="} {
		_, err := event.ParseToken(bad)
		require.ErrorIs(t, err, event.ErrMalformedToken, bad)
	}
}

func TestHeaderMayHoldSeveralTokens(t *testing.T) {
	t.Parallel()
	a, b := event.NewToken(mark("User", 1, 5, true)), event.NewToken(mark("User", 1, 7, true), mark("File", 0, 1, false))
	got, err := event.ParseTokens(a.String() + ", " + b.String())
	require.NoError(t, err)
	require.Equal(t, b, got)
	none, err := event.ParseTokens("")
	require.NoError(t, err)
	require.Empty(t, none)
	_, err = event.ParseTokens(a.String() + ",")
	require.ErrorIs(t, err, event.ErrMalformedToken)
}

func FuzzParseToken(f *testing.F) {
	f.Add("")
	f.Add(event.Token(nil).String())
	f.Add(event.NewToken(mark("User", 17, 905, true)).String())
	f.Add(event.NewToken(mark("User", 17, 905, false), mark("File", 63, 1<<40, true)).String())
	f.Fuzz(func(t *testing.T, s string) {
		token, err := event.ParseToken(s)
		if err != nil {
			return
		}
		require.Equal(t, s, token.String())
		require.Equal(t, s, event.NewToken(token...).String(), "an accepted token is in order")
	})
}

// FuzzTokenBody gives whatever it is the checksum that a token has, so that what
// lies behind it is reached.
func FuzzTokenBody(f *testing.F) {
	for _, t := range []event.Token{nil, event.NewToken(mark("User", 17, 905, true)), event.NewToken(mark("User", 17, 905, false), mark("File", 63, 1<<40, true), mark("File", 63, 7, true)),
		{{Position: event.Position{Category: "User", Slot: 4095, Seq: 1 << 62}, Event: 1<<32 - 1, Branch: 1<<32 - 1}}} {
		raw, err := base64.RawURLEncoding.DecodeString(t.String())
		require.NoError(f, err)
		f.Add(raw[:len(raw)-4])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		text := base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(bytes.Clone(body), crc32.ChecksumIEEE(body)))
		token, err := event.ParseToken(text)
		if err != nil {
			return
		}
		require.Equal(t, text, token.String())
		require.Equal(t, token, event.NewToken(token...), "an accepted token is in order")
	})
}
