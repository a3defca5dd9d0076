package rebuilder

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/projection"
)

// BenchmarkFold measures reading headers, judging the sequence and folding,
// without a broker.
func BenchmarkFold(b *testing.B) {
	w := setup(b, ownYAML)
	var records []*kgo.Record
	for i := range 20_000 {
		e := w.event(fmt.Sprintf("user-%d", i%2000), "somebody@example.com")
		if e.Slot%4 == 0 {
			records = append(records, kafka.ToRecord(e, w.topic(), 0))
		}
	}
	r := w.rebuilder()
	plan, err := r.compile("own")
	require.NoError(b, err)
	categories, err := r.categories(w.ctx, plan)
	require.NoError(b, err)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		j := &job{Rebuilder: r, plan: plan, rebuild: Rebuild{Options: Options{Parallel: 1}}, log: slog.New(slog.DiscardHandler)}
		p := &part{category: categories[0], source: FromTopic, meter: &partMeter{total: 1}}
		l, err := j.newLoader(w.ctx, nil, p, "")
		require.NoError(b, err)
		l.limit, l.pass, l.high, l.sequence = 1<<40, 1, fullRange, newSequence(p)
		l.rows = make(map[string]*projection.Row)
		var e event.Event
		for _, record := range records {
			if err := kafka.Parse(record, "User", 16, 4, &e); err != nil {
				b.Fatal(err)
			}
			if err := l.event(&e); err != nil {
				b.Fatal(err)
			}
			n++
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkLoad measures reading and folding partitions from a broker, without
// writing rows.
func BenchmarkLoad(b *testing.B) {
	w := setup(b, ownYAML)
	const events = 300_000
	for range events / 10_000 {
		var list []*event.Event
		for i := range 10_000 {
			list = append(list, w.event(fmt.Sprintf("user-%d", i), "somebody@example.com"))
		}
		w.produce(list...)
	}
	r := w.rebuilder()
	plan, err := r.compile("own")
	require.NoError(b, err)
	categories, err := r.categories(w.ctx, plan)
	require.NoError(b, err)
	options, err := Options{}.withDefaults()
	require.NoError(b, err)
	j := &job{Rebuilder: r, plan: plan, categories: categories, rebuild: Rebuild{Options: options}, log: slog.New(slog.DiscardHandler)}
	parts, err := j.pin(w.ctx, FromTopic)
	require.NoError(b, err)
	b.ReportAllocs()
	n := int64(0)
	for b.Loop() {
		j.setParts(parts)
		var group errgroup.Group
		group.SetLimit(options.Parallel)
		for _, p := range parts {
			group.Go(func() error {
				l, err := j.newLoader(w.ctx, nil, p, "")
				if err != nil {
					return err
				}
				return l.passes(w.ctx)
			})
		}
		require.NoError(b, group.Wait())
		n += events
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
}
