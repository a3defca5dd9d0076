package rebuilder

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

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
