package rebuilder

import "github.com/refoldhq/refold/pkg/event"

// sequence knows the last event of each slot of a partition.
type sequence struct {
	partitions int
	seqs       []int64
	ids        []event.ID
	again      []int64 // as seqs, of the present pass when it is not the first
}

func newSequence(p *part) sequence {
	return sequence{partitions: p.category.Partitions, seqs: make([]int64, p.slots()), ids: make([]event.ID, p.slots()), again: make([]int64, p.slots())}
}

type placement int

const (
	isNext placement = iota
	isDuplicate
	isGap
	isDiverged // next by number, but behind another event than the last one
)

func (s *sequence) seq(slot int) int64 { return s.seqs[slot/s.partitions] }

// place judges an event and, when it is next, makes it the last one. chained says
// that it knows its predecessor.
func (s *sequence) place(e *event.Event, chained bool) placement {
	i := e.Slot / s.partitions
	switch {
	case e.Seq <= s.seqs[i]:
		if e.Seq == s.seqs[i] && e.ID != s.ids[i] {
			return isDiverged
		}
		return isDuplicate
	case e.Seq > s.seqs[i]+1:
		return isGap
	case chained && e.PrevID != s.ids[i]:
		return isDiverged
	}
	s.seqs[i], s.ids[i] = e.Seq, e.ID
	return isNext
}

// begin begins another pass over the same events.
func (s *sequence) begin() { clear(s.again) }

// repeats tells whether an event of a later pass came before. Events of other
// streams are left out of such a pass, so its numbers have gaps.
func (s *sequence) repeats(e *event.Event) bool {
	i := e.Slot / s.partitions
	if e.Seq <= s.again[i] {
		return true
	}
	s.again[i] = e.Seq
	return false
}
