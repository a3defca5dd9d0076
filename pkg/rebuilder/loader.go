package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/projection"
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
	schemas *schemaCache
	skip    engine.Decisions

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

// counts say what became of records and events, as in refold.progress.
type counts struct{ duplicates, filtered, skipped, foreign int64 }

// fullRange is the end of the hashes; they have 32 bits.
const fullRange = uint64(1) << 32

// errAgain says that the passes must be made again, because a later pass has
// found a stream that had to be parked in an earlier one.
var errAgain = errors.New("the passes are made again")

func (j *job) newLoader(ctx context.Context, conn *pgx.Conn, p *part, table string) (*loader, error) {
	l := &loader{job: j, part: p, conn: conn, table: table, folder: j.plan.NewFolder(), schemas: newSchemaCache(j.deps.Schemas), seed: maphash.MakeSeed(),
		parked: make(map[string]*parkedStream), limit: j.memory() * 2 / 5 / int64(j.rebuild.Options.Parallel)}
	if j.rowLimit > 0 {
		l.limit = j.rowLimit
	}
	skip, err := engine.ReadDecisions(ctx, j.pool, j.name, p.category.Name, nil)
	l.skip = skip
	return l, err
}

// memory is what the job may take in this process.
func (j *job) memory() int64 {
	if most := j.cfg.MemoryBytes; most > 0 {
		return min(most, j.rebuild.Options.MemoryBytes)
	}
	return j.rebuild.Options.MemoryBytes
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
			if err := l.complete(ctx); err != nil {
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
		if _, err := reading.Exec(ctx, tableSettings); err != nil {
			return fmt.Errorf("preparing to read the event table: %w", err)
		}
		return readTable(ctx, reading, l.part.category, slots, l.part.heads, l.job.limiter.step(), l)
	}
	return l.job.readTopic(ctx, l.part, l)
}

// complete checks that the source held all that it should, and nothing else, once
// the first pass has read it.
func (l *loader) complete(ctx context.Context) error {
	must, why := l.part.sent, "it ends before what the relay had sent to it"
	if l.part.source == FromEventStore {
		must, why = l.part.heads, "it ends before its own head"
	}
	for i, seq := range l.sequence.seqs {
		if seq < must[i] {
			return l.part.incomplete(l.part.slot(i), seq+1, why)
		}
	}
	if l.part.source == FromTopic {
		return l.ofOneLog(ctx)
	}
	return nil
}

// ofOneLog compares the last event of each slot with the event table: each names
// the one before it, so the topic holds the same events, or a lost tail of others.
func (l *loader) ofOneLog(ctx context.Context) error {
	slots := make([]int16, l.part.slots())
	for i := range slots {
		slots[i] = int16(l.part.slot(i))
	}
	rows, err := l.job.pool.Query(ctx, `select u.slot, u.seq, e.id from unnest($2::smallint[], $3::bigint[]) u (slot, seq)
		join refold.slot s on s.category = $1 and s.slot = u.slot
		left join refold.event e on e.category = $1 and e.slot = u.slot and e.seq = u.seq where u.seq > s.floor`, l.part.category.ID, slots, l.sequence.seqs)
	if err != nil {
		return fmt.Errorf("comparing %s/%d with the event table: %w", l.part.category.Topic, l.part.partition, err)
	}
	var slot int16
	var seq int64
	var id *[16]byte
	_, err = pgx.ForEachRow(rows, []any{&slot, &seq, &id}, func() error {
		if last := l.sequence.ids[l.part.place(int(slot))]; id == nil || *id != [16]byte(last) {
			return fmt.Errorf("%w: %s/%d/%d is event %s in the topic and another or none in the event table; --source=eventstore reads what that holds, `writer repair` lists what is not relayed",
				ErrDiverged, l.part.category.Name, slot, seq, last)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("comparing %s/%d with the event table: %w", l.part.category.Topic, l.part.partition, err)
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
		return false, fmt.Errorf("%w: event %s at %s does not follow the one before it: the log has lost its tail; --source=eventstore reads what it holds now", ErrDiverged, e.ID, e.Position())
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

// chunk implements taker.
func (l *loader) chunk(ctx context.Context, events int, size, done int64) error {
	m := l.part.meter
	m.bytes.Add(size)
	total := float64(max(1, m.total))
	share := float64(l.low)/float64(fullRange) + float64(l.high-l.low)/float64(fullRange)*float64(done)/total
	m.reach(int64(share * total))
	return l.job.gate(ctx, events)
}
