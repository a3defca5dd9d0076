package kafka

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLinksAreThoseOfSampledSpans(t *testing.T) {
	t.Parallel()
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	var l Links
	for _, left := range []string{"", "x", "00-" + id + "-00f067aa0ba902b7-00", "00-" + id + "-0000000000000000-01", "01-" + id + "-00f067aa0ba902b7-01",
		"00-" + id + "-00f067aa0ba902bz-01", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "00_" + id + "-00f067aa0ba902b7-01"} {
		l.Add(left)
		require.Empty(t, l.list, left)
	}
	l.Add("00-" + id + "-00f067aa0ba902b7-01")
	l.Add("00-" + id + "-00f067aa0ba902b7-01")
	require.Len(t, l.list, 1)
	require.Equal(t, id, l.list[0].SpanContext.TraceID().String())
	require.True(t, l.list[0].SpanContext.IsRemote())
	for i := range 100 {
		l.Add(fmt.Sprintf("00-%s-%016x-01", id, i+1))
	}
	require.Len(t, l.list, maxLinks)
}
