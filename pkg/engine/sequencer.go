package engine

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/refoldhq/refold/pkg/event"
)

// placement is what an event is to the sequence of its slot.
type placement int

const (
	next placement = iota
	duplicate
	gap
	diverged // next by number, but behind another event than the last one applied
)

// sequencer knows the last event of each slot of a partition, and which slots
// are stopped.
type sequencer struct {
	slots   []int16
	seqs    []int64
	ids     []event.ID
	stopped []StoppedSlot
}

// StoppedSlot is a slot that does not go on, as it stands in the progress row. A
// restart finds it there, so the records that are passed over meanwhile are not
// forgotten.
type StoppedSlot struct {
	Slot int `json:"slot"`
	// FirstMissing is the seq that was not there to be applied next.
	FirstMissing int64 `json:"firstMissing"`
	// Offset is that of the first record that was passed over, Held the greatest
	// seq of those: the slot is not whole before it is reached.
	Offset int64     `json:"offset"`
	Held   int64     `json:"held"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}

func newSequencer(slots []int16, seqs []int64, ids [][16]byte, stopped []StoppedSlot) sequencer {
	s := sequencer{slots: slots, seqs: seqs, stopped: stopped}
	for _, id := range ids {
		s.ids = append(s.ids, id)
	}
	return s
}

// clone returns a sequencer that moves on its own.
func (s *sequencer) clone() sequencer {
	return sequencer{slots: s.slots, seqs: slices.Clone(s.seqs), ids: slices.Clone(s.ids), stopped: slices.Clone(s.stopped)}
}

// index finds a slot. Slots ascend in steps that are the same, but for a
// partition that somebody made by hand.
func (s *sequencer) index(slot int) int {
	if n := len(s.slots); n > 1 {
		if i := (slot - int(s.slots[0])) / int(s.slots[1]-s.slots[0]); i >= 0 && i < n && int(s.slots[i]) == slot {
			return i
		}
	}
	return slices.Index(s.slots, int16(slot))
}

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

// stop returns the entry of a stopped slot, nil for one that goes on.
func (s *sequencer) stop(slot int) *StoppedSlot {
	for i := range s.stopped {
		if s.stopped[i].Slot == slot {
			return &s.stopped[i]
		}
	}
	return nil
}

// listOf returns the list as it stands in the progress row.
func listOf(stopped []StoppedSlot) string {
	if len(stopped) == 0 {
		return "[]"
	}
	raw, err := json.Marshal(stopped)
	if err != nil {
		panic(err) // numbers, text and times only
	}
	return string(raw)
}

// goOn takes a slot off the list of those that are stopped.
func (s *sequencer) goOn(slot int) {
	s.stopped = slices.DeleteFunc(s.stopped, func(x StoppedSlot) bool { return x.Slot == slot })
}
