package engine

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestInboxPausesItsPartitionAndDropsWhatNobodyAskedFor(t *testing.T) {
	paused := false
	q := newInbox(func() int64 { return 3 * recordBytes }, func() { paused = true }, func() { paused = false })
	chunk := func(n int) []*kgo.Record {
		list := make([]*kgo.Record, n)
		for i := range list {
			list[i] = &kgo.Record{}
		}
		return list
	}
	q.shut()
	require.True(t, paused)
	q.put(chunk(1))
	require.Nil(t, q.take(1), "what was fetched before the claim is dropped")
	require.True(t, paused, "nothing is fetched before the claim")

	q.reopen()
	require.False(t, paused)
	q.put(chunk(2))
	require.False(t, paused)
	q.put(chunk(1))
	require.True(t, paused, "it is full")
	require.Len(t, q.take(1), 2)
	require.False(t, paused, "a third is left")
	q.put(chunk(1))
	require.True(t, paused, "what the worker has in hand counts")
	q.put(chunk(1))
	require.Len(t, q.take(1), 1)
	require.True(t, q.holds(2))
	require.False(t, q.holds(3))
	require.Len(t, q.take(2), 2, "small ones come together")
	require.Nil(t, q.take(1))
	require.False(t, paused)
	require.Zero(t, q.bytes)

	q.put(chunk(5))
	q.shut()
	require.Nil(t, q.take(1))
	require.True(t, paused)
	q.reopen()
	require.Nil(t, q.take(1), "what waited is fetched again")
}

func TestBreakerOpensForManyAndClosesWhenNoneIsParked(t *testing.T) {
	b := breaker{most: 3}
	require.NoError(t, b.check(2))
	b.parked(2)
	require.NoError(t, b.check(1))
	b.parked(1)
	require.Error(t, b.check(1))
	b.recent[0], b.recent[1], b.recent[2] = time.Time{}, time.Time{}, time.Time{}
	require.Error(t, b.check(1), "it stays open although the time has passed: else everything is parked in the end")
	require.NoError(t, b.check(0))
	b.parked(0)
	require.NoError(t, b.check(1))
	require.Error(t, b.check(4))
}

func TestCleanTextIsTakenByPostgres(t *testing.T) {
	for in, want := range map[string]string{"": "", "ok": "ok", "a\x00b": "a\uFFFDb", "\xff": "\uFFFD"} {
		require.Equal(t, want, clean(in))
	}
	long := make([]byte, 5000)
	for i := range long {
		long[i] = "é"[i%2]
	}
	require.LessOrEqual(t, len(clean(string(long))), 4000)
	require.Equal(t, clean(string(long)), clean(clean(string(long))))
}
