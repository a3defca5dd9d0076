package rebuilder

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the gauges of the rebuilds of a process.
type Metrics struct {
	ratio, eta, lag *prometheus.GaugeVec
	events          *prometheus.CounterVec
	outcomes        *prometheus.CounterVec
	promote         prometheus.Histogram
}

// NewMetrics registers the metrics; reg may be nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	by := []string{"projection"}
	m := &Metrics{
		ratio:    prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "refold_rebuild_progress_ratio", Help: "Events of the pinned total that are folded, from 0 to 1."}, by),
		eta:      prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "refold_rebuild_eta_seconds", Help: "Time until the load is done; -1 when it cannot be told."}, by),
		lag:      prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "refold_rebuild_lag_events", Help: "Events that the version which is built lacks, once it is fed."}, by),
		events:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refold_rebuild_events_total", Help: "Events that were folded by rebuilds."}, by),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refold_rebuild_finished_total", Help: "Rebuilds that ended, by outcome."}, []string{"projection", "outcome"}),
		promote: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "refold_rebuild_promote_duration_seconds",
			Help: "Time of the transaction that changes the serving version.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 12)}),
	}
	if reg != nil {
		reg.MustRegister(m.ratio, m.eta, m.lag, m.events, m.outcomes, m.promote)
	}
	return m
}

func (m *Metrics) show(name string, before, now Progress) {
	if now.Total > 0 {
		m.ratio.WithLabelValues(name).Set(float64(now.Done) / float64(now.Total))
	}
	m.eta.WithLabelValues(name).Set(now.ETASeconds)
	m.lag.WithLabelValues(name).Set(float64(now.Lag))
	if now.Done > before.Done {
		m.events.WithLabelValues(name).Add(float64(now.Done - before.Done))
	}
}
