package kafka

import (
	"context"
	"encoding/hex"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Links are the spans that the events of a batch came from. A batch comes from
// many, so the span of what is done with it is linked to them and has none for a
// parent. The zero value is empty.
type Links struct{ list []trace.Link }

// maxLinks is the most that a span is linked to.
const maxLinks = 32

// Reset empties the list and keeps its memory.
func (l *Links) Reset() { l.list = l.list[:0] }

// Add adds the span of an event's traceparent. It leaves out what is malformed or
// was not sampled, the same one again, and what comes after many.
func (l *Links) Add(traceparent string) {
	if len(l.list) == maxLinks {
		return
	}
	span, ok := parseTraceparent(traceparent)
	if n := len(l.list); ok && (n == 0 || !l.list[n-1].SpanContext.Equal(span)) {
		l.list = append(l.list, trace.Link{SpanContext: span})
	}
}

// parseTraceparent reads W3C's header of version 00, and tells whether it names a
// span that was sampled.
func parseTraceparent(s string) (span trace.SpanContext, ok bool) {
	if len(s) != 55 || s[:3] != "00-" || s[35] != '-' || s[52] != '-' {
		return span, false
	}
	var cfg trace.SpanContextConfig
	var flags [1]byte
	for _, part := range [...]struct {
		into []byte
		text string
	}{{cfg.TraceID[:], s[3:35]}, {cfg.SpanID[:], s[36:52]}, {flags[:], s[53:]}} {
		if _, err := hex.Decode(part.into, []byte(part.text)); err != nil {
			return span, false
		}
	}
	cfg.TraceFlags, cfg.Remote = trace.TraceFlags(flags[0]), true
	span = trace.NewSpanContext(cfg)
	return span, span.IsValid() && span.IsSampled()
}

// Span tells tracer of what was done with the batch since start, and of err where
// it failed. Without links it tells nothing: nobody follows these events.
func (l *Links) Span(tracer trace.Tracer, name string, kind trace.SpanKind, start time.Time, err error, attributes ...attribute.KeyValue) {
	if tracer == nil || len(l.list) == 0 {
		return
	}
	_, span := tracer.Start(context.Background(), name, trace.WithTimestamp(start), trace.WithSpanKind(kind), trace.WithLinks(l.list...), trace.WithAttributes(attributes...))
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// SpanAttributes returns the attributes of a batch of a partition, as OpenTelemetry's
// conventions for messaging name them.
func SpanAttributes(topic string, partition, events int) []attribute.KeyValue {
	return []attribute.KeyValue{attribute.String("messaging.system", "kafka"), attribute.String("messaging.destination.name", topic),
		attribute.String("messaging.destination.partition.id", strconv.Itoa(partition)), attribute.Int("messaging.batch.message_count", events)}
}
