package relay_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/refoldhq/refold/pkg/devstack"
)

// A batch is a span that is linked to those of the appends in it; one without any
// is none.
func TestBatchesAreLinkedToTheirAppends(t *testing.T) {
	t.Parallel()
	w := setup(t, devstack.FakeKafka(t))
	w.add(100)
	seen := tracetest.NewSpanRecorder()
	cfg := quick
	cfg.Tracer = trace.NewTracerProvider(trace.WithSpanProcessor(seen)).Tracer("relay")
	w.start(cfg)
	w.awaitRelayed()
	require.Empty(t, seen.Ended(), "nobody follows these events")

	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	w.exec(`alter table refold.event alter column traceparent set default '00-` + id + `-00f067aa0ba902b7-01'`)
	w.addTo(64, "s1", "s1")
	w.awaitRelayed()
	w.eventually(func() bool { return len(seen.Ended()) == 1 }, "one batch")
	span := seen.Ended()[0]
	require.Contains(t, span.Name(), "send ")
	require.Len(t, span.Links(), 1, "both are of one append")
	require.Equal(t, id, span.Links()[0].SpanContext.TraceID().String())
	require.False(t, span.Parent().IsValid())
	require.False(t, span.EndTime().Before(span.StartTime()))
}
