package eventstore

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	duration *prometheus.HistogramVec
	batch    prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "refold_append_duration_seconds",
			Help: "Time from the start of a batch to the answers of its requests, by outcome.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}, []string{"outcome"}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "refold_append_batch_requests",
			Help: "Requests that were committed together.", Buckets: prometheus.ExponentialBuckets(1, 2, 12)}),
	}
	reg.MustRegister(m.duration, m.batch)
	return m
}

func (m *metrics) appended(err error, took time.Duration) {
	m.duration.WithLabelValues(outcomeLabel(err)).Observe(took.Seconds())
}

// count counts a request that was refused before it reached a lane.
func (m *metrics) count(err error) { m.appended(err, 0) }

func outcomeLabel(err error) string {
	var conflict *VersionConflict
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &conflict):
		return "conflict"
	case errors.Is(err, ErrUnavailable):
		return "unavailable"
	case errors.Is(err, ErrOutcomeUnknown):
		return "unknown"
	default:
		return "refused"
	}
}
