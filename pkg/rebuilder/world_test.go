package rebuilder

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
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
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/pkg/strictjson"
	"github.com/refoldhq/refold/schemas"
)

// world has the category User with 16 slots in 4 partitions, a broker, and
// definitions; events are written to the table and the topic by the test itself,
// as the relay would.
type world struct {
	t           testing.TB
	ctx         context.Context
	pool        *pgxpool.Pool
	client      *kgo.Client
	brokers     []string
	registry    *registry.Registry
	contracts   *avro.Contracts
	definitions []*projection.Definition
	ids         map[string]int
	seqs        map[int]int64
	last        map[int]event.ID
	versions    map[string]int64
	now         event.Time
}

const ownYAML = `projection: own
category: User
fields:
  id:     {from: [UserCreated]}
  email:  {from: [UserCreated, UserEmailChanged.newEmail]}
  events: {count: "*"}
  seen:   {max: "*.$time"}
indexes:
  - {fields: [email]}
`

const sharedYAML = `projection: shared
category: User
key: {bucket: $time, by: hour}
fields:
  hour:   {key: true}
  events: {count: "*"}
  last:   {last: [UserCreated.email, UserEmailChanged.newEmail]}
  newest: {last: UserCreated.email}
  seen:   {max: "*.$time"}
`

func setup(t testing.TB, definitions ...string) *world {
	t.Helper()
	brokers := devstack.FakeKafka
	if os.Getenv("REFOLD_TEST_KAFKA") == "real" {
		brokers = devstack.RealKafka
	}
	return setupOn(t, devstack.MigratedDatabase(t), brokers(t), definitions...)
}

// setupOn makes a world on a database and brokers of the test's own.
func setupOn(t testing.TB, pool *pgxpool.Pool, brokers []string, definitions ...string) *world {
	t.Helper()
	w := setupWith(t, pool, brokers, schemas.FS, "User", 16)
	w.define(definitions...)
	return w
}

// setupWith makes a world with the contracts of one category.
func setupWith(t testing.TB, pool *pgxpool.Pool, brokers []string, contracts fs.FS, name string, slots int) *world {
	t.Helper()
	w := &world{t: t, ctx: t.Context(), pool: pool, brokers: brokers, ids: make(map[string]int), seqs: make(map[int]int64),
		last: make(map[int]event.ID), versions: make(map[string]int64), now: 1_700_000_000_000_000}
	w.exec(`with c as (insert into refold.category (name, slots, partitions, topic) values ($1, $2, 4, $3) returning id)
		insert into refold.slot (category, slot) select id, generate_series(0, $2 - 1) from c`, name, slots, w.topic())
	var err error
	w.contracts, err = avro.LoadContracts(contracts)
	require.NoError(t, err)
	w.registry = registry.New(w.pool)
	category, _ := w.contracts.Category(name)
	for _, typ := range category.Types {
		w.ids[typ.Name], err = w.registry.Register(w.ctx, w.topic()+"-"+typ.Name, typ.Newest())
		require.NoError(t, err)
	}
	w.client, err = kgo.NewClient(kgo.SeedBrokers(w.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	t.Cleanup(w.client.Close)
	_, err = kafka.EnsureTopic(w.ctx, kadm.NewClient(w.client), w.topic(), 4)
	require.NoError(t, err)
	return w
}

// topic is the test's own, as brokers may be shared.
func (w *world) topic() string { return "refold." + w.pool.Config().ConnConfig.Database }

func (w *world) define(texts ...string) {
	w.t.Helper()
	w.definitions = nil
	for _, text := range texts {
		list, err := projection.ParseDefinitions("test.yaml", []byte(text))
		require.NoError(w.t, err)
		w.definitions = append(w.definitions, list...)
	}
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	_, err := w.pool.Exec(w.ctx, sql, args...)
	require.NoError(w.t, err)
}

func (w *world) number(sql string, args ...any) (n int64) {
	w.t.Helper()
	require.NoError(w.t, w.pool.QueryRow(w.ctx, sql, args...).Scan(&n))
	return n
}

// event makes the next event of a stream: one that creates it, or a change.
func (w *world) event(stream, email string) *event.Event {
	w.t.Helper()
	if w.versions[stream] > 0 {
		return w.make(stream, "UserEmailChanged", fmt.Sprintf(`{"newEmail": %q}`, email))
	}
	return w.make(stream, "UserCreated", fmt.Sprintf(`{"id": %q, "email": %q, "isActive": true}`, stream, email))
}

// make makes the next event of a stream, of a type.
func (w *world) make(stream, name, body string) *event.Event {
	w.t.Helper()
	w.versions[stream]++
	category, _ := w.contracts.Category("User")
	typ, _ := category.Type(name)
	value, err := typ.Newest().EncodeJSON(avro.AppendFrame(nil, w.ids[name]), strictjson.NewReader([]byte(body)))
	require.NoError(w.t, err)
	slot := event.SlotOf(stream, 16)
	w.seqs[slot]++
	w.now += 61_000_000
	e := &event.Event{ID: event.NewID(), Category: "User", Stream: stream, Version: w.versions[stream], Slot: slot, Seq: w.seqs[slot], Type: name, Value: value,
		Time: w.now, Recorded: w.now + 5, PrevID: w.last[slot]}
	w.last[slot] = e.ID
	return e
}

// append writes events to the table and the topic.
func (w *world) append(events ...*event.Event) {
	w.t.Helper()
	w.insert(events...)
	w.produce(events...)
}

func (w *world) insert(events ...*event.Event) {
	w.t.Helper()
	batch := &pgx.Batch{}
	for _, e := range events {
		batch.Queue(`insert into refold.event (category, slot, seq, version, id, time, recorded, stream, type, value, actor)
			select id, $1, $2, $3, $4, $5, $6, $7, $8, $9, nullif($10, '') from refold.category`, e.Slot, e.Seq, e.Version, [16]byte(e.ID), e.Time.Std(), e.Recorded.Std(), e.Stream, e.Type, e.Value, e.Metadata.Actor)
	}
	require.NoError(w.t, w.pool.SendBatch(w.ctx, batch).Close())
}

func (w *world) produce(events ...*event.Event) {
	w.t.Helper()
	var records []*kgo.Record
	for _, e := range events {
		records = append(records, kafka.ToRecord(e, w.topic(), int32(e.Slot%4)))
	}
	require.NoError(w.t, w.client.ProduceSync(w.ctx, records...).FirstErr())
}

// history appends events of so many streams, some of them more than others.
func (w *world) history(streams, each int) {
	w.t.Helper()
	var events []*event.Event
	for n := range each {
		for s := range streams {
			if n == 0 || (s+n)%3 > 0 {
				events = append(events, w.event(fmt.Sprintf("user-%d", s), fmt.Sprintf("u%d-%d@\"é\\.example", s, n)))
			}
		}
	}
	w.append(events...)
}

// live feeds every version that is to be fed, and that all of only want, until the
// test ends or stop is called.
func (w *world) live(only ...func(engine.Feed) bool) (stop func()) {
	w.t.Helper()
	running, cancel := context.WithCancel(w.ctx)
	feeds, err := engine.Setup(w.ctx, w.pool, w.contracts, w.definitions, nil)
	require.NoError(w.t, err)
	for _, wanted := range only {
		feeds = slices.DeleteFunc(feeds, func(f engine.Feed) bool { return !wanted(f) })
	}
	e := engine.New(engine.Config{DatabaseURL: w.url(), Kafka: kafka.Config{Brokers: w.brokers}, Prefix: w.topic(), Owner: "live"}, w.pool, w.registry,
		eventstore.NewReader(w.pool), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Run(running, feeds)
	}()
	stop = func() { cancel(); <-done }
	w.t.Cleanup(stop)
	return stop
}

// follow feeds every version by the definition that it is to be fed by, as
// programs do, until the test ends or stop is called.
func (w *world) follow() (stop func()) {
	w.t.Helper()
	running, cancel := context.WithCancel(w.ctx)
	e := engine.New(engine.Config{DatabaseURL: w.url(), Kafka: kafka.Config{Brokers: w.brokers}, Prefix: w.topic(), Owner: "follower"}, w.pool, w.registry,
		eventstore.NewReader(w.pool), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	definitions := w.definitions
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Follow(running, func(ctx context.Context) ([]engine.Feed, error) {
			return engine.Setup(ctx, w.pool, w.contracts, definitions, nil)
		})
	}()
	stop = func() { cancel(); <-done }
	w.t.Cleanup(stop)
	return stop
}

func (w *world) url() string { return w.pool.Config().ConnString() }

// settle waits until a version has applied everything in the event table.
func (w *world) settle(name string, version int) {
	w.t.Helper()
	var lag int64
	require.Eventually(w.t, func() bool {
		err := w.pool.QueryRow(w.ctx, `select (select count(*) from refold.event) - (select coalesce(sum(s), 0) from refold.progress, unnest(seqs) s where projection = $1 and version = $2)`, name, version).Scan(&lag)
		return err == nil && lag == 0
	}, 60*time.Second, 20*time.Millisecond, "settling")
}

func (w *world) rebuilder() *Rebuilder {
	return New(Config{DatabaseURL: w.url(), Kafka: kafka.Config{Brokers: w.brokers}, Prefix: w.topic(), Owner: w.t.Name(), LeaseTime: 2 * time.Second},
		Deps{Pool: w.pool, Schemas: w.registry, Contracts: w.contracts, Definitions: w.definitions, Logger: slog.New(slog.DiscardHandler)})
}

// rows returns the rows of a version, every column as text.
func (w *world) rows(name string, version int) map[string]string {
	w.t.Helper()
	rows, err := w.pool.Query(w.ctx, `select key, data::text || ' ' || coalesce(state::text, '') from refold.projections where projection_name = $1 and version = $2`, name, version)
	require.NoError(w.t, err)
	list := make(map[string]string)
	var key, text string
	_, err = pgx.ForEachRow(rows, []any{&key, &text}, func() error {
		require.NotContains(w.t, list, key)
		list[key] = text
		return nil
	})
	require.NoError(w.t, err)
	return list
}

// leaf is the table of the version that serves.
func (w *world) leaf(name string) string {
	return fmt.Sprintf("refold.rows_%s_v%d", name, w.active(name))
}

func (w *world) active(name string) int {
	w.t.Helper()
	v, err := readmodel.NewCatalogue(w.pool).Active(w.ctx, name)
	require.NoError(w.t, err)
	require.EqualValues(w.t, v.Number, w.number(`select active from refold.projection where name = $1`, name))
	return v.Number
}

// countOf returns the field events of a row.
func countOf(row []byte) (int64, error) {
	var fields struct {
		Events int64 `json:"events"`
	}
	err := json.Unmarshal(row, &fields)
	return fields.Events, err
}

func (w *world) text(sql string, args ...any) (text string) {
	w.t.Helper()
	require.NoError(w.t, w.pool.QueryRow(w.ctx, sql, args...).Scan(&text))
	return text
}
