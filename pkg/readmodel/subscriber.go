package readmodel

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Batch is changes that are told together, to many subscribers at once: nobody
// changes it.
type Batch struct {
	// Model is the version that the changes belong to.
	Model   *Model
	Changes []Change
	// Alive is a batch without changes that only says: still here.
	Alive bool

	size    int
	encoded sync.Once
	wire    [][]byte
}

// Wire returns the changes as encode makes them, which is asked once for however
// many subscribers.
func (b *Batch) Wire(encode func(*Change) []byte) [][]byte {
	b.encoded.Do(func() {
		for i := range b.Changes {
			b.wire = append(b.wire, encode(&b.Changes[i]))
		}
	})
	return b.wire
}

func newBatch(m *Model, changes []Change) *Batch {
	b := &Batch{Model: m, Changes: changes}
	for i := range changes {
		c := &changes[i]
		b.size += len(c.Key) + len(c.Row) + len(c.Token) + 100
	}
	return b
}

// Subscriber follows the changes of one read model. What it does not take in time
// is bounded: then it is told to resume, with [ErrSlow].
type Subscriber struct {
	name string
	// The changes that are wanted. A row that the filter does not select is told as
	// removed, whether it was told before or not.
	where Condition

	budget int    // bytes that may wait
	ready  func() // called, without locks, when something is to be had after nothing was

	mu      sync.Mutex
	waiting []*Batch
	bytes   int
	err     error // why it has ended
	left    bool
}

// ErrSlow says that a subscriber took its changes too slowly; it can resume.
var ErrSlow = errors.New("changes came faster than they were taken: resume")

// ErrClosed says that the feed has ended, with its process; resume elsewhere.
var ErrClosed = errors.New("the feed has ended: resume")

// tell adds a batch. It never blocks.
func (s *Subscriber) tell(b *Batch) {
	s.mu.Lock()
	if s.err != nil || s.left || b.Alive && len(s.waiting) > 0 {
		s.mu.Unlock()
		return
	}
	idle := len(s.waiting) == 0
	if !idle && s.bytes+b.size > s.budget { // a single batch always fits, however large its rows
		s.err = ErrSlow
	} else {
		s.waiting, s.bytes = append(s.waiting, b), s.bytes+b.size
	}
	s.mu.Unlock()
	if idle {
		s.ready()
	}
}

// end ends the subscription behind what waits.
func (s *Subscriber) end(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	idle := len(s.waiting) == 0
	s.mu.Unlock()
	if idle {
		s.ready()
	}
}

// Take returns the next batch, or nil when none waits. After the last one it
// returns why the subscription has ended.
func (s *Subscriber) Take() (*Batch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 {
		return nil, s.err
	}
	b := s.waiting[0]
	s.waiting, s.bytes = s.waiting[1:], s.bytes-b.size
	if len(s.waiting) == 0 {
		s.waiting = nil // its memory, while nothing happens
	}
	return b, nil
}

// Selects tells whether the subscriber's filter selects the row of a change.
func (s *Subscriber) Selects(b *Batch, c *Change) bool {
	return c.Row == nil || s.where.op == opAll || evaluate(b.Model.Plan, s.where, c.Key, c.Row)
}

// Filtered tells whether there is a filter at all.
func (s *Subscriber) Filtered() bool { return s.where.op != opAll }

// Leave ends the subscription from its own side.
func (s *Subscriber) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left, s.waiting, s.bytes = true, nil, 0
}

func (s *Subscriber) gone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left || s.err != nil
}

// awaitRoom waits until all is taken, so that one who resumes from far back is not
// told to resume again. It is false when nobody waits any more.
func (s *Subscriber) awaitRoom(ctx context.Context) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		room, gone := len(s.waiting) == 0, s.left || s.err != nil
		s.mu.Unlock()
		if gone || room {
			return !gone
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}
