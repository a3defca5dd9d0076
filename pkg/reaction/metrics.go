package reaction

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/refoldhq/refold/pkg/event"
)

type metrics struct {
	events  *prometheus.CounterVec
	lag     prometheus.Gauge
	parked  prometheus.Gauge
	stopped prometheus.Gauge
}

// newMetrics returns the metrics of one reaction, whose name is a label.
func newMetrics(reg prometheus.Registerer, reaction string) (*metrics, error) {
	labels := prometheus.Labels{"reaction": reaction}
	m := &metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refold_reaction_calls_total",
			Help: "Calls of the functions for events, by outcome: ok or failed.", ConstLabels: labels}, []string{"event_type", "outcome"}),
		lag: prometheus.NewGauge(prometheus.GaugeOpts{Name: "refold_reaction_lag_events",
			Help: "Events that are not dealt with yet; -1 where the reaction does not run in this process.", ConstLabels: labels}),
		parked: prometheus.NewGauge(prometheus.GaugeOpts{Name: "refold_reaction_parked_streams",
			Help: "Streams that wait for a decision; -1 where the reaction does not run in this process.", ConstLabels: labels}),
		stopped: prometheus.NewGauge(prometheus.GaugeOpts{Name: "refold_reaction_stopped_slots",
			Help: "Slots whose log does not go on behind what was handled, and that wait for a decision; -1 where the reaction does not run in this process.", ConstLabels: labels}),
	}
	m.idle()
	if reg == nil {
		return m, nil
	}
	var failures []error
	for _, c := range []prometheus.Collector{m.events, m.lag, m.parked, m.stopped} {
		failures = append(failures, reg.Register(c))
	}
	if err := errors.Join(failures...); err != nil {
		return m, fmt.Errorf("two reactions of one name in this process: %w", err)
	}
	return m, nil
}

// idle says that the reaction does not run here.
func (m *metrics) idle() {
	m.lag.Set(-1)
	m.parked.Set(-1)
	m.stopped.Set(-1)
}

func (m *metrics) count(e *event.Event, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	m.events.WithLabelValues(e.Type, outcome).Inc()
}
