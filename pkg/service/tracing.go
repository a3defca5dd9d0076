package service

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/semconv/v1.43.0"
	oteltrace "go.opentelemetry.io/otel/trace"
)

// traced tells whether OpenTelemetry's variables ask for traces.
func traced() bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") || os.Getenv("OTEL_TRACES_EXPORTER") == "none" {
		return false
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// flushTimeout bounds how long the last spans may take at the end.
const flushTimeout = 2 * time.Second

// startTraces has spans sent, if OTEL_* say where to: OTLP over HTTP, with the
// endpoint, headers, sampler, service name and attributes of these variables. It is
// called before the first component is added, so that traces end last.
func (h *Host) startTraces() error {
	if !traced() {
		return nil
	}
	ctx := context.Background() // dials nothing
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return Usage(fmt.Errorf("setting up traces: %w", err))
	}
	about, err := resource.New(ctx, resource.WithAttributes(semconv.ServiceName("refold-"+h.program), semconv.ServiceVersion(Version()),
		semconv.ServiceInstanceID(hostname())), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return Usage(fmt.Errorf("setting up traces: %w", err))
	}
	provider := trace.NewTracerProvider(trace.WithBatcher(exporter), trace.WithResource(about))
	h.service.Add("traces", func(ctx context.Context) error {
		<-ctx.Done()
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		if err := provider.Shutdown(closing); err != nil {
			h.Log.Warn("sending the last spans", "err", err)
		}
		return nil
	})
	h.traces = provider
	return nil
}

// tracer returns what a component tells of its work; nil where nothing is traced.
func (h *Host) tracer(component string) oteltrace.Tracer {
	if h.traces == nil {
		return nil
	}
	return h.traces.Tracer("github.com/refoldhq/refold/pkg/" + component)
}

// trace has requests traced.
func (h *Host) trace(next http.Handler) http.Handler {
	if h.traces == nil {
		return next
	}
	return otelhttp.NewHandler(continued(next), "api", otelhttp.WithTracerProvider(h.traces), otelhttp.WithMeterProvider(noop.NewMeterProvider()),
		otelhttp.WithPropagators(propagation.TraceContext{}))
}

// continued hands the request's span on in the header that it came in: events
// keep it as their traceparent, and whoever reads them links to it.
func continued(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		propagation.TraceContext{}.Inject(r.Context(), propagation.HeaderCarrier(r.Header))
		next.ServeHTTP(w, r)
	})
}
