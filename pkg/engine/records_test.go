package engine_test

import (
	"encoding/json"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/registry"
)

// damages are what may have become of a value on its way.
func damages(value []byte) map[string][]byte {
	changed := func(at int, b byte) []byte {
		out := append([]byte(nil), value...)
		out[at] = b
		return out
	}
	giant := []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}
	return map[string][]byte{
		"nothing":         {},
		"a null":          nil,
		"one byte":        {0},
		"the frame alone": value[:5],
		"truncated":       value[:len(value)-1],
		"another magic":   changed(0, 7),
		"unknown schema":  changed(1, 0x7f),
		"a giant length":  append(append([]byte(nil), value[:5]...), giant...),
		"a negative one":  append(append([]byte(nil), value[:5]...), 0x01),
		"invalid UTF-8":   changed(7, 0xff),
		"trailing bytes":  append(append([]byte(nil), value...), "more"...),
		"random bytes":    append([]byte{0, 0, 0, 0, 1}, "\x93\x00\xfe\x41\x80\x80\x80\x80\x80\x80\x80\x80"...),
		"deep nesting":    append(append([]byte(nil), value[:5]...), strings.Repeat("\x02", 100_000)...),
	}
}

// Whatever has become of a record with our headers, its event is taken from the
// event table; without them it is no event.
func TestDamagedRecordsOfEveryKindHarmNothing(t *testing.T) {
	t.Parallel()
	w := setup(t)
	n := int64(0)
	for name, value := range damages(w.unwrittenValue("probe")) {
		stream := strings.ReplaceAll(name, " ", "-")
		first, second, third := w.event(stream, "1"), w.event(stream, "2"), w.event(stream, "3")
		damaged := kafka.ToRecord(second, "refold.user", int32(second.Slot%2))
		damaged.Value = value
		w.produce(first)
		require.NoError(t, w.client.ProduceSync(ctx, damaged,
			&kgo.Record{Topic: damaged.Topic, Partition: damaged.Partition, Key: damaged.Key, Value: value}).FirstErr())
		w.produce(third)
		n += 3
	}
	w.start()
	w.check(n)
	w.await("nothing is parked", parkedEvents, 0)
	w.await("none is stopped", stoppedSlots, 0)
}

// Where the event table holds such a value itself, its stream is parked and no
// other.
func TestDamagedEventsOfEveryKindParkTheirStreamAlone(t *testing.T) {
	t.Parallel()
	w := setup(t)
	var parked, applied int64
	for name, value := range damages(w.unwrittenValue("probe")) {
		if value == nil {
			continue // the table has no such event
		}
		stream := strings.ReplaceAll(name, " ", "-")
		bad := w.unwritten(stream, "1")
		bad.Value = value
		w.restore(bad)
		w.produce(bad, w.event(stream, "2"), w.event("good-"+stream, "1"))
		parked, applied = parked+2, applied+1
	}
	w.start(func(c *engine.Config) { c.MaxParked = 100 })
	w.await("parked", parkedEvents, parked)
	w.await("the others are in the rows", counted, applied)
	w.await("the counts add up", unaccounted, 0)
}

// unwrittenValue returns the value of an event that stands nowhere.
func (w *world) unwrittenValue(stream string) []byte {
	slot := event.SlotOf(stream, 4)
	before := w.last[slot]
	e := w.unwritten(stream, "probe")
	w.seqs[slot], w.last[slot] = w.seqs[slot]-1, before
	return e.Value
}

// While the registry cannot be asked, events of a schema that is not known yet
// wait and are not taken for poison; those of known schemas go on.
func TestUnknownSchemasWaitForARegistryThatIsDown(t *testing.T) {
	t.Parallel()
	w := setup(t)
	direct, err := url.Parse(w.pool.Config().ConnString())
	require.NoError(t, err)
	proxy := devstack.StartProxy(t, direct.Host)
	through, err := postgres.Open(ctx, postgres.Config{URL: proxy.URL(direct.String()), MaxConns: 2})
	require.NoError(t, err)
	t.Cleanup(through.Close)
	w.startEngine(engine.New(engine.Config{DatabaseURL: w.pool.Config().ConnString(), Kafka: kafka.Config{Brokers: w.brokers}, Prefix: "refold", Owner: "test"},
		w.pool, registry.New(through), eventstore.NewReader(w.pool), slog.New(slog.DiscardHandler), prometheus.NewRegistry()))
	known, waits := inPartition(0), inPartition(1)
	w.produce(w.event(known, "1"))
	w.check(1) // and its schema is known now

	proxy.Cut()
	proxy.Refuse()
	// Another schema, whose values look the same.
	var source map[string]any
	require.NoError(t, json.Unmarshal([]byte(w.typ.Newest().String()), &source))
	source["fields"] = append(source["fields"].([]any), map[string]any{"name": "pad", "type": "null", "default": nil})
	text, err := json.Marshal(source)
	require.NoError(t, err)
	other, err := avro.Parse(text)
	require.NoError(t, err)
	old := w.schemaID
	w.schemaID, err = w.registry.Register(ctx, "another-subject", other)
	require.NoError(t, err)
	require.NotEqual(t, old, w.schemaID)
	w.produce(w.event(waits, "1"))
	w.schemaID = old
	w.await("the partition says that it stands", `select count(*) from refold.progress where partition = 1 and alarm is not null`, 1)
	w.produce(w.event(known, "2"), w.event(known, "3"), w.event(known, "4"))
	w.await("known schemas go on", seqsOf(0), 4)
	w.await("nothing is parked", parkedEvents, 0)
	proxy.Heal()
	w.check(5)
	w.await("nothing is parked", parkedEvents, 0)
}
