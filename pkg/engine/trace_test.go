package engine_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/refoldhq/refold/pkg/engine"
)

// A transaction is a span that is linked to those of the appends in it; one without
// any is none.
func TestTransactionsAreLinkedToTheirAppends(t *testing.T) {
	t.Parallel()
	w := setup(t)
	seen := tracetest.NewSpanRecorder()
	tracer := trace.NewTracerProvider(trace.WithSpanProcessor(seen)).Tracer("engine")
	w.produce(w.event("a", "1"))
	w.start(func(c *engine.Config) { c.Tracer = tracer })
	w.check(1)
	require.Empty(t, seen.Ended(), "nobody follows this event")
	one, two := w.event("a", "2"), w.event("a", "3")
	for i, e := range []*string{&one.Metadata.Traceparent, &two.Metadata.Traceparent} {
		*e = fmt.Sprintf("00-4bf92f3577b34da6a3ce929d0e0e4736-%016x-01", i+1)
	}
	w.produce(one, two)
	w.check(3)
	links := 0
	require.Eventually(t, func() bool {
		links = 0
		for _, span := range seen.Ended() {
			links += len(span.Links())
		}
		return links == 2
	}, patience, patience/1000, "one transaction or two")
	span := seen.Ended()[0]
	require.Equal(t, "process refold.user", span.Name())
	require.Contains(t, fmt.Sprint(span.Attributes()), "logins")
}
