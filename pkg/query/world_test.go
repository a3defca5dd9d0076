package query_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/query"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/pkg/strictjson"
)

var ctx = context.Background()

const (
	slots      = 8
	partitions = 2
)

// contracts has the category Item, whose one event type holds a value of every
// kind, each of them nullable.
var contracts = fstest.MapFS{
	"events/Item/category.yaml": {Data: []byte("slots: 8\npartitions: 2\n")},
	"events/Item/ItemSet.v1.avsc": {Data: []byte(`{"type": "record", "name": "ItemSet", "fields": [
		{"name": "name", "type": ["null", "string"]},
		{"name": "n", "type": ["null", "long"]},
		{"name": "f", "type": ["null", "double"]},
		{"name": "price", "type": ["null", {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}]},
		{"name": "at", "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}]},
		{"name": "ok", "type": ["null", "boolean"]},
		{"name": "color", "type": ["null", {"type": "enum", "name": "Color", "symbols": ["RED", "GREEN", "BLUE"]}]},
		{"name": "ref", "type": ["null", {"type": "string", "logicalType": "uuid"}]},
		{"name": "tags", "type": ["null", {"type": "array", "items": "string"}]}]}`)},
	"events/Item/ItemGone.v1.avsc":  {Data: []byte(`{"type": "record", "name": "ItemGone", "fields": []}`)},
	"events/Item/ItemTried.v1.avsc": {Data: []byte(`{"type": "record", "name": "ItemTried", "fields": []}`)},
}

const definition = `projection: items
category: Item
fields:
  name:  {from: [ItemSet]}
  n:     {from: [ItemSet]}
  f:     {from: [ItemSet]}
  price: {from: [ItemSet]}
  at:    {from: [ItemSet]}
  ok:    {from: [ItemSet]}
  color: {from: [ItemSet]}
  ref:   {from: [ItemSet]}
  tags:  {from: [ItemSet]}
remove: ItemGone
indexes:
  - {fields: [color, n]}
  - {fields: [name]}
`

// world is a database with the projection items, without an engine: the test
// commits rows and progress itself, as the engine would.
type world struct {
	t         testing.TB
	pool      *pgxpool.Pool
	contracts *avro.Contracts
	plan      *projection.Plan
	seqs      map[int]int64
	offsets   map[int]int64
	encode    map[string]func(data string) ([]byte, error) // by event type
}

// newWorld returns one in which there are schemas only.
func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldIn(t, devstack.MigratedDatabase(t))
}

func newWorldIn(t testing.TB, pool *pgxpool.Pool) *world {
	t.Helper()
	w := &world{t: t, pool: pool, seqs: map[int]int64{}, offsets: map[int]int64{}, encode: map[string]func(string) ([]byte, error){}}
	var err error
	w.contracts, err = avro.LoadContracts(contracts)
	require.NoError(t, err)
	w.plan = w.compile(definition)
	category, _ := w.contracts.Category("Item")
	for _, typ := range category.Types {
		id, err := registry.New(w.pool).Register(ctx, "refold.item-"+typ.Name, typ.Newest())
		require.NoError(t, err)
		w.encode[typ.Name] = func(data string) ([]byte, error) {
			return typ.Newest().EncodeJSON(avro.AppendFrame(nil, id), strictjson.NewReader([]byte(data)))
		}
	}
	return w
}

func setup(t testing.TB) *world {
	t.Helper()
	w := newWorld(t)
	w.create()
	return w
}

// create makes the category and version 1 of the projection.
func (w *world) create() {
	w.t.Helper()
	_, err := w.pool.Exec(ctx, `with c as (insert into refold.category (name, slots, partitions, topic) values ('Item', 8, 2, 'refold.item') returning id)
		insert into refold.slot (category, slot) select id, generate_series(0, 7) from c`)
	require.NoError(w.t, err)
	require.NoError(w.t, readmodel.NewCatalogue(w.pool).CreateFirst(ctx, w.plan, []readmodel.Source{{Category: "Item", Generation: 1, Slots: slots, Partitions: partitions}}))
}

func (w *world) url() string { return w.pool.Config().ConnString() }

func (w *world) compile(text string) *projection.Plan {
	w.t.Helper()
	definitions, err := projection.ParseDefinitions("test.yaml", []byte(text))
	require.NoError(w.t, err)
	plan, err := projection.Compile(definitions[0], w.contracts)
	require.NoError(w.t, err)
	return plan
}

// noCache is for tests that write rows without announcing them.
var noCache = readmodel.Config{CacheBytes: -1}

// replica is one process that serves queries.
type replica struct {
	t       testing.TB
	url     string
	handler http.Handler
	reader  *readmodel.Reader
	feeds   *readmodel.Feeds
}

func (w *world) replica() *replica {
	return w.replicaAt(w.pool.Config().ConnString(), readmodel.Config{})
}

// replicaAt starts a replica whose watcher listens through another address.
func (w *world) replicaAt(listen string, cfg readmodel.Config) *replica {
	w.t.Helper()
	watcher := readmodel.NewWatcher(listen, slog.New(slog.NewTextHandler(w.t.Output(), nil)))
	plans := readmodel.NewPlans(w.contracts)
	reader, err := readmodel.NewReader(ctx, cfg, w.pool, plans, watcher)
	require.NoError(w.t, err)
	feeds := readmodel.NewFeeds(reader, w.pool, eventstore.NewReader(w.pool), registry.New(w.pool), slog.New(slog.NewTextHandler(w.t.Output(), nil)))
	mux := http.NewServeMux()
	query.New(query.Deps{Reader: reader, Catalogue: readmodel.NewCatalogue(w.pool), Plans: plans, Feeds: feeds,
		Explainer: readmodel.NewExplainer(reader, feeds, eventstore.NewReader(w.pool), registry.New(w.pool)), Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)), Metrics: prometheus.NewRegistry()}).Register(mux)
	server := httptest.NewServer(mux)
	running, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); watcher.Run(running) }()
	w.t.Cleanup(func() { feeds.Close(); server.Close(); stop(); <-done; reader.Close() })
	return &replica{w.t, server.URL, mux, reader, feeds}
}

// set commits a row and the progress of its slot, and announces it.
func (w *world) set(key, data string) event.Token {
	return w.setIn("rows_items_v1", 1, key, &data, true)
}

// try commits an event of which the definition makes nothing.
func (w *world) try(key string) { w.commit(1, key, "ItemTried", `{}`, nil, false) }

func (w *world) remove(key string) event.Token { return w.setIn("rows_items_v1", 1, key, nil, true) }

func (w *world) setIn(leaf string, version int, key string, data *string, announce bool) event.Token {
	w.t.Helper()
	if data == nil {
		return w.commit(version, key, "ItemGone", `{}`, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `delete from refold.`+leaf+` where key = $1`, key)
			return err
		}, announce)
	}
	return w.commit(version, key, "ItemSet", *data, upsert(leaf, version, key, *data), announce)
}

func upsert(leaf string, version int, key, data string) func(pgx.Tx) error {
	return func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `insert into refold.`+leaf+` (projection_name, version, key, data) values ('items', $1, $2, $3::text::jsonb) on conflict (key) do update set data = excluded.data`, version, key, data)
		return err
	}
}

// commit commits an event with what it does to its row, and the progress.
func (w *world) commit(version int, key, typ, body string, change func(pgx.Tx) error, announce bool) event.Token {
	w.t.Helper()
	return w.commitAs(event.NewID(), version, key, typ, body, change, announce)
}

// commitAs is commit with the event's id, which the log may hold already.
func (w *world) commitAs(id event.ID, version int, key, typ, body string, change func(pgx.Tx) error, announce bool) event.Token {
	w.t.Helper()
	slot := event.SlotOf(key, slots)
	partition := slot % partitions
	w.seqs[slot]++
	w.offsets[partition]++
	require.NoError(w.t, pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `update refold.progress set seqs[array_position(slots, $1::smallint)] = $2, next_offset = $3, last_ids[array_position(slots, $1::smallint)] = $6 where version = $4 and partition = $5`,
			slot, w.seqs[slot], w.offsets[partition], version, partition, [16]byte(id))
		value, encodeErr := w.encode[typ](body)
		require.NoError(w.t, encodeErr)
		if err == nil {
			_, err = tx.Exec(ctx, `insert into refold.event (category, slot, seq, version, id, time, recorded, stream, type, value)
				select id, $1, $2, $2, $6, now(), clock_timestamp(), $3, $4, $5 from refold.category on conflict do nothing`, slot, w.seqs[slot], key, typ, value, [16]byte(id))
		}
		if err == nil && change != nil {
			err = change(tx)
		}
		return err
	}))
	if announce {
		w.announce(version, partition, w.offsets[partition]-1, w.offsets[partition], key)
	}
	return event.NewToken(event.Mark{Position: event.Position{Category: "Item", Slot: slot, Seq: w.seqs[slot]}, Written: true, Event: id.Sum()})
}

func (w *world) announce(version, partition int, from, to int64, key string) {
	w.t.Helper()
	a := readmodel.Announcement{Projection: "items", Version: version, Category: "Item", Generation: 1, Partition: partition, From: from, To: to, Keys: []uint32{readmodel.HashKey(key)}}
	for slot := partition; slot < slots; slot += partitions {
		a.Seqs = append(a.Seqs, w.seqs[slot])
	}
	_, err := w.pool.Exec(ctx, `select pg_notify($1, $2)`, readmodel.Channel, a.Payload())
	require.NoError(w.t, err)
}

// row returns the data of a row with the given members; the rest is null.
func row(members string) string {
	all := map[string]any{}
	for _, name := range []string{"name", "n", "f", "price", "at", "ok", "color", "ref", "tags"} {
		all[name] = nil
	}
	d := json.NewDecoder(strings.NewReader(members))
	d.UseNumber()
	if err := d.Decode(&all); err != nil {
		panic(err)
	}
	raw, _ := json.Marshal(all)
	return string(raw)
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (r *replica) get(path string, header ...string) answer {
	r.t.Helper()
	req, err := http.NewRequest(http.MethodGet, r.url+path, nil)
	require.NoError(r.t, err)
	return r.do(req, header...)
}

func (r *replica) do(req *http.Request, header ...string) answer {
	r.t.Helper()
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(r.t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(r.t, err)
	return answer{res.StatusCode, res.Header, strings.TrimSpace(string(body))}
}

// list is the body of a list.
type list struct {
	Rows  []map[string]any
	Next  *string
	Count *int64
}

func (a answer) list(t testing.TB) (l list) {
	t.Helper()
	require.Equal(t, http.StatusOK, a.status, a.body)
	d := json.NewDecoder(strings.NewReader(a.body))
	d.UseNumber()
	require.NoError(t, d.Decode(&l), a.body)
	return l
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			require.Fail(t, fmt.Sprintf("%s: not within 30 s", what))
		}
	}
}
