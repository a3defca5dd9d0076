package engine

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/registry"
)

// worker folds one partition for as long as its claim holds.
type worker struct {
	feeder    *feeder
	category  eventstore.Category
	partition int
	queue     chan []*kgo.Record // size 1: the client buffers the rest
	cancel    context.CancelFunc
	ctx       context.Context
	done      chan struct{}

	conn   *pgx.Conn
	epoch  int64
	next   int64 // offset
	seqs   sequencer
	parked map[string]bool
	folder *projection.Folder
	cache  cache
}

func newWorker(f *feeder, category eventstore.Category, partition int) *worker {
	ctx, cancel := context.WithCancel(context.Background())
	return &worker{feeder: f, category: category, partition: partition, queue: make(chan []*kgo.Record, 1), ctx: ctx, cancel: cancel, done: make(chan struct{}),
		folder: f.feed.Plan.NewFolder(), cache: newCache(f.engine.cfg.CacheBytes)}
}

// claim takes the partition over on a session of the worker's own and returns
// the offset to read on from.
func (w *worker) claim(ctx context.Context, topicID [16]byte) (next int64, err error) {
	if w.conn, err = postgres.Connect(ctx, postgres.Config{URL: w.feeder.engine.cfg.DatabaseURL, AppName: "refold-projector",
		StatementTimeout: 30 * time.Second, LockTimeout: 20 * time.Second, IdleInTransactionTimeout: 5 * time.Second}); err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			w.disconnect()
		}
	}()
	v := w.feeder.feed.Version
	var slots []int16
	var seqs []int64
	var ids [][16]byte
	var topic [16]byte
	err = w.conn.QueryRow(ctx, `select epoch, next, slot_list, seq_list, id_list, topic from refold.progress_claim($1, $2, $3, $4, $5, $6, $7)`,
		v.Projection, v.Number, w.category.Name, w.category.Generation, w.partition, w.feeder.engine.cfg.Owner, topicID).
		Scan(&w.epoch, &w.next, &slots, &seqs, &ids, &topic)
	if err != nil {
		return 0, err
	}
	if err := w.checkPlan(ctx); err != nil {
		return 0, err
	}
	if topic != topicID {
		return 0, w.alarm(ctx, fmt.Sprintf("the topic was recreated: its id is %s, the progress is that of %s", hex.EncodeToString(topicID[:]), hex.EncodeToString(topic[:])))
	}
	w.seqs = newSequencer(slots, seqs, ids)
	if w.parked, err = w.readParked(ctx); err != nil {
		return 0, err
	}
	return w.next, nil
}

// alarm writes down why the partition stands, and returns it as an error.
func (w *worker) alarm(ctx context.Context, why string) error {
	v := w.feeder.feed.Version
	if _, err := w.conn.Exec(ctx, `update refold.progress set alarm = $6 where projection = $1 and version = $2 and category = $3 and generation = $4 and partition = $5`,
		v.Projection, v.Number, w.category.Name, w.category.Generation, w.partition, why); err != nil {
		return err
	}
	w.feeder.engine.log.Error("a partition stands", "projection", v.Projection, "version", v.Number, "topic", w.category.Topic, "partition", w.partition, "err", why)
	return errors.New(why)
}

func (w *worker) readParked(ctx context.Context) (map[string]bool, error) {
	v := w.feeder.feed.Version
	rows, err := w.conn.Query(ctx, `select stream from refold.parked_stream where projection = $1 and version = $2 and category = $3`, v.Projection, v.Number, w.category.Name)
	if err != nil {
		return nil, fmt.Errorf("reading the parked streams: %w", err)
	}
	streams, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading the parked streams: %w", err)
	}
	parked := make(map[string]bool, len(streams))
	for _, s := range streams {
		parked[s] = true
	}
	return parked, nil
}

func (w *worker) disconnect() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	w.conn.Close(ctx)
}

// stop ends the worker after the batch that is under way.
func (w *worker) stop() {
	w.cancel()
	<-w.done
}

func (w *worker) run() {
	defer close(w.done)
	defer w.disconnect()
	for {
		select {
		case <-w.ctx.Done():
			return
		case records := <-w.queue:
			for len(records) > 0 && w.ctx.Err() == nil {
				n := min(len(records), w.feeder.engine.cfg.MaxBatch)
				if err := w.work(records[:n]); err != nil {
					w.feeder.fail(fmt.Errorf("applying %s/%d from offset %d: %w", w.category.Topic, w.partition, w.next, err))
					return
				}
				records = records[n:]
			}
		}
	}
}

// work folds a batch and commits it. It is not interrupted: stopping waits for it.
func (w *worker) work(records []*kgo.Record) error {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	b := newBatch(w.next)
	for _, record := range records {
		if record.Offset < w.next {
			continue
		}
		if err := w.take(ctx, b, record); err != nil {
			return err
		}
		b.to = record.Offset + 1
	}
	if b.to == b.from {
		return nil
	}
	if err := w.fold(ctx, b); err != nil {
		return err
	}
	if err := w.commit(ctx, b); err != nil {
		return err
	}
	w.next = b.to
	e := w.feeder.engine
	e.announcer.announce(w.announcement(b))
	e.metrics.applied.WithLabelValues(w.feeder.feed.Version.Projection).Add(float64(b.applied))
	e.metrics.parked.WithLabelValues(w.feeder.feed.Version.Projection).Add(float64(len(b.parkedEvents)))
	e.metrics.duration.Observe(time.Since(start).Seconds())
	w.commitOffset()
	return nil
}

// announcement says what a batch that was committed has changed.
func (w *worker) announcement(b *batch) readmodel.Announcement {
	v := w.feeder.feed.Version
	a := readmodel.Announcement{Projection: v.Projection, Version: v.Number, Category: w.category.Name, Generation: w.category.Generation, Partition: w.partition,
		From: b.from, To: b.to, Seqs: slices.Clone(w.seqs.seqs), Many: len(b.touched) > readmodel.MaxAnnouncedKeys}
	if !a.Many {
		for key := range b.touched {
			a.Keys = append(a.Keys, readmodel.HashKey(key))
		}
	}
	return a
}

// commitOffset tells Kafka as well, so that lag shows in the usual tools. The
// database is the truth, so an error does not matter.
func (w *worker) commitOffset() {
	w.feeder.client.CommitOffsets(context.Background(), map[string]map[int32]kgo.EpochOffset{w.category.Topic: {int32(w.partition): {Epoch: -1, Offset: w.next}}}, nil)
}

// take sorts one record into the batch.
func (w *worker) take(ctx context.Context, b *batch, record *kgo.Record) error {
	e := new(event.Event)
	if err := kafka.Parse(record, w.category.Name, w.category.Slots, w.category.Partitions, e); err != nil {
		b.foreign++
		return nil //nolint:nilerr // counted; anybody may write to a topic
	}
	switch w.seqs.place(e) {
	case duplicate:
		b.duplicates++
	case next:
		w.seqs.advance(e)
		b.events = append(b.events, e)
	case diverged:
		return w.alarm(ctx, fmt.Sprintf("event %s at %s follows event %s, the last one applied is %s: the log has lost its tail", e.ID, e.Position(), e.PrevID, w.seqs.last(e.Slot)))
	case gap:
		return w.fill(ctx, b, e)
	}
	return nil
}

// fill takes missing events from the event table, and then the event itself.
func (w *worker) fill(ctx context.Context, b *batch, e *event.Event) error {
	after := w.seqs.seq(e.Slot)
	missing, err := w.feeder.engine.events.SlotEvents(ctx, w.category, e.Slot, after, int(min(10_000, e.Seq-after-1)))
	if err != nil {
		return fmt.Errorf("reading missing events: %w", err)
	}
	for i := range missing {
		if missing[i].Seq >= e.Seq {
			break
		}
		if w.seqs.place(&missing[i]) == next {
			w.seqs.advance(&missing[i])
			b.events, b.filled = append(b.events, &missing[i]), b.filled+1
		}
	}
	if w.seqs.place(e) != next {
		return fmt.Errorf("%w: %w", errGap, w.alarm(ctx, fmt.Sprintf("the topic goes on with %s, the last one applied is seq %d, and the event table lacks what is between", e.Position(), w.seqs.seq(e.Slot))))
	}
	w.seqs.advance(e)
	b.events = append(b.events, e)
	return nil
}

// fold folds the batch's events into rows.
func (w *worker) fold(ctx context.Context, b *batch) error {
	plan := w.feeder.feed.Plan
	schemas := make([]*avro.Schema, len(b.events))
	var wanted []string
	for i, e := range b.events {
		if !plan.Uses(e.Category, e.Type) {
			continue
		}
		schema, err := w.schema(ctx, e)
		if err != nil {
			return err
		}
		schemas[i] = schema
		if schema == nil || plan.Shared() {
			continue
		}
		if key := e.Stream; !b.wanted[key] && w.cache.get(key) == nil {
			b.wanted[key] = true
			wanted = append(wanted, key)
		}
	}
	if err := w.load(ctx, b, wanted); err != nil {
		return err
	}
	if err := w.complete(ctx, b, wanted); err != nil {
		return err
	}
	for i, e := range b.events {
		w.foldOne(b, e, schemas[i])
	}
	return nil
}

// schema returns the schema that an event was written with; nil when the value
// names none that exists, which is for the fold to judge.
func (w *worker) schema(ctx context.Context, e *event.Event) (*avro.Schema, error) {
	id, _, err := avro.SplitFrame(e.Value)
	if errors.Is(err, avro.ErrNoFrame) {
		return nil, nil //nolint:nilerr // poison, which the caller parks
	}
	schema, err := w.feeder.engine.schemas.SchemaByID(ctx, id)
	if errors.Is(err, registry.ErrUnknownSchema) {
		return nil, nil
	}
	return schema, err
}

// load reads the rows that are not in the cache. Nobody else writes them while
// the claim holds, and if it does not the commit is refused.
func (w *worker) load(ctx context.Context, b *batch, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	rows, err := w.conn.Query(ctx, `select key, data from `+w.feeder.feed.Version.Table()+` where key = any($1)`, keys)
	if err != nil {
		return fmt.Errorf("reading rows: %w", err)
	}
	var key string
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&key, &data}, func() error {
		row, err := w.feeder.feed.Plan.LoadRow(data)
		b.rows[key] = row
		return err
	})
	if err != nil {
		return fmt.Errorf("reading rows: %w", err)
	}
	return nil
}

func (w *worker) foldOne(b *batch, e *event.Event, schema *avro.Schema) {
	plan := w.feeder.feed.Plan
	switch {
	case w.parked[e.Stream]:
		b.park(e, "")
		return
	case !plan.Uses(e.Category, e.Type):
		b.filtered++
		return
	case schema == nil:
		w.parkFirst(b, e, "the value names no schema that the registry has")
		return
	}
	outcome, err := w.folder.Begin(e, schema)
	if err == nil && outcome == projection.Filtered {
		b.filtered++
		return
	}
	if err == nil {
		key := string(w.folder.Key())
		row := w.row(b, key)
		if err = w.folder.Apply(row); err == nil {
			b.applied++
			b.touched[key] = row
			return
		}
	}
	w.parkFirst(b, e, err.Error())
}

func (w *worker) parkFirst(b *batch, e *event.Event, why string) {
	w.parked[e.Stream] = true
	b.parkedStreams = append(b.parkedStreams, parkedStream{e, why})
	b.park(e, why)
	v := w.feeder.feed.Version
	w.feeder.engine.log.Error("a stream is parked", "projection", v.Projection, "version", v.Number, "category", e.Category, "stream", e.Stream, "seq", e.Seq, "event_id", e.ID, "err", why)
}

func (w *worker) row(b *batch, key string) *projection.Row {
	if row := b.rows[key]; row != nil {
		return row
	}
	var row *projection.Row
	if !w.feeder.feed.Plan.Shared() {
		row = w.cache.get(key)
	}
	if row == nil {
		row = w.feeder.feed.Plan.NewRow()
	}
	b.rows[key] = row
	return row
}

// maxRows is the most rows in one statement: larger ones cost more per row.
const maxRows = 1000

// commit writes progress and rows in one transaction: a pipeline without BEGIN,
// whose first statement raises an error when the partition has another owner.
func (w *worker) commit(ctx context.Context, b *batch) error {
	v := w.feeder.feed.Version
	trip := &pgx.Batch{}
	var last *time.Time
	if n := len(b.events); n > 0 {
		at := b.events[n-1].Recorded.Std()
		last = &at
	}
	trip.Queue(`select refold.progress_move($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`, v.Projection, v.Number, w.category.Name,
		w.category.Generation, w.partition, w.epoch, b.from, b.to, w.seqs.seqs, w.seqs.uuids(), b.applied-b.filled, b.duplicates, b.filtered, int64(len(b.parkedEvents)), b.foreign, last)
	w.queueRows(trip, b)
	w.queueParked(trip, b)
	err := w.conn.SendBatch(ctx, trip).Close() // valid only now: a failing commit is reported by Close
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == "RF010" {
		return fmt.Errorf("%w: %w", errFenced, err)
	}
	if err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	if !w.feeder.feed.Plan.Shared() {
		for key, row := range b.touched {
			w.cache.put(key, row)
		}
	}
	return nil
}

func (w *worker) queueRows(trip *pgx.Batch, b *batch) {
	v, plan := w.feeder.feed.Version, w.feeder.feed.Plan
	var keys, gone []string
	for key, row := range b.touched {
		if row.Exists() {
			keys = append(keys, key)
		} else {
			gone = append(gone, key)
		}
	}
	slices.Sort(keys)
	sql := `insert into ` + v.Table() + ` (projection_name, version, key, data, state) select $1, $2, k, d, s from unnest($3::text[], $4::jsonb[], $5::jsonb[]) u (k, d, s)
		on conflict (key) do update set data = excluded.data, updated_at = clock_timestamp()`
	if plan.Shared() {
		sql = plan.MergeSQL(v.Table())
	}
	for len(keys) > 0 {
		n := min(len(keys), maxRows)
		data, states := make([]string, n), make([]*string, n)
		for i, key := range keys[:n] {
			data[i] = string(b.touched[key].AppendData(nil))
			if state := b.touched[key].AppendState(nil); state != nil {
				text := string(state)
				states[i] = &text
			}
		}
		trip.Queue(sql, v.Projection, v.Number, keys[:n], data, states)
		keys = keys[n:]
	}
	if len(gone) > 0 {
		trip.Queue(`delete from `+v.Table()+` where key = any($1)`, gone)
	}
}

func (w *worker) queueParked(trip *pgx.Batch, b *batch) {
	v := w.feeder.feed.Version
	for _, p := range b.parkedStreams {
		trip.Queue(`insert into refold.parked_stream (projection, version, category, stream, slot, error) values ($1, $2, $3, $4, $5, $6)`,
			v.Projection, v.Number, p.e.Category, p.e.Stream, p.e.Slot, p.why)
	}
	for _, p := range b.parkedEvents {
		e := p.e
		trip.Queue(`insert into refold.parked_event (projection, version, category, stream, slot, seq, stream_version, id, type, time, recorded, actor, correlation_id, causation_id, traceparent, value, error)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, nullif($12, ''), nullif($13, ''), nullif($14, ''), nullif($15, ''), $16, nullif($17, ''))`,
			v.Projection, v.Number, e.Category, e.Stream, e.Slot, e.Seq, e.Version, [16]byte(e.ID), e.Type, e.Time.Std(), e.Recorded.Std(),
			e.Metadata.Actor, e.Metadata.CorrelationID, e.Metadata.CausationID, e.Metadata.Traceparent, e.Value, p.why)
	}
}
