package service

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// A request's span continues the client's trace, events are given the span, and
// the collector gets it.
func TestRequestsAreTraced(t *testing.T) {
	received := make(chan *collector.ExportTraceServiceRequest, 1)
	collecting := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		request := &collector.ExportTraceServiceRequest{}
		if err == nil && proto.Unmarshal(raw, request) == nil && r.URL.Path == "/v1/traces" {
			received <- request
		}
	}))
	t.Cleanup(collecting.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collecting.URL)
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")

	h, err := NewHost(&Settings{}, "writer", Admin{AdminAddr: "127.0.0.1:0"})
	require.NoError(t, err)
	var seen string
	h.Mux.HandleFunc("GET /v1/things/{id}", func(_ http.ResponseWriter, r *http.Request) { seen = r.Header.Get("Traceparent") })
	handler := h.trace(h.Mux)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()

	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	r := httptest.NewRequest("GET", "/v1/things/7", nil)
	r.Header.Set("Traceparent", "00-"+id+"-"+parent+"-01")
	handler.ServeHTTP(httptest.NewRecorder(), r)
	require.Contains(t, seen, id)
	require.NotContains(t, seen, parent)
	stop()
	require.NoError(t, <-done)
	spans := (<-received).ResourceSpans[0]
	span := spans.ScopeSpans[0].Spans[0]
	require.Equal(t, "GET /v1/things/{id}", span.Name)
	require.Contains(t, spans.Resource.String(), "refold-writer")
	require.Contains(t, spans.Resource.String(), "deployment.environment.name")
}

func TestNothingIsTracedUnlessAsked(t *testing.T) {
	for _, env := range []map[string]string{{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}} {
		for name, value := range env {
			t.Setenv(name, value)
		}
		require.False(t, traced())
	}
}
