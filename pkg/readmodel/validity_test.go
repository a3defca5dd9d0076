package readmodel

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAnAnswerIsGoodUntilWhatItDependsOnChanges(t *testing.T) {
	one, other := versionID{"p", 1}, versionID{"p", 2}
	for name, c := range map[string]struct {
		happens      func(*validity)
		byKey, lists bool // still good
	}{
		"nothing":                   {func(*validity) {}, true, true},
		"its row":                   {func(v *validity) { v.changed(one, []uint32{7}, false) }, false, false},
		"another row":               {func(v *validity) { v.changed(one, []uint32{8}, false) }, true, false},
		"a row of the same stamp":   {func(v *validity) { v.changed(one, []uint32{7 + stampSlots}, false) }, false, false},
		"rows that are not named":   {func(v *validity) { v.changed(one, nil, true) }, false, false},
		"progress without rows":     {func(v *validity) { v.changed(one, nil, false) }, true, true},
		"the row of another number": {func(v *validity) { v.changed(other, []uint32{7}, true) }, true, true},
		"a lost session":            {func(v *validity) { v.lost() }, false, false},
	} {
		v := newValidity()
		v.changed(one, []uint32{7}, true) // before it was read: does not matter
		begun := v.now()
		c.happens(v) // while it is read, or later
		require.Equal(t, c.byKey, v.rows(v.of(one), begun, 7), name)
		require.Equal(t, c.lists, v.rows(v.of(one), begun), name)
		require.True(t, v.rows(v.of(one), v.now(), 7), "what is read afterwards is good: %s", name)
	}
}

func TestNothingKeptIsGivenWithoutASignOfLife(t *testing.T) {
	v, now := newValidity(), time.Now()
	require.False(t, v.reliable(now), "before anybody listens")
	v.rely(now.Add(MaxUnseen))
	require.True(t, v.reliable(now))
	require.False(t, v.reliable(now.Add(MaxUnseen)))
	v.lost()
	require.False(t, v.reliable(now))
}

// The same id of another branch may be another request, which a follower is then
// told of once more and not never.
func TestWhatWasCarriedOutIsOfOneBranch(t *testing.T) {
	v := newValidity()
	require.Zero(t, v.requests.Load().in(1), "nothing was looked at yet")
	v.requests.Store(&carriedOut{upTo: 7, branch: 1})
	require.EqualValues(t, 7, v.requests.Load().in(1))
	require.Zero(t, v.requests.Load().in(2))
}
