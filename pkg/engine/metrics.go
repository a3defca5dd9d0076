package engine

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	applied  *prometheus.CounterVec
	parked   *prometheus.CounterVec
	fetches  *prometheus.CounterVec
	restarts *prometheus.CounterVec
	fenced   prometheus.Counter
	duration prometheus.Histogram
	batch    prometheus.Histogram

	newest *prometheus.GaugeVec

	lagEvents, lagSeconds                          *gauges
	parkedStreams, stoppedSlots, stoppedPartitions *gauges
}

func newMetrics(reg prometheus.Registerer) *metrics {
	byProjection, byVersion := []string{"projection"}, []string{"projection", "version"}
	byPartition := []string{"projection", "version", "category", "partition"}
	counter := func(name, help string, labels []string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, labels []string) *gauges {
		return &gauges{GaugeVec: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)}
	}
	m := &metrics{
		applied:  counter("refold_projection_applied_events_total", "Events that were folded into rows and committed.", byProjection),
		parked:   counter("refold_projection_parked_events_total", "Events that were parked, with those that wait behind them.", byProjection),
		fetches:  counter("refold_projection_fetch_errors_total", "Errors of fetching from Kafka.", byProjection),
		restarts: counter("refold_projection_restarts_total", "Workers that gave up what they had in memory and claimed their partition again.", byProjection),
		fenced:   prometheus.NewCounter(prometheus.CounterOpts{Name: "refold_projection_fenced_total", Help: "Batches refused because another owner had claimed the partition."}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "refold_projection_apply_duration_seconds",
			Help: "Time from taking up a batch of records to its commit.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "refold_projection_batch_events",
			Help: "Events in a transaction.", Buckets: prometheus.ExponentialBuckets(1, 4, 8)}),
		newest: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "refold_projection_applied_timestamp_seconds",
			Help: "When the newest event of the last batch that was committed here was recorded, in seconds since 1970."}, byVersion),
		lagEvents:         gauge("refold_projection_lag_events", "Events of the log that the version has not folded, the same in every process that feeds it.", byPartition),
		lagSeconds:        gauge("refold_projection_lag_seconds", "Age of the oldest event that the version has not folded, the same in every process that feeds it.", byPartition),
		parkedStreams:     gauge("refold_projection_parked_streams", "Parked streams of the partitions that this process owns.", byVersion),
		stoppedSlots:      gauge("refold_projection_stopped_slots", "Stopped slots of the partitions that this process owns.", byVersion),
		stoppedPartitions: gauge("refold_projection_stopped_partitions", "Partitions that this process owns and that cannot go on.", byVersion),
	}
	reg.MustRegister(m.applied, m.parked, m.fetches, m.restarts, m.fenced, m.duration, m.batch, m.newest, m.lagEvents, m.lagSeconds, m.parkedStreams, m.stoppedSlots, m.stoppedPartitions)
	return m
}

// collect sets the gauges of what this process owns.
func (e *Engine) collect() {
	type key struct{ projection, version string }
	type sums struct{ parked, slots, partitions int }
	all := make(map[key]sums)
	e.each(func(w *worker) {
		v := w.feed.Version
		k := key{v.Projection, strconv.Itoa(v.Number)}
		s := all[k]
		shown := w.shown()
		s.parked += shown.parked
		s.slots += shown.stopped
		if shown.standing != "" {
			s.partitions++
		}
		all[k] = s
	})
	var parked, slots, partitions []reading
	for k, s := range all {
		labels := []string{k.projection, k.version}
		parked = append(parked, reading{labels, float64(s.parked)})
		slots = append(slots, reading{labels, float64(s.slots)})
		partitions = append(partitions, reading{labels, float64(s.partitions)})
	}
	e.metrics.parkedStreams.set(parked)
	e.metrics.stoppedSlots.set(slots)
	e.metrics.stoppedPartitions.set(partitions)
}

// Standing returns an error that says which partitions of this process cannot go
// on until somebody mends what it names; nil for none.
func (e *Engine) Standing() error {
	seen := make(map[string]bool)
	e.each(func(w *worker) {
		if why := w.shown().standing; why != "" {
			v := w.feed.Version
			seen[fmt.Sprintf("%s version %d: %s", v.Projection, v.Number, why)] = true
		}
	})
	if len(seen) == 0 {
		return nil
	}
	return errors.New(strings.Join(slices.Sorted(maps.Keys(seen)), "; "))
}

// gauges are the gauges of one name. Those that were not read this time are taken
// away, and the others never missing.
type gauges struct {
	*prometheus.GaugeVec
	shown map[string][]string // labels
}

type reading struct {
	labels []string
	value  float64
}

// set shows readings in the place of the last ones. It is called by one goroutine.
func (g *gauges) set(readings []reading) {
	shown := make(map[string][]string, len(readings))
	for _, r := range readings {
		g.WithLabelValues(r.labels...).Set(r.value)
		shown[strings.Join(r.labels, "\x00")] = r.labels
	}
	for key, labels := range g.shown {
		if shown[key] == nil {
			g.DeleteLabelValues(labels...)
		}
	}
	g.shown = shown
}
