package eventstore

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	duration map[string]prometheus.Observer // by outcome
	batch    prometheus.Histogram
	lost     *prometheus.CounterVec
	ended    prometheus.Counter
	swept    prometheus.Counter
}

// outcomes are the values of the label outcome.
var outcomes = [...]string{"ok", "conflict", "refused", "unavailable", "unknown", "error"}

func newMetrics(reg prometheus.Registerer) *metrics {
	duration := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "refold_append_duration_seconds",
		Help: "Time from submitting an append to its answer, by outcome.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}, []string{"outcome"})
	m := &metrics{
		duration: make(map[string]prometheus.Observer, len(outcomes)),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "refold_append_batch_requests",
			Help: "Requests that were committed together.", Buckets: prometheus.ExponentialBuckets(1, 2, 12)}),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refold_append_lost_commits_total",
			Help: "Commits whose answer did not come, by what was found out: happened, not_happened or unknown."}, []string{"result"}),
		ended: prometheus.NewCounter(prometheus.CounterOpts{Name: "refold_append_ended_writers_total",
			Help: "Sessions of stopped writers that were ended because they held locks."}),
		swept: prometheus.NewCounter(prometheus.CounterOpts{Name: "refold_append_swept_keys_total",
			Help: "Idempotency keys that were forgotten because of their age."}),
	}
	for _, outcome := range outcomes {
		m.duration[outcome] = duration.WithLabelValues(outcome)
	}
	for _, result := range []string{"happened", "not_happened", "unknown"} {
		m.lost.WithLabelValues(result)
	}
	reg.MustRegister(duration, m.batch, m.lost, m.ended, m.swept)
	return m
}

func (m *metrics) appended(err error, took time.Duration) {
	m.duration[outcomeLabel(err)].Observe(took.Seconds())
}

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
	case errors.Is(err, ErrInternal):
		return "error"
	default:
		return "refused"
	}
}
