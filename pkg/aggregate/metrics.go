package aggregate

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/refoldhq/refold/pkg/eventstore"
)

type metrics struct {
	commands  *prometheus.CounterVec
	fromCache prometheus.Counter
	fromLog   prometheus.Counter
	snapshots *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refold_commands_total",
			Help: "Calls that ran a function on an aggregate, by outcome; one on several aggregates counts once for each category."}, []string{"category", "outcome"}),
		snapshots: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refold_snapshots_total",
			Help: "Snapshots, by outcome: written, failed, or unreadable when one was loaded."}, []string{"outcome"}),
	}
	loads := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refold_aggregate_loads_total",
		Help: "Aggregates that a call needed, by where they came from: cache or log."}, []string{"from"})
	m.fromCache, m.fromLog = loads.WithLabelValues("cache"), loads.WithLabelValues("log")
	if reg != nil {
		reg.MustRegister(m.commands, loads, m.snapshots)
	}
	return m
}

func (m *metrics) loaded(warm bool) {
	if warm {
		m.fromCache.Inc()
	} else {
		m.fromLog.Inc()
	}
}

func (m *metrics) badSnapshot() { m.snapshots.WithLabelValues("unreadable").Inc() }

func (m *metrics) snapshotWritten(err error) {
	outcome := "written"
	if err != nil {
		outcome = "failed"
	}
	m.snapshots.WithLabelValues(outcome).Inc()
}

// count counts a call by what became of it.
func (m *metrics) count(category string, err error) {
	m.commands.WithLabelValues(category, outcomeOf(err)).Inc()
}

func outcomeOf(err error) string {
	if err == nil { // what follows allocates
		return "ok"
	}
	var broken *Broken
	var conflict *Conflict
	var taken *ClaimTaken
	var missing *Missing
	var exists *Exists
	switch {
	case errors.As(err, &broken):
		return "broken"
	case errors.As(err, &conflict):
		return "conflict"
	case errors.As(err, &taken):
		return "claim_taken"
	case errors.As(err, &missing):
		return "missing"
	case errors.As(err, &exists):
		return "exists"
	case errors.Is(err, eventstore.ErrOutcomeUnknown):
		return "unknown"
	default:
		return "failed"
	}
}
