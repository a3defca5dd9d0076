package readmodel

import (
	"encoding/binary"
	"hash/fnv"
	"hash/maphash"
	"sync/atomic"

	"github.com/refoldhq/refold/pkg/event"
)

// A failover may lose the tail of the log, and other events then come to stand at
// its positions: a seq alone does not prove that an answer contains what a token
// names. So a mark says which event it means.
//
// A mark of an answer also says in which branch it was read, that is, in which run
// of the server; what a version has applied in a branch it does not lose in that
// branch. Marks of another branch, and those of appends, are compared with the log
// and with the last event of the slot that the version has applied, in the
// snapshot of the rows: the log must have the event at its place, and the version
// must have come along the log that is there now, and not along what a topic still
// holds of the lost one.

// branchOf makes one number of what [branchSQL] reads; 0 for none.
func branchOf(parts []int64) uint32 {
	if len(parts) == 0 {
		return 0
	}
	h := fnv.New32a()
	for _, part := range parts {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(part)))
	}
	return max(1, h.Sum32())
}

// logPlace is what the log has at the position of a mark, and at the seq that the
// version has reached in its slot: the sums of their ids, 0 for nothing.
type logPlace struct{ there, head uint32 }

// doubtful returns the marks of a token that are to be looked up in the log
// together with the rows: those of the branch that is listened to only if all are. A standby, which has no branch, looks all up.
func (v *validity) doubtful(token event.Token, all bool) (marks []event.Mark) {
	branch := v.branch.Load()
	for _, m := range token {
		if m.Written || m.Event != 0 && (all || branch == 0 || m.Branch != branch) {
			marks = append(marks, m)
		}
	}
	return marks
}

// known tells whether a snapshot of a version's rows is known to be of the history
// of a mark that its progress covers.
func (v *validity) known(leaf string, s *snapshot, m *event.Mark) bool {
	seq, reached, feeds := s.progress.last(m.Category, m.Slot)
	return !feeds || m.Event == 0 || m.Branch != 0 && m.Branch == s.progress.branch || m.Seq == seq && m.Event == reached ||
		v.proofs.has(proof{leaf, s.progress.branch, *m})
}

// prove looks a mark that is not known up in what the log has shown.
func (v *validity) prove(leaf string, s *snapshot, m *event.Mark) error {
	place, asked := s.log[m.Position]
	seq, reached, _ := s.progress.last(m.Category, m.Slot)
	switch {
	case !asked: // the watcher did not know yet that there is another branch
		return errUnproven
	case place.there != 0 && place.there != m.Event, reached != 0 && place.head != 0 && place.head != reached, reached != 0 && seq == m.Seq:
		return ErrLost // of an event that is at the version's head it would be known
	}
	v.proofs.add(proof{leaf, s.progress.branch, *m})
	return nil
}

// proofs remembers some of the marks that were found in the history of a version's
// rows, so that clients who go on sending the token of an append are answered from
// what is kept. It forgets, and never errs: what a version has applied in a branch
// stays.
type proofs struct {
	seed  maphash.Seed
	known [4096]atomic.Uint64
}

// proof is a mark in a version's rows in a branch.
type proof struct {
	leaf   string
	branch uint32
	mark   event.Mark
}

func newProofs() *proofs { return &proofs{seed: maphash.MakeSeed()} }

func (p *proofs) at(x proof) (place *atomic.Uint64, sum uint64) {
	sum = maphash.Comparable(p.seed, x)
	return &p.known[sum%uint64(len(p.known))], sum
}

func (p *proofs) has(x proof) bool {
	place, sum := p.at(x)
	return place.Load() == sum
}

func (p *proofs) add(x proof) {
	place, sum := p.at(x)
	place.Store(sum)
}
