package engine_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/pkg/strictjson"
	"github.com/refoldhq/refold/schemas"
)

var ctx = context.Background()

// world has the category User with 4 slots in 2 partitions, a projection of it
// and a broker; events are written to table and topic by the test itself.
type world struct {
	t        *testing.T
	pool     *pgxpool.Pool
	client   *kgo.Client
	registry *registry.Registry
	typ      *avro.EventType
	schemaID int
	feed     engine.Feed
	brokers  []string
	seqs     map[int]int64
	last     map[int]event.ID
	metrics  *prometheus.Registry // of the engine that was made last
}

const definition = `projection: logins
category: User
fields:
  email:  {from: [UserCreated]}
  events: {count: "*"}
indexes:
  - {fields: [email]}
`

func setup(t *testing.T) *world { t.Helper(); return setupWith(t, definition) }

func setupWith(t *testing.T, definition string) *world {
	t.Helper()
	return setupIn(t, devstack.MigratedDatabase(t), definition)
}

func setupIn(t *testing.T, pool *pgxpool.Pool, definition string) *world {
	t.Helper()
	w := &world{t: t, pool: pool, brokers: devstack.FakeKafka(t), seqs: map[int]int64{}, last: map[int]event.ID{}}
	_, err := w.pool.Exec(ctx, `with c as (insert into refold.category (name, slots, partitions, topic) values ('User', 4, 2, 'refold.user') returning id)
		insert into refold.slot (category, slot) select id, generate_series(0, 3) from c`)
	require.NoError(t, err)
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	category, _ := contracts.Category("User")
	w.typ, _ = category.Type("UserCreated")
	w.registry = registry.New(w.pool)
	w.schemaID, err = w.registry.Register(ctx, "refold.user-refold.user.UserCreated", w.typ.Newest())
	require.NoError(t, err)
	definitions, err := projection.ParseDefinitions("p.yaml", []byte(definition))
	require.NoError(t, err)
	feeds, err := engine.Setup(ctx, w.pool, contracts, definitions, nil)
	require.NoError(t, err)
	require.Len(t, feeds, 1)
	w.feed = feeds[0]
	w.client, err = kgo.NewClient(kgo.SeedBrokers(w.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	t.Cleanup(w.client.Close)
	_, err = kafka.EnsureTopic(ctx, kadm.NewClient(w.client), "refold.user", 2)
	require.NoError(t, err)
	return w
}

// event makes the next event of a stream and writes it to the table.
func (w *world) event(stream, email string) *event.Event {
	w.t.Helper()
	e := w.unwritten(stream, email)
	w.restore(e)
	return e
}

// unwritten makes the next event of a stream.
func (w *world) unwritten(stream, email string) *event.Event {
	w.t.Helper()
	slot := event.SlotOf(stream, 4)
	w.seqs[slot]++
	value, err := w.typ.Newest().EncodeJSON(avro.AppendFrame(nil, w.schemaID), strictjson.NewReader([]byte(fmt.Sprintf(`{"id": %q, "email": %q, "isActive": true}`, stream, email))))
	require.NoError(w.t, err)
	e := &event.Event{ID: event.NewID(), Category: "User", Stream: stream, Version: w.seqs[slot], Slot: slot, Seq: w.seqs[slot], Type: "UserCreated", Value: value,
		Time: 1, Recorded: 1, PrevID: w.last[slot]}
	w.last[slot] = e.ID
	return e
}

func (w *world) produce(events ...*event.Event) {
	w.t.Helper()
	records := make([]*kgo.Record, len(events))
	for i, e := range events {
		records[i] = kafka.ToRecord(e, "refold.user", int32(e.Slot%2))
	}
	require.NoError(w.t, w.client.ProduceSync(ctx, records...).FirstErr())
}

// start runs an engine until the test ends or the returned function is called.
func (w *world) start(changes ...func(*engine.Config)) (stop func()) {
	w.t.Helper()
	return w.startEngine(w.newEngine(changes...))
}

func (w *world) newEngine(changes ...func(*engine.Config)) *engine.Engine {
	cfg := engine.Config{DatabaseURL: w.pool.Config().ConnString(), Kafka: kafka.Config{Brokers: w.brokers}, Prefix: "refold", Owner: "test"}
	for _, change := range changes {
		change(&cfg)
	}
	w.metrics = prometheus.NewRegistry()
	return engine.New(cfg, w.pool, w.registry, eventstore.NewReader(w.pool), slog.New(slog.DiscardHandler), w.metrics)
}

func (w *world) startEngine(e *engine.Engine) (stop func()) {
	w.t.Helper()
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		e.Run(running, []engine.Feed{w.feed})
		close(done)
	}()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			<-done
		}
	}
	w.t.Cleanup(stop)
	return stop
}

// patience is how long a test waits for what should come within a second.
const patience = time.Minute

func (w *world) await(what, sql string, want int64) {
	w.t.Helper()
	var got int64
	var err error
	deadline := time.Now().Add(patience)
	for ; time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = w.pool.QueryRow(ctx, sql).Scan(&got); err == nil && got == want {
			return
		}
	}
	w.t.Fatalf("%s: %s is %d (%v), want %d", what, sql, got, err, want)
}

// other returns the name of a stream in another slot of the same partition.
func (w *world) other(stream string) string {
	for i := 0; ; i++ {
		name := fmt.Sprintf("other%d", i)
		if a, b := event.SlotOf(stream, 4), event.SlotOf(name, 4); a != b && a%2 == b%2 {
			return name
		}
	}
}

// remove takes an event out of the table, restore puts it there again.
func (w *world) remove(e *event.Event) {
	w.t.Helper()
	_, err := w.pool.Exec(ctx, `delete from refold.event where id = $1`, [16]byte(e.ID))
	require.NoError(w.t, err)
}

func (w *world) restore(e *event.Event) {
	w.t.Helper()
	_, err := w.pool.Exec(ctx, `insert into refold.event (category, slot, seq, version, id, time, recorded, stream, type, value)
		select id, $1, $2, $2, $3, $6, $6, $4, 'UserCreated', $5 from refold.category`, e.Slot, e.Seq, [16]byte(e.ID), e.Stream, e.Value, e.Time.Std())
	require.NoError(w.t, err)
}

const (
	stoppedSlots = `select sum(jsonb_array_length(stopped))::bigint from refold.progress`
	unaccounted  = `select sum(abs(next_offset - applied - duplicates - filtered - parked - skipped - foreign_records - held + filled)
		+ abs((select sum(s) from unnest(seqs) s) - applied - filtered - parked - skipped))::bigint from refold.progress`
	applied = `select sum(s)::bigint from refold.progress, unnest(seqs) s`
	counted = `select coalesce(sum((data->>'events')::bigint), 0)::bigint from refold.projections`
)

func TestDuplicatesAndForeignRecordsChangeNothing(t *testing.T) {
	t.Parallel()
	w := setup(t)
	a, b := w.event("a", "1"), w.event("a", "2")
	w.produce(a, b, a, b)
	require.NoError(t, w.client.ProduceSync(ctx, &kgo.Record{Topic: "refold.user", Key: []byte("a"), Value: []byte("junk")}).FirstErr())
	stop := w.start()
	w.await("applied", applied, 2)
	w.await("the rest is accounted for", `select sum(duplicates + foreign_records)::bigint from refold.progress`, 3)
	stop()
	w.produce(b, w.event("a", "3"))
	w.start()
	w.await("goes on where it was", applied, 3)
	w.await("rows", counted, 3)
	w.await("counts add up to the offsets", `select sum(next_offset - applied - duplicates - filtered - parked - skipped - foreign_records - held + filled)::bigint from refold.progress`, 0)
}

func TestMissingRecordsAreReadFromTheEventTable(t *testing.T) {
	t.Parallel()
	w := setup(t)
	a, missing, c := w.event("a", "1"), w.event("a", "2"), w.event("a", "3")
	w.produce(a, c, missing)
	w.start()
	w.await("applied", applied, 3)
	w.await("rows", counted, 3)
}

func TestSlotWithAGapThatNobodyCanFillStopsAlone(t *testing.T) {
	t.Parallel()
	w := setup(t)
	other := w.other("a")
	a, b, c := w.event("a", "1"), w.event("a", "2"), w.event("a", "3")
	w.remove(b)
	w.produce(a, c, w.event(other, "1"))
	stop := w.start()
	w.await("stopped", stoppedSlots, 1)
	w.await("what comes before the gap, and the other slot, are applied", applied, 2)
	stop()
	d := w.event("a", "4")
	w.produce(d, w.event(other, "2"))
	w.start()
	w.await("the other slot flows, after a restart too", applied, 3)
	w.await("the records that are passed over are counted", `select sum(held)::bigint from refold.progress`, 2)
	w.await("the progress row says what is missing", `select (stopped->0->>'firstMissing')::bigint from refold.progress where stopped <> '[]'`, 2)
	w.restore(b)
	w.await("goes on by itself once the event is there", applied, 6)
	w.await("rows", counted, 6)
	w.await("none is stopped", stoppedSlots, 0)
	w.await("counts add up", unaccounted, 0)
}

// The database has lost its tail and has given the seqs of it to other events.
func TestSlotWhoseLogHasLostItsTailStops(t *testing.T) {
	t.Parallel()
	w := setup(t)
	a := w.event("a", "1")
	w.produce(a)
	w.start()
	w.await("applied", applied, 1)
	w.remove(a)
	w.seqs[a.Slot], w.last[a.Slot] = 0, event.ID{}
	w.event("a", "instead of it")
	w.produce(w.event("a", "2"), w.event(w.other("a"), "1"))
	w.await("alarm", `select count(*) from refold.progress where stopped->0->>'reason' like '%lost its tail%'`, 1)
	w.await("the other slot flows", counted, 2)
	w.awaitMetric("refold_projection_stopped_slots", 1)
}

// A record that names another predecessor than the event table does is not
// believed: the table is.
func TestRecordOfAnotherBranchIsNotBelieved(t *testing.T) {
	t.Parallel()
	w := setup(t)
	a, b := w.event("a", "1"), w.event("a", "2")
	b.PrevID = event.NewID()
	w.produce(a, b)
	w.start()
	w.check(2)
	w.await("it was passed over", `select sum(held)::bigint from refold.progress`, 1)
}

// poison is an address that no fold takes, as it is too long for an index.
var poison = strings.Repeat("x", 2001)

func TestPoisonParksItsStreamAndOthersGoOn(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.produce(w.event("a", "1"), w.event("a", poison), w.event("a", "3"), w.event("b", "1"), w.event("c", "1"))
	stop := w.start()
	w.await("parked", `select count(*) from refold.parked_event`, 2)
	w.await("rows", counted, 3)
	stop()
	w.produce(w.event("a", "4"))
	w.start()
	w.await("what follows waits behind it, after a restart too", `select count(*) from refold.parked_event where stream = 'a'`, 3)
	w.await("rows", counted, 3)
}

func TestRecreatedTopicStandsWithAnAlarm(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.produce(w.event("a", "1"))
	stop := w.start()
	w.await("applied", applied, 1)
	stop()
	admin := kadm.NewClient(w.client)
	_, err := admin.DeleteTopic(ctx, "refold.user")
	require.NoError(t, err)
	_, err = kafka.EnsureTopic(ctx, admin, "refold.user", 2)
	require.NoError(t, err)
	w.start()
	require.Eventually(t, func() bool {
		var n int
		return w.pool.QueryRow(ctx, `select count(*) from refold.progress where alarm like '%recreated%'`).Scan(&n) == nil && n > 0
	}, patience, 20*time.Millisecond)
}

// The compare-and-set of a former owner raises an error, so that the rows behind
// it in the pipeline are not written. An UPDATE of no rows would be a success.
func TestZombiesPipelineWritesNoRows(t *testing.T) {
	t.Parallel()
	w := setup(t)
	claim := func() (epoch int64) {
		require.NoError(t, w.pool.QueryRow(ctx, `select epoch from refold.progress_claim('logins', 1, 'User', 1, 0, 'x', gen_random_uuid(), 0)`).Scan(&epoch))
		return epoch
	}
	old, current := claim(), claim()
	commit := func(epoch int64) error {
		trip := &pgx.Batch{}
		trip.Queue(`select refold.progress_move('logins', 1, 'User', 1, 0, $1, 0, 5, seqs, last_ids, 5, 0, 0, 0, 0, 0, 0, 0, null, null) from refold.progress where partition = 0`, epoch)
		trip.Queue(`insert into ` + w.feed.Version.Table() + ` (projection_name, version, key, data) values ('logins', 1, 'zombie', '{"events": 1}')`)
		return w.pool.SendBatch(ctx, trip).Close()
	}
	var refused *pgconn.PgError
	require.ErrorAs(t, commit(old), &refused)
	require.Equal(t, "RF010", refused.Code)
	w.await("rows", counted, 0)
	require.NoError(t, commit(current))
	require.ErrorAs(t, commit(current), &refused, "the offset has moved")
}
