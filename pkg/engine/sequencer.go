package engine

import (
	"slices"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/projection"
)

// placement is what an event is to the sequence of its slot.
type placement int

const (
	next placement = iota
	duplicate
	gap
	diverged // next by number, but behind another event than the last one applied
)

// sequencer knows the last event of each slot of a partition.
type sequencer struct {
	slots []int16
	seqs  []int64
	ids   []event.ID
}

func newSequencer(slots []int16, seqs []int64, ids [][16]byte) sequencer {
	s := sequencer{slots: slots, seqs: seqs}
	for _, id := range ids {
		s.ids = append(s.ids, id)
	}
	return s
}

func (s *sequencer) index(slot int) int { return slices.Index(s.slots, int16(slot)) }

func (s *sequencer) seq(slot int) int64     { return s.seqs[s.index(slot)] }
func (s *sequencer) last(slot int) event.ID { return s.ids[s.index(slot)] }

// place judges an event and changes nothing.
func (s *sequencer) place(e *event.Event) placement {
	i := s.index(e.Slot)
	switch {
	case e.Seq <= s.seqs[i]:
		if e.Seq == s.seqs[i] && e.ID != s.ids[i] {
			return diverged
		}
		return duplicate
	case e.Seq > s.seqs[i]+1:
		return gap
	case e.PrevID != s.ids[i]:
		return diverged
	default:
		return next
	}
}

// advance makes an event that is next the last one.
func (s *sequencer) advance(e *event.Event) {
	i := s.index(e.Slot)
	s.seqs[i], s.ids[i] = e.Seq, e.ID
}

func (s *sequencer) uuids() [][16]byte {
	out := make([][16]byte, len(s.ids))
	for i, id := range s.ids {
		out[i] = id
	}
	return out
}

// batch is what one transaction does.
type batch struct {
	from, to int64 // offsets
	events   []*event.Event
	rows     map[string]*projection.Row // met in this batch
	touched  map[string]*projection.Row
	wanted   map[string]bool

	applied, filled, duplicates, filtered, foreign int64
	parkedStreams                                  []parkedStream
	parkedEvents                                   []parkedStream
}

// parkedStream is an event that is parked, and why; "" for one that only waits.
type parkedStream struct {
	e   *event.Event
	why string
}

func newBatch(from int64) *batch {
	return &batch{from: from, to: from, rows: make(map[string]*projection.Row), touched: make(map[string]*projection.Row), wanted: make(map[string]bool)}
}

func (b *batch) park(e *event.Event, why string) {
	b.parkedEvents = append(b.parkedEvents, parkedStream{e, why})
}

// cache keeps rows of one stream as they stand in the table, as long as the
// claim holds. When it is full it starts over: cheaper than order, and a batch's
// rows are what the next batch wants.
type cache struct {
	limit, bytes int
	rows         map[string]*projection.Row
}

func newCache(limit int) cache { return cache{limit: limit, rows: make(map[string]*projection.Row)} }

func (c *cache) get(key string) *projection.Row { return c.rows[key] }

func (c *cache) put(key string, row *projection.Row) {
	if c.bytes > c.limit {
		clear(c.rows)
		c.bytes = 0
	}
	if c.rows[key] == nil {
		c.bytes += row.Size() + len(key)
	}
	c.rows[key] = row
}
