package relay

import (
	"fmt"
	"time"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/kafka"
)

type key struct {
	category   int16
	generation int
	number     int
}

// phase is what a partition of ours is doing.
type phase int

const (
	settling  phase = iota // its topic is being looked at
	comparing              // records of the topic are compared with the table
	flowing                // events are sent
	alarmed                // nothing is sent until the cause is gone; looked at again at each renewal
)

// partition is a topic partition that this session owns.
type partition struct {
	key
	name       string // of the category
	topic      string
	slotCount  int
	partitions int
	fence      int64
	nonce      [16]byte
	topicID    [16]byte
	knownTopic bool // topicID is the one that the cursor speaks of
	slots      []slot

	phase    phase
	alarm    string // why, while alarmed
	noted    string // as the partition's row has it
	trouble  string // what keeps a batch from being sent; "" when nothing does
	troubled time.Time
	leaving  bool // to be given back
	dirty    bool // places, end or foreign moved since the cursor was written

	producer  kafka.Producer
	staged    *batch // being filled
	flying    *batch // sent, without a verdict yet
	asked     bool   // a request for flying is under way
	retryAt   time.Time
	resets    int64     // how often what was read was thrown away
	limit     int       // records in a batch
	cramped   time.Time // when a batch was refused last
	eventSize int       // of a record of the last batch, on average
	probe     int       // the one slot to be read, whose refused record is tried again; -1 for none

	end     int64 // offset up to which every record is known
	target  int64 // while comparing: the offset to reach
	resume  int64 // what end becomes once target is reached
	foreign int64 // counted and not yet written
}

// slot is how far a slot has come.
type slot struct {
	number int
	kept   place // as the cursor row has it
	acked  place // the last event that the topic is known to hold
	sent   place // the last event read into a batch
	look   bool  // there may be events behind sent
	stop   *stop // nil while it flows
	// released tells that a stop is over and still stored.
	released bool
}

// place is an event of a slot; the zero value stands before the first.
type place struct {
	seq int64
	id  event.ID
}

// maxRecords bounds a batch; it is no limit at the usual sizes of events.
const maxRecords = 10_000

// index returns where a slot of this partition stands in slots.
func (p *partition) index(slot int) int { return slot / p.partitions }

func (p *partition) String() string { return fmt.Sprintf("%s/%d", p.topic, p.number) }

// reset throws away what was read and not sent, and begins again behind what the
// topic holds.
func (s *session) reset(p *partition) {
	s.recycle(p.staged)
	p.staged = nil
	p.resets++
	for i := range p.slots {
		p.slots[i].sent, p.slots[i].look = p.slots[i].acked, true
	}
}

// settle has the partition's topic looked at anew: what is in flight is given up,
// and what became of it is found by comparing.
func (s *session) settle(p *partition, at time.Time) {
	s.abandon(p)
	s.reset(p)
	s.leaveTail(p)
	p.phase, p.retryAt = settling, at
}

// abandon gives up the batch in flight. A request that is under way may still read
// it, so its memory is not used again.
func (s *session) abandon(p *partition) {
	if p.flying != nil && p.asked {
		s.buffered -= p.flying.counted
	} else {
		s.recycle(p.flying)
	}
	p.flying, p.asked, p.trouble = nil, false, ""
}

// raise stops the partition and says why.
func (s *session) raise(p *partition, why string) {
	if p.alarm != why {
		s.log.Error("relay stops a partition", "topic", p.topic, "partition", p.number, "err", why)
		s.metrics.stopped.WithLabelValues(p.topic).Inc()
	}
	s.abandon(p)
	s.reset(p)
	s.leaveTail(p)
	p.phase, p.alarm, p.retryAt = alarmed, why, time.Time{}
}

// batch is what is read and goes to the broker as one.
type batch struct {
	kafka.Batch
	encoded []byte
	last    []place     // by slot: its last event in the batch
	oldest  event.Time  // recorded time of its first event
	links   kafka.Links // where its events came from, if that is traced
	began   time.Time   // its present request
	counted int         // of the bytes in session.buffered
}

func (s *session) newBatch(p *partition) *batch {
	b := &batch{}
	if n := len(s.free); n > 0 {
		b, s.free = s.free[n-1], s.free[:n-1]
	}
	b.Reset()
	b.links.Reset()
	b.encoded, b.counted = b.encoded[:0], 0
	if cap(b.last) < len(p.slots) {
		b.last = make([]place, len(p.slots))
	}
	b.last = b.last[:len(p.slots)]
	clear(b.last)
	return b
}

// maxFree bounds the batches that are kept for use again.
const maxFree = 32

func (s *session) recycle(b *batch) {
	if b == nil {
		return
	}
	s.buffered -= b.counted
	if len(s.free) < maxFree && b.Size() <= 2*s.cfg.BatchBytes {
		s.free = append(s.free, b)
	}
}

// add reads an event into the partition's batch.
func (s *session) add(p *partition, e *event.Event) {
	if p.staged == nil {
		p.staged = s.newBatch(p)
		p.staged.oldest = e.Recorded
	}
	b := p.staged
	b.Add(e)
	if s.cfg.Tracer != nil {
		b.links.Add(e.Metadata.Traceparent)
	}
	s.buffered += b.Size() - b.counted
	b.counted = b.Size()
	at := &p.slots[p.index(e.Slot)]
	at.sent = place{e.Seq, e.ID}
	b.last[p.index(e.Slot)] = at.sent
	if s.faults.cursorEarly {
		at.acked, p.dirty = at.sent, true
	}
}

// room tells whether the partition's batch takes more.
func (s *session) room(p *partition) bool {
	return p.staged == nil || p.staged.Len() < p.limit && p.staged.Size() < s.cfg.BatchBytes && s.buffered < s.cfg.BufferBytes
}
