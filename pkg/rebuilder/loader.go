package rebuilder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/registry"
)

// loader folds one partition into rows in memory and copies them.
//
// Where the rows do not fit the memory, the partition is read in passes, each
// for a range of the hashes of keys: a pass begins with all that is left, and
// gives the upper half of its range up whenever it grows too large. So the number
// of passes follows from the rows, and never from the number of events.
type loader struct {
	job    *job
	part   *part
	conn   *pgx.Conn
	table  string // where rows go; nowhere when it is empty, only the digest is made
	opened bool   // the transaction on conn is open

	folder  *projection.Folder
	schemas map[int]*avro.Schema
	skip    decisions

	seed  maphash.Seed
	low   uint64 // the pass is for hashes from low up to, but not including, high
	high  uint64
	pass  int
	rows  map[string]*projection.Row
	size  int64 // estimate of what rows take
	limit int64

	sequence     sequence
	counts       counts
	lastRecorded event.Time
	parked       map[string]*parkedStream
	written      int64
	digest       uint64
	hasher       rowHasher
}

type place struct {
	slot int
	seq  int64
}

// counts say what became of records and events, as in refold.progress.
type counts struct{ duplicates, filtered, skipped, foreign int64 }

// parkedStream is a stream whose event could not be applied, with that event and
// those behind it.
type parkedStream struct {
	why    string
	from   int64 // seq of the first, when earlier passes have to be told
	events []event.Event
}

// schemaTimeout bounds asking the registry for one schema.
const schemaTimeout = 10 * time.Second

// fullRange is the end of the hashes; they have 32 bits.
const fullRange = uint64(1) << 32

// errAgain says that the passes must be made again, because a later pass has
// found a stream that had to be parked in an earlier one.
var errAgain = errors.New("the passes are made again")

func (j *job) newLoader(ctx context.Context, conn *pgx.Conn, p *part, table string) (*loader, error) {
	l := &loader{job: j, part: p, conn: conn, table: table, folder: j.plan.NewFolder(), schemas: make(map[int]*avro.Schema), seed: maphash.MakeSeed(),
		parked: make(map[string]*parkedStream), limit: j.rebuild.Options.MemoryBytes * 2 / 5 / int64(j.rebuild.Options.Parallel)}
	if j.rowLimit > 0 {
		l.limit = j.rowLimit
	}
	skip, err := j.decisions(ctx, j.name, p.category.Name)
	l.skip = skip
	return l, err
}

// decisions are events that somebody decided to skip. Another event that came to
// stand in the place of one, after the log had lost its tail, is none of them.
type decisions map[place]event.ID

func (d decisions) skips(e *event.Event) bool {
	id, decided := d[place{e.Slot, e.Seq}]
	return decided && id == e.ID
}

// decisions reads which events of a category somebody has decided to skip: what
// was decided for one version holds for those that follow.
func (r *Rebuilder) decisions(ctx context.Context, name, category string) (decisions, error) {
	rows, err := r.pool.Query(ctx, `select slot, seq, id from refold.decision where projection = $1 and category = $2`, name, category)
	if err != nil {
		return nil, fmt.Errorf("reading decisions about %s: %w", name, err)
	}
	list := make(decisions)
	var slot int16
	var seq int64
	var id [16]byte
	_, err = pgx.ForEachRow(rows, []any{&slot, &seq, &id}, func() error {
		list[place{int(slot), seq}] = id
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading decisions about %s: %w", name, err)
	}
	return list, nil
}

// passes reads the partition as often as it takes.
func (l *loader) passes(ctx context.Context) error {
	l.low, l.high, l.pass, l.written, l.digest, l.counts = 0, fullRange, 0, 0, 0, counts{}
	l.sequence = newSequence(l.part)
	for s := range l.parked { // what is parked is found again, in order
		l.parked[s].events = nil
	}
	for l.low < fullRange {
		l.pass++
		l.sequence.begin()
		l.part.meter.passes.Store(int64(l.pass))
		l.rows, l.size = make(map[string]*projection.Row), 0
		if err := l.read(ctx); err != nil {
			return err
		}
		if l.pass == 1 {
			if err := l.complete(); err != nil {
				return err
			}
		}
		if err := l.copy(ctx); err != nil {
			return err
		}
		width := l.high - l.low
		l.low, l.high = l.high, min(fullRange, l.high+width)
	}
	return nil
}

func (l *loader) read(ctx context.Context) error {
	if l.part.source == FromEventStore {
		slots := make([]int, l.part.slots())
		for i := range slots {
			slots[i] = l.part.slot(i)
		}
		reading, err := l.job.connect(ctx, l.job.name) // the rows' own session has a transaction open
		if err != nil {
			return err
		}
		defer reading.Close(context.WithoutCancel(ctx))
		return readTable(ctx, reading, l.part.category, slots, l.part.heads, l)
	}
	return l.job.readTopic(ctx, l.part, l)
}

// complete checks that the source held all that it should, once the first pass
// has read it.
func (l *loader) complete() error {
	must, why := l.part.sent, "it ends before what the relay had sent to it"
	if l.part.source == FromEventStore {
		must, why = l.part.heads, "it ends before its own head"
	}
	for i, seq := range l.sequence.seqs {
		if seq < must[i] {
			return l.part.incomplete(l.part.slot(i), seq+1, why)
		}
	}
	return nil
}

func (p *part) incomplete(slot int, first int64, why string) error {
	return &Incomplete{Source: p.source, Topic: p.category.Topic, Partition: p.partition, Slot: slot, First: first, Category: p.category.Name, Why: why}
}

func (l *loader) inRange(key []byte) bool {
	h := uint64(uint32(maphash.Bytes(l.seed, key)))
	return h >= l.low && h < l.high
}

// wants implements taker. The first pass takes everything, to prove that the
// history is whole; later ones leave out streams whose rows are not theirs.
func (l *loader) wants(stream []byte) bool {
	return l.pass == 1 || l.job.plan.Shared() || l.inRange(stream)
}

// event implements taker.
func (l *loader) event(e *event.Event) error {
	if e == nil {
		if l.pass == 1 {
			l.counts.foreign++
		}
		return nil
	}
	if l.pass == 1 {
		apply, err := l.inSequence(e)
		if err != nil || !apply {
			return err
		}
	} else if l.sequence.repeats(e) {
		return nil
	}
	if e.Recorded > l.lastRecorded {
		l.lastRecorded = e.Recorded
	}
	return l.fold(e)
}

// inSequence judges an event by the sequence of its slot.
func (l *loader) inSequence(e *event.Event) (apply bool, err error) {
	switch l.sequence.place(e, l.part.source == FromTopic) {
	case isNext:
		return true, nil
	case isDuplicate:
		l.counts.duplicates++
		return false, nil
	case isGap:
		why := fmt.Sprintf("slot %d goes on with seq %d", e.Slot, e.Seq)
		return false, l.part.incomplete(e.Slot, l.sequence.seq(e.Slot)+1, why)
	default:
		return false, fmt.Errorf("%w: event %s at %s does not follow the one before it: the log has lost its tail", ErrDiverged, e.ID, e.Position())
	}
}

// ErrDiverged says that a topic holds events of a branch that the log has lost.
var ErrDiverged = errors.New("the topic has diverged from the log")

// events returns how many events the partition has.
func (l *loader) events() (n int64) {
	for _, seq := range l.sequence.seqs {
		n += seq
	}
	return n
}

// fold folds one event, as the engine would.
func (l *loader) fold(e *event.Event) error {
	first := l.pass == 1
	if len(l.skip) > 0 && l.skip.skips(e) {
		if first {
			l.counts.skipped++
		}
		return nil
	}
	if len(l.parked) > 0 {
		if parked := l.parked[e.Stream]; parked != nil && e.Seq >= parked.from {
			l.park(parked, e)
			return nil
		}
	}
	plan := l.job.plan
	if !plan.Uses(e.Category, e.Type) {
		if first {
			l.counts.filtered++
		}
		return nil
	}
	if !plan.Shared() && !l.inRange(bytesOf(e.Stream)) {
		return nil
	}
	schema, why, err := l.schema(e)
	if err != nil {
		return err
	}
	if schema == nil {
		return l.parkFirst(e, why)
	}
	outcome, err := l.folder.Begin(e, schema)
	if err != nil {
		return l.parkFirst(e, err.Error())
	}
	if outcome == projection.Filtered {
		if first {
			l.counts.filtered++
		}
		return nil
	}
	for key := range l.folder.Keys() {
		if err := l.apply(e, key); err != nil {
			return err
		}
	}
	return nil
}

// apply folds the event that the folder has into one of its rows.
func (l *loader) apply(e *event.Event, key []byte) error {
	row := l.rows[string(key)]
	if row != nil {
		if err := l.folder.Apply(row); err != nil {
			return l.parkFirst(e, err.Error())
		}
		return nil
	}
	if !l.inRange(key) {
		return nil
	}
	row = l.job.plan.NewRow()
	if err := l.folder.Apply(row); err != nil {
		return l.parkFirst(e, err.Error())
	}
	l.rows[strings.Clone(textOf(key))] = row
	l.size += rowSize(len(key), row)
	if l.size > l.limit {
		l.shrink()
	}
	return nil
}

// rowSize estimates the memory of a row with its place in the map.
func rowSize(key int, row *projection.Row) int64 { return int64(row.Size() + key + 96) }

// shrink measures the rows anew, and gives up half of the pass's range if they
// are too large indeed.
func (l *loader) shrink() {
	measure := func() {
		l.size = 0
		for key, row := range l.rows {
			l.size += rowSize(len(key), row)
		}
	}
	measure()
	for l.size > l.limit*9/10 && l.high-l.low > 1 {
		l.high = l.low + (l.high-l.low+1)/2
		for key := range l.rows {
			if !l.inRange(bytesOf(key)) {
				delete(l.rows, key)
			}
		}
		kept := make(map[string]*projection.Row, len(l.rows)) // a map gives no memory back
		for key, row := range l.rows {
			kept[key] = row
		}
		l.rows = kept
		measure()
	}
}

// schema returns the schema that an event was written with, or why there is none.
func (l *loader) schema(e *event.Event) (*avro.Schema, string, error) {
	id, _, err := avro.SplitFrame(e.Value)
	if err != nil {
		return nil, "the value names no schema that the registry has", nil //nolint:nilerr // poison
	}
	if schema := l.schemas[id]; schema != nil {
		return schema, "", nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), schemaTimeout)
	defer cancel()
	schema, err := l.job.deps.Schemas.SchemaByID(ctx, id)
	if errors.Is(err, registry.ErrUnknownSchema) {
		return nil, "the value names no schema that the registry has", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("looking up the schema %d: %w: %w", id, errBroker, err)
	}
	l.schemas[id] = schema
	return schema, "", nil
}

// parkFirst parks a stream by the event that cannot be applied.
func (l *loader) parkFirst(e *event.Event, why string) error {
	p := &parkedStream{why: why, from: e.Seq}
	l.parked[strings.Clone(e.Stream)] = p
	if l.pass > 1 && l.job.plan.Shared() {
		return errAgain
	}
	l.park(p, e)
	return nil
}

// park keeps an event of a parked stream, once however many passes meet it.
func (l *loader) park(p *parkedStream, e *event.Event) {
	if n := len(p.events); n > 0 && p.events[n-1].Seq >= e.Seq {
		return
	}
	if l.pass > 1 && !l.job.plan.Uses(e.Category, e.Type) {
		l.counts.filtered-- // the first pass did not know that the stream would be parked
	}
	kept := *e
	kept.Stream, kept.Type, kept.Value = strings.Clone(e.Stream), strings.Clone(e.Type), bytes.Clone(e.Value)
	kept.Metadata = event.Metadata{Actor: strings.Clone(e.Metadata.Actor), CorrelationID: strings.Clone(e.Metadata.CorrelationID),
		CausationID: strings.Clone(e.Metadata.CausationID), Traceparent: strings.Clone(e.Metadata.Traceparent)}
	p.events = append(p.events, kept)
}

func (l *loader) parkedEvents() (list []event.Event) {
	for _, p := range l.parked {
		list = append(list, p.events...)
	}
	return list
}

// chunk implements taker.
func (l *loader) chunk(ctx context.Context, events int, size, done int64) error {
	m := l.part.meter
	m.bytes.Add(size)
	total := float64(max(1, m.total))
	share := float64(l.low)/float64(fullRange) + float64(l.high-l.low)/float64(fullRange)*float64(done)/total
	m.reach(int64(share * total))
	return l.job.gate(ctx, events)
}

// copy writes the rows of the pass.
func (l *loader) copy(ctx context.Context) error {
	if !l.opened && l.table != "" {
		if _, err := l.conn.Exec(ctx, `begin`); err != nil {
			return fmt.Errorf("beginning the load: %w", err)
		}
		l.opened = true
	}
	rows := &rowReader{loader: l, keys: make([]string, 0, len(l.rows)), out: append(make([]byte, 0, 128<<10), copyHeader...)}
	for key, row := range l.rows {
		if row.Exists() {
			rows.keys = append(rows.keys, key)
		}
	}
	if l.table == "" {
		_, err := io.Copy(io.Discard, rows)
		return err
	}
	sql := `copy ` + l.table + ` (key, data, state) from stdin (format binary)`
	if l.job.plan.Shared() {
		sql = `copy ` + l.table + ` (category, partition, key, data, state) from stdin (format binary)`
		rows.prefix, rows.extra = copyPrefix(l.part.category.Name, l.part.partition), 2
	}
	if _, err := l.conn.PgConn().CopyFrom(ctx, rows, sql); err != nil {
		return fmt.Errorf("copying rows: %w", err)
	}
	return nil
}

// rowReader makes the stream of a binary COPY of rows as it is read.
type rowReader struct {
	loader *loader
	keys   []string
	prefix []byte
	extra  int
	data   []byte
	state  []byte
	out    []byte
	at     int
	ended  bool
}

func (r *rowReader) Read(p []byte) (n int, err error) {
	if r.at == len(r.out) {
		if r.ended {
			return 0, io.EOF
		}
		r.out, r.at = r.out[:0], 0
	}
	for len(r.out)-r.at < len(p) && len(r.keys) > 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	if len(r.keys) == 0 && !r.ended {
		r.out, r.ended = append(r.out, copyTrailer...), true
	}
	n = copy(p, r.out[r.at:])
	r.at += n
	return n, nil
}

func (r *rowReader) next() error {
	l, key := r.loader, r.keys[0]
	r.keys = r.keys[1:]
	row := l.rows[key]
	r.data, r.state = row.AppendData(r.data[:0]), row.AppendState(r.state[:0])
	sum, err := l.hasher.hash(key, r.data, r.state)
	if err != nil {
		return fmt.Errorf("hashing the row %q: %w", key, err)
	}
	l.digest += sum
	l.written++
	r.out = appendCopyRow(r.out, r.prefix, 3+r.extra, key, r.data, r.state)
	return nil
}
