package readmodel

import (
	"sync"
	"sync/atomic"
	"time"
)

// validity tells which cached answers may still be given. It has a clock that
// ticks with every invalidation: an answer notes the clock before it is read,
// and is good as long as nothing that could change it was invalidated after that
// moment. So an answer whose invalidation came while it was being read is never
// given, and nothing has to be searched for when one comes.
//
// It is safe for concurrent use; only the watcher invalidates.
type validity struct {
	clock   atomic.Uint64
	flushed atomic.Uint64 // the clock when everything was invalidated last
	until   atomic.Int64  // the time, in ns of Unix, until which invalidations can be relied on

	branch   atomic.Uint32 // of the server that is listened to, 0 while none is
	proofs   *proofs
	requests atomic.Pointer[carriedOut]

	mu       sync.RWMutex
	versions map[versionID]*stamps
}

// carriedOut is the id up to which requests about parked streams were carried out,
// as a look found in a branch.
type carriedOut struct {
	upTo   int64
	branch uint32
}

// in returns the id, or 0 when it is of another branch, in which the same ids may
// be of other requests.
func (c *carriedOut) in(branch uint32) int64 {
	if c == nil || c.branch != branch {
		return 0
	}
	return c.upTo
}

type versionID struct {
	projection string
	number     int
}

// stampSlots is how many hashes of keys are told apart for each version: more
// make fewer answers fall for the sake of another row. A power of two.
const stampSlots = 1 << 14

// stamps are the clock's times of the last invalidations of one version.
type stamps struct {
	any  atomic.Uint64 // of any row
	many atomic.Uint64 // of rows that were not named
	keys [stampSlots]atomic.Uint64
}

func newValidity() *validity {
	return &validity{proofs: newProofs(), versions: make(map[versionID]*stamps)}
}

// of returns the stamps of a version, which it keeps for ever: versions are few.
func (v *validity) of(id versionID) *stamps {
	v.mu.RLock()
	s := v.versions[id]
	v.mu.RUnlock()
	if s != nil {
		return s
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.versions[id] == nil {
		v.versions[id] = new(stamps)
	}
	return v.versions[id]
}

// now is to be noted before reading what will be kept.
func (v *validity) now() uint64 { return v.clock.Load() }

// flush invalidates everything.
func (v *validity) flush() { v.flushed.Store(v.clock.Add(1)) }

// rely says that invalidations arrive, for so long.
func (v *validity) rely(until time.Time) { v.until.Store(until.UnixNano()) }

// lost says that invalidations may be missing from now on.
func (v *validity) lost() {
	v.until.Store(0)
	v.branch.Store(0)
	v.flush()
}

// changed invalidates the answers that depend on the rows with these hashes.
func (v *validity) changed(id versionID, keys []uint32, many bool) {
	if len(keys) == 0 && !many {
		return // progress without a change of rows
	}
	s := v.of(id)
	at := v.clock.Add(1)
	for _, key := range keys {
		s.keys[key%stampSlots].Store(at)
	}
	if many {
		s.many.Store(at)
	}
	s.any.Store(at)
}

// reliable tells whether kept answers may be given at all.
func (v *validity) reliable(at time.Time) bool { return at.UnixNano() < v.until.Load() }

// rows tells whether what was read when the clock stood at begun still holds for
// the rows with these hashes; for any row when there are none.
func (v *validity) rows(s *stamps, begun uint64, keys ...uint32) bool {
	if begun < v.flushed.Load() || begun < s.many.Load() {
		return false
	}
	for _, key := range keys {
		if begun < s.keys[key%stampSlots].Load() {
			return false
		}
	}
	return len(keys) > 0 || begun >= s.any.Load()
}
