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

// trace has requests traced, if OTEL_* say where to: OTLP over HTTP, with the
// endpoint, headers, sampler, service name and attributes of these variables.
func (h *Host) trace(program string, next http.Handler) (http.Handler, error) {
	if !traced() {
		return next, nil
	}
	ctx := context.Background() // dials nothing
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, Usage(fmt.Errorf("setting up traces: %w", err))
	}
	about, err := resource.New(ctx, resource.WithAttributes(semconv.ServiceName("refold-"+program), semconv.ServiceVersion(Version()),
		semconv.ServiceInstanceID(hostname())), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, Usage(fmt.Errorf("setting up traces: %w", err))
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
	return otelhttp.NewHandler(continued(next), "api", otelhttp.WithTracerProvider(provider), otelhttp.WithMeterProvider(noop.NewMeterProvider()),
		otelhttp.WithPropagators(propagation.TraceContext{})), nil
}

// continued hands the request's span on in the header that it came in: events
// keep it as their traceparent, and whoever reads them links to it.
func continued(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		propagation.TraceContext{}.Inject(r.Context(), propagation.HeaderCarrier(r.Header))
		next.ServeHTTP(w, r)
	})
}
