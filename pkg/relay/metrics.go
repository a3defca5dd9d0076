package relay

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	published      prometheus.Counter
	fenced         prometheus.Counter
	failed         *prometheus.CounterVec
	foreign        *prometheus.CounterVec
	stopped        *prometheus.CounterVec
	backlog        *prometheus.GaugeVec
	backlogSeconds *prometheus.GaugeVec
	partitions     prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	byTopic := []string{"topic"}
	m := &metrics{
		published: prometheus.NewCounter(prometheus.CounterOpts{Name: "refold_relay_published_events_total", Help: "Records that Kafka has acknowledged."}),
		fenced:    prometheus.NewCounter(prometheus.CounterOpts{Name: "refold_relay_fenced_total", Help: "Partitions that another relay took over while this one held them."}),
		failed:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refold_relay_failed_total", Help: "Times that a record was refused, so that its partition began again at its cursor."}, byTopic),
		foreign:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refold_relay_foreign_records_total", Help: "Records in our topics that refold did not make."}, byTopic),
		stopped:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refold_relay_stopped_total", Help: "Partitions stopped because topic and event table differ. Each needs an operator."}, byTopic),
		backlog:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "refold_relay_backlog_events", Help: "Committed events of owned partitions that Kafka has not acknowledged."}, byTopic),
		backlogSeconds: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "refold_relay_backlog_seconds",
			Help: "Age of the oldest committed event of owned partitions that Kafka has not acknowledged, in seconds."}, byTopic),
		partitions: prometheus.NewGauge(prometheus.GaugeOpts{Name: "refold_relay_partitions", Help: "Partitions that this process owns."}),
	}
	reg.MustRegister(m.published, m.fenced, m.failed, m.foreign, m.stopped, m.backlog, m.backlogSeconds, m.partitions)
	return m
}

// reset clears what only an owner can say.
func (m *metrics) reset() {
	m.backlog.Reset()
	m.backlogSeconds.Reset()
	m.partitions.Set(0)
}

const backlogSQL = `
	select coalesce(sum(greatest(0, head - u.seq)), 0)::bigint, coalesce(extract(epoch from clock_timestamp() - min(oldest)), 0)::float8
	from unnest($2::smallint[], $3::bigint[]) u (slot, seq),
	     lateral (select coalesce((select e.seq from refold.event e where e.category = $1 and e.slot = u.slot order by e.seq desc limit 1), 0) head,
	                     (select e.recorded from refold.event e where e.category = $1 and e.slot = u.slot and e.seq = u.seq + 1) oldest) h`

// measure sets the backlog gauges.
func (r *Relay) measure(ctx context.Context) error {
	slots, seqs, topics := make(map[int16][]int16), make(map[int16][]int64), make(map[int16]string)
	for _, p := range r.owned {
		topics[p.category] = p.topic
		slots[p.category] = append(slots[p.category], p.slots...)
		for _, at := range p.acked {
			seqs[p.category] = append(seqs[p.category], at.seq)
		}
	}
	r.metrics.partitions.Set(float64(len(r.owned)))
	for category, topic := range topics {
		var events int64
		var age float64
		if err := r.conn.QueryRow(ctx, backlogSQL, category, slots[category], seqs[category]).Scan(&events, &age); err != nil {
			return fmt.Errorf("measuring the backlog: %w", err)
		}
		r.metrics.backlog.WithLabelValues(topic).Set(float64(events))
		r.metrics.backlogSeconds.WithLabelValues(topic).Set(max(0, age))
	}
	return nil
}
