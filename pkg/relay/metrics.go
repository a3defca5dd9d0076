package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	published      prometheus.Counter
	fenced         prometheus.Counter
	failed         *prometheus.CounterVec
	foreign        *prometheus.CounterVec
	stopped        *prometheus.CounterVec
	requests       *prometheus.HistogramVec
	batch          prometheus.Histogram
	delay          prometheus.Histogram
	backlog        *prometheus.GaugeVec
	backlogSeconds *prometheus.GaugeVec
	stoppedSlots   *prometheus.GaugeVec
	partitions     prometheus.Gauge
	oldSnapshot    prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	byTopic := []string{"topic"}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, byTopic)
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, byTopic)
	}
	m := &metrics{
		published: prometheus.NewCounter(prometheus.CounterOpts{Name: "refold_relay_published_events_total", Help: "Events that Kafka has acknowledged."}),
		fenced:    prometheus.NewCounter(prometheus.CounterOpts{Name: "refold_relay_fenced_total", Help: "Partitions that another relay took over while this one held them."}),
		failed:    counter("refold_relay_refused_batches_total", "Batches whose records a broker has refused. They are halved until one record is left, which stops its slot."),
		foreign:   counter("refold_relay_foreign_records_total", "Records in our topics that refold did not make."),
		stopped:   counter("refold_relay_stopped_total", "Times that a partition was stopped because its topic is not the one that was written to. Each needs an operator."),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "refold_relay_request_duration_seconds", Help: "From sending batches to a broker to its answer, in seconds.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15)}, []string{"outcome"}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "refold_relay_batch_events", Help: "Events in an acknowledged batch.", Buckets: prometheus.ExponentialBuckets(1, 4, 8)}),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "refold_relay_delay_seconds",
			Help: "From the append to Kafka's acknowledgement, of the oldest event of each batch, in seconds.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 18)}),
		backlog:        gauge("refold_relay_backlog_events", "Committed events of owned partitions that Kafka has not acknowledged."),
		backlogSeconds: gauge("refold_relay_backlog_seconds", "Age of the oldest committed event of owned partitions that Kafka has not acknowledged, in seconds."),
		stoppedSlots:   gauge("refold_relay_stopped_slots", "Slots of owned partitions of which nothing is relayed: a broker refuses a record, or topic and event table differ."),
		partitions:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "refold_relay_partitions", Help: "Partitions that this process owns."}),
		oldSnapshot: prometheus.NewGauge(prometheus.GaugeOpts{Name: "refold_old_snapshot_seconds",
			Help: "Age of the oldest transaction on the server that keeps a snapshot, in seconds. While it lasts, dead rows of cursors, progress and leases stay."}),
	}
	reg.MustRegister(m.published, m.fenced, m.failed, m.foreign, m.stopped, m.requests, m.batch, m.delay, m.backlog, m.backlogSeconds, m.stoppedSlots, m.partitions, m.oldSnapshot)
	return m
}

// reset clears what only an owner can say.
func (m *metrics) reset() {
	m.backlog.Reset()
	m.backlogSeconds.Reset()
	m.stoppedSlots.Reset()
	m.partitions.Set(0)
	m.oldSnapshot.Set(0)
}

const backlogSQL = `
	select coalesce(sum(greatest(0, head - u.seq)), 0)::bigint, coalesce(extract(epoch from clock_timestamp() - min(oldest)), 0)::float8
	from unnest($2::smallint[], $3::bigint[]) u (slot, seq),
	     lateral (select coalesce((select e.seq from refold.event e where e.category = $1 and e.slot = u.slot order by e.seq desc limit 1), 0) head,
	                     (select e.recorded from refold.event e where e.category = $1 and e.slot = u.slot and e.seq = u.seq + 1) oldest) h`

// measure sets the gauges.
func (s *session) measure(ctx context.Context) error {
	slots, seqs, stopped, topics := make(map[int16][]int16), make(map[int16][]int64), make(map[int16]int), make(map[int16]string)
	for _, p := range s.owned {
		topics[p.category] = p.topic
		for i := range p.slots {
			slots[p.category] = append(slots[p.category], int16(p.slots[i].number))
			seqs[p.category] = append(seqs[p.category], p.slots[i].acked.seq)
			if p.alarm != "" || p.slots[i].stop != nil {
				stopped[p.category]++
			}
		}
	}
	s.metrics.reset()
	s.metrics.partitions.Set(float64(len(s.owned)))
	for category, topic := range topics {
		var events int64
		var age float64
		if err := s.conn.QueryRow(ctx, backlogSQL, category, slots[category], seqs[category]).Scan(&events, &age); err != nil {
			return fmt.Errorf("measuring the backlog: %w", err)
		}
		s.metrics.backlog.WithLabelValues(topic).Set(float64(events))
		s.metrics.backlogSeconds.WithLabelValues(topic).Set(max(0, age))
		s.metrics.stoppedSlots.WithLabelValues(topic).Set(float64(stopped[category]))
	}
	return s.measureSnapshots(ctx)
}

const snapshotSQL = `select coalesce(extract(epoch from clock_timestamp() - xact_start), 0)::float8, pid, coalesce(usename, ''), coalesce(application_name, ''), coalesce(state, '')
	from pg_catalog.pg_stat_activity where backend_xmin is not null and xact_start is not null and pid <> pg_catalog.pg_backend_pid() and backend_type = 'client backend'
	order by xact_start limit 1`

// oldSnapshot is the age of a transaction that an operator should know of.
const oldSnapshot = time.Minute

// measureSnapshots looks for a transaction that keeps dead rows from being
// removed: rows that must be updated, as cursors are, slow down under it.
func (s *session) measureSnapshots(ctx context.Context) error {
	rows, err := s.conn.Query(ctx, snapshotSQL)
	if err != nil {
		return fmt.Errorf("looking for old snapshots: %w", err)
	}
	defer rows.Close()
	if rows.Next() {
		var age float64
		var pid int32
		var user, application, state string
		if err := rows.Scan(&age, &pid, &user, &application, &state); err != nil {
			return fmt.Errorf("looking for old snapshots: %w", err)
		}
		s.metrics.oldSnapshot.Set(max(0, age))
		if age > oldSnapshot.Seconds() && time.Since(s.oldWarned) > oldSnapshot {
			s.oldWarned = time.Now()
			s.log.Warn("an old transaction keeps dead rows from being removed", "seconds", int(age), "pid", pid, "user", user, "application", application, "state", state)
		}
	}
	return rows.Err()
}
