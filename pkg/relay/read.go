package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unsafe"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
)

// readSQL reads on from the last event that was read of each slot, that event
// included, so that a table which has another event there is noticed. A slot gives
// at most so many rows.
const (
	readName = "refold_relay_read"
	readSQL  = `
	select e.slot, e.seq, e.version, e.id, e.time, e.recorded, e.stream, e.type, e.value, e.actor, e.correlation_id, e.causation_id, e.traceparent
	from unnest($2::smallint[], $3::bigint[], $4::bigint[]) u (slot, seq, n),
	     lateral (select * from refold.event e where e.category = $1 and e.slot = u.slot and e.seq >= u.seq order by e.seq limit u.n) e`
)

// maxLeft bounds the bytes that a read may bring and find no room for. The number
// of rows is an estimate from the sizes of earlier events; where it is far off, the
// server is told to stop. (Adding up sizes in SQL took four times as long as the
// read itself.)
const maxLeft = 32 << 20

// rowsBetweenPumps is after how many rows the loop looks at what else there is.
const rowsBetweenPumps = 256

// Where little comes, what comes while a request is under way, and for as long
// again after its answer, is read and sent together: a request costs broker and
// consumers much more than another event in it, and where answers take long, that
// is what they lack. An event that comes later is read at once.
const (
	gather  = 20 * time.Millisecond // the longest wait for an answer
	maxRest = 10 * time.Millisecond // the longest after it
)

// read reads what is new into batches. It tells whether there was anything.
func (s *session) read(ctx context.Context) (some bool, err error) {
	now := time.Now()
	if s.gathering = !s.backlog && now.Before(s.gatheredBy()); s.gathering {
		return false, nil
	}
	plans := s.plan(now)
	s.backlog = false
	for _, of := range plans {
		n, err := s.readCategory(ctx, of)
		if err != nil {
			return false, err
		}
		some = some || n > 0
	}
	return some, nil
}

// gatheredBy returns when to read on.
func (s *session) gatheredBy() time.Time {
	if s.flights > 0 {
		return s.requested.Add(gather)
	}
	return s.restUntil
}

// plan is what to read of a category.
type plan struct {
	category int16
	slots    []slotRead
	bySlot   []*slotRead
	row      event.Event
	left     int  // bytes of values that found no room
	stopped  bool // the server was told to stop
}

// slotRead is what to read of a slot, and what came of it.
type slotRead struct {
	p      *partition
	at     *slot
	from   place
	resets int64
	n      int  // rows to ask for, the last event included
	rows   int  // that came
	cut    bool // events were left behind
	doubt  bool // the table does not go on as it should
}

// plan lists the slots that may have new events and whose partitions have room.
func (s *session) plan(now time.Time) map[int16]*plan {
	plans := make(map[int16]*plan)
	for _, p := range s.owned {
		if p.phase != flowing || p.leaving || !s.room(p) || !s.planProbe(p, now) {
			continue
		}
		of := plans[p.category]
		if of == nil {
			of = &plan{category: p.category, bySlot: make([]*slotRead, p.slotCount)}
		}
		before := len(of.slots)
		for i := range p.slots {
			if at := &p.slots[i]; p.probe == i || p.probe < 0 && at.look && at.stop == nil {
				of.slots = append(of.slots, slotRead{p: p, at: at, from: at.sent, resets: p.resets})
			}
		}
		if found := of.slots[before:]; len(found) > 0 {
			n := s.rowsOf(p, len(found))
			for i := range found {
				found[i].n = n
			}
			plans[p.category] = of
		}
	}
	return plans
}

// planProbe decides whether the partition's next batch is the trial of a record
// that was refused, which goes alone. It tells whether to read at all.
func (s *session) planProbe(p *partition, now time.Time) bool {
	if p.probe >= 0 {
		return p.flying == nil && p.staged == nil
	}
	due := p.dueProbe(now)
	if due < 0 {
		return true
	}
	if p.flying != nil || p.staged != nil {
		return false // drain first
	}
	p.probe, p.limit = due, 1
	return true
}

// rowsOf returns how many rows to ask of each of so many slots, so that they fill
// the partition's batch.
func (s *session) rowsOf(p *partition, slots int) int {
	free, records := s.cfg.BatchBytes, p.limit
	if p.staged != nil {
		free, records = free-p.staged.Size(), records-p.staged.Len()
	}
	return 2 + min(records-1, free/max(128, p.eventSize))/slots
}

// readCategory runs one read. It returns how many events were read.
func (s *session) readCategory(ctx context.Context, of *plan) (n int, err error) {
	for i := range of.slots {
		r := &of.slots[i]
		of.bySlot[r.at.number] = r
		r.at.look = false
	}
	result := s.conn.PgConn().ExecPrepared(ctx, readName, s.readArgs(of), nil, []int16{1})
	var malformed error
	for count := 1; result.NextRow(); count++ {
		if count%rowsBetweenPumps == 0 {
			s.pump(s.cfg.BatchBytes / 2) // what is still being filled waits for the end of the read
		}
		if malformed = scanRow(result.Values(), &of.row); malformed != nil {
			continue
		}
		if r := of.bySlot[of.row.Slot]; s.current(r) && s.takeRow(r, &of.row) {
			n++
			continue
		}
		if of.left += len(of.row.Value); of.left > maxLeft && !of.stopped {
			of.stopped = true
			if err := s.conn.PgConn().CancelRequest(ctx); err != nil {
				s.log.Debug("ending a read that brings too much", "err", err)
			}
		}
	}
	_, err = result.Close()
	if of.stopped && postgres.Classify(err) == postgres.ClassTimeout {
		err = nil
	}
	if err != nil || malformed != nil {
		return n, fmt.Errorf("reading new events: %w", errors.Join(err, malformed))
	}
	return n, s.conclude(ctx, of)
}

// readArgs are those of readSQL in text form.
func (s *session) readArgs(of *plan) [][]byte {
	slots, seqs, rows := []byte{'{'}, []byte{'{'}, []byte{'{'}
	for i := range of.slots {
		r := &of.slots[i]
		if i > 0 {
			slots, seqs, rows = append(slots, ','), append(seqs, ','), append(rows, ',')
		}
		slots = strconv.AppendInt(slots, int64(r.at.number), 10)
		seqs = strconv.AppendInt(seqs, r.from.seq, 10)
		rows = strconv.AppendInt(rows, int64(r.n), 10)
	}
	return [][]byte{strconv.AppendInt(nil, int64(of.category), 10), append(slots, '}'), append(seqs, '}'), append(rows, '}')}
}

// current tells whether the partition is as it was when the read began.
func (s *session) current(r *slotRead) bool {
	return s.owned[r.p.key] == r.p && r.p.phase == flowing && r.p.resets == r.resets
}

// takeRow takes one event of a slot, and tells whether it went into a batch.
func (s *session) takeRow(r *slotRead, e *event.Event) bool {
	r.rows++
	last := r.at.sent
	switch {
	case r.cut || r.doubt:
	case r.rows == 1 && last.seq > 0:
		r.doubt = e.Seq != last.seq || e.ID != last.id
	case e.Seq != last.seq+1:
		r.doubt = true
	case !s.room(r.p):
		r.cut = true
		if b := r.p.staged; b != nil {
			r.p.eventSize = b.Size() / b.Len()
		}
	default:
		e.Category, e.PrevID = r.p.name, last.id
		s.add(r.p, e)
		return true
	}
	return false
}

// conclude notes which slots have more, and looks into those that do not go on as
// they should.
func (s *session) conclude(ctx context.Context, of *plan) error {
	var doubtful []*slotRead
	for i := range of.slots {
		r := &of.slots[i]
		switch {
		case !s.current(r), of.stopped:
			r.at.look, s.backlog = true, true
		case r.doubt || r.rows == 0 && r.from.seq > 0:
			doubtful = append(doubtful, r)
		case r.cut || r.rows >= r.n:
			r.at.look, s.backlog = true, true
		}
		if r.p.probe >= 0 && r.p.staged == nil && r.p.flying == nil {
			r.p.probe, r.p.limit = -1, maxRecords // there was nothing to try
			r.at.stop.retryAt = time.Now().Add(maxRetry)
		}
	}
	if len(doubtful) == 0 {
		return nil
	}
	return s.confirm(ctx, of.category, doubtful)
}

const nextSQL = `select u.slot, coalesce((select min(e.seq) from refold.event e where e.category = $1 and e.slot = u.slot and e.seq > u.seq), 0)
	from unnest($2::smallint[], $3::bigint[]) u (slot, seq)`

// confirm asks the table again for slots that did not go on as they should, in a
// statement that does not lean on any order of rows, and stops those of which a
// relayed event is gone.
func (s *session) confirm(ctx context.Context, category int16, doubtful []*slotRead) error {
	var places []slotSeq
	for _, r := range doubtful {
		places = append(places, slotSeq{r.at.number, r.at.sent.seq})
	}
	table, err := s.idsAt(ctx, category, places)
	if err != nil {
		return err
	}
	floors, err := s.floors(ctx, category)
	if err != nil {
		return err
	}
	for _, r := range doubtful {
		at := r.at
		if !s.current(r) {
			continue
		}
		if found := table[slotSeq{at.number, at.sent.seq}]; at.sent.seq > floors[at.number] && found != at.sent.id {
			s.lost(r.p, at, at.sent, found)
			s.reset(r.p)
			continue
		}
		var next int64
		if err := s.conn.QueryRow(ctx, nextSQL, category, []int16{int16(at.number)}, []int64{at.sent.seq}).Scan(nil, &next); err != nil {
			return fmt.Errorf("reading how slot %d goes on: %w", at.number, err)
		}
		if next > at.sent.seq+1 {
			s.stopSlot(r.p, at, &stop{kind: diverged, seq: at.sent.seq + 1, offset: -1,
				reason: fmt.Sprintf("the event table goes on with %s/%d/%d behind seq %d: it has lost events", r.p.name, at.number, next, at.sent.seq)})
			s.reset(r.p)
			continue
		}
		at.look = true
	}
	return nil
}

// scanRow reads a row of readSQL, in binary form, into an event whose strings and
// value are valid until the next row.
func scanRow(v [][]byte, e *event.Event) error {
	if len(v) != 13 || len(v[0]) != 2 || len(v[1]) != 8 || len(v[2]) != 8 || len(v[3]) != 16 || len(v[4]) != 8 || len(v[5]) != 8 {
		return errors.New("a row of the event table has another form")
	}
	*e = event.Event{
		Slot: int(int16(binary.BigEndian.Uint16(v[0]))), Seq: int64(binary.BigEndian.Uint64(v[1])), Version: int64(binary.BigEndian.Uint64(v[2])),
		ID: event.ID(v[3]), Time: timeOf(v[4]), Recorded: timeOf(v[5]), Stream: stringOf(v[6]), Type: stringOf(v[7]), Value: v[8],
		Metadata: event.Metadata{Actor: stringOf(v[9]), CorrelationID: stringOf(v[10]), CausationID: stringOf(v[11]), Traceparent: stringOf(v[12])},
	}
	return nil
}

// timeOf reads a timestamptz: microseconds since 2000.
func timeOf(b []byte) event.Time {
	const since1970 = 946_684_800_000_000
	return event.Time(int64(binary.BigEndian.Uint64(b)) + since1970)
}

// stringOf returns bytes as a string without copying them.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
