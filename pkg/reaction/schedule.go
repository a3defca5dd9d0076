package reaction

import (
	"sync"
	"time"

	"github.com/refoldhq/refold/pkg/event"
)

// schedule says which event is handled next: those of a stream one after the other,
// those of different streams beside each other, so that one that takes long, or is
// tried again, keeps nobody waiting but its own stream. It knows how far each slot
// is dealt with. It does no IO and is safe for concurrent use.
type schedule struct {
	changed chan struct{} // holds an element when something has been dealt with

	mu     sync.Mutex // guards all below, and chains that nobody works on
	work   *sync.Cond // of mu: ready or closed has changed
	closed bool
	slots  []window
	chains map[string]*chain  // by stream: those that have events
	ready  []*chain           // whose first event may be handled now
	held   map[string]*parked // streams
	idle   []*chain           // of requests, that need more events or are at their end
	bytes  int                // of the events in chains
}

// window is what is open in a slot.
type window struct {
	read    place // the last event that was taken in
	passed  place // all events up to it are dealt with
	moved   place // what was told by moves last
	open    []entry
	stopped bool
}

type entry struct {
	place
	done bool
}

// chain is the events of a stream that are to be handled, and how it goes with the
// first of them. Whoever got it from next has it to himself.
type chain struct {
	slot     int
	stream   string
	events   []*event.Event
	attempts int
	pause    time.Duration
	request  *Parked // of a parked stream that goes on; nil for what comes from the slot
	after    int64   // of a request: the version up to which events were taken
}

// parked is a stream that is not handled. Its events count as dealt with.
type parked struct {
	behind int64 // the last seq that was left out
	asked  *chain
}

const (
	// maxOpen bounds how far one slot is read ahead of what it has not dealt with, and
	// maxBytes the events of all slots together.
	maxOpen  = 1000
	maxBytes = 64 << 20
)

func newSchedule(progress []place, streams []Parked, slotOf func(string) int) *schedule {
	s := &schedule{changed: make(chan struct{}, 1), slots: make([]window, len(progress)), chains: make(map[string]*chain), held: make(map[string]*parked)}
	s.work = sync.NewCond(&s.mu)
	for i, p := range progress {
		s.slots[i] = window{read: p, passed: p, moved: p}
	}
	for _, p := range streams {
		s.held[p.Stream] = &parked{behind: progress[slotOf(p.Stream)].seq}
	}
	return s
}

// close ends next for all who wait.
func (s *schedule) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.work.Broadcast()
}

// next waits for an event that may be handled, and gives it to the caller with its
// chain; nil at the end.
func (s *schedule) next() (*chain, *event.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.ready) == 0 && !s.closed {
		s.work.Wait()
	}
	if s.closed {
		return nil, nil
	}
	c := s.ready[0]
	s.ready = s.ready[1:]
	return c, c.events[0]
}

// add takes in the next events of a slot. Those that no function is for, or whose
// stream is parked, count as dealt with.
func (s *schedule) add(slot int, events []event.Event, wanted func(*event.Event) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &s.slots[slot]
	for i := range events {
		e := &events[i]
		at := place{e.Seq, e.ID}
		w.read = at
		p := s.held[e.Stream]
		if p != nil {
			p.behind = e.Seq
		}
		skip := p != nil || !wanted(e)
		w.open = append(w.open, entry{at, skip})
		if !skip {
			s.append(slot, e)
		}
	}
	s.pass(slot)
}

func (s *schedule) append(slot int, e *event.Event) {
	c := s.chains[e.Stream]
	if c == nil {
		c = &chain{slot: slot, stream: e.Stream}
		s.chains[e.Stream] = c
	}
	s.bytes += len(e.Value)
	if c.events = append(c.events, e); len(c.events) == 1 {
		s.push(c)
	}
}

func (s *schedule) push(c *chain) {
	s.ready = append(s.ready, c)
	s.work.Signal()
}

// handled takes the first event of a chain away, whose next one is due at once.
func (s *schedule) handled(c *chain) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(c)
	c.attempts, c.pause = 0, 0
	switch {
	case len(c.events) > 0:
		s.push(c)
	case c.request != nil:
		s.idle = append(s.idle, c)
		s.tell()
	default:
		delete(s.chains, c.stream)
	}
	s.pass(c.slot)
}

// drop takes the first event of a chain away.
func (s *schedule) drop(c *chain) {
	e := c.events[0]
	c.events[0] = nil
	c.events = c.events[1:]
	s.bytes -= len(e.Value)
	if c.request == nil { // else its slot has passed it already
		w := &s.slots[c.slot]
		w.open[e.Seq-w.passed.seq-1].done = true
	}
}

// pass moves a slot behind what is dealt with.
func (s *schedule) pass(slot int) {
	w := &s.slots[slot]
	n := 0
	for n < len(w.open) && w.open[n].done {
		n++
	}
	if n > 0 {
		w.passed = w.open[n-1].place
		w.open = w.open[n:]
		s.tell()
	}
}

func (s *schedule) tell() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// later has the first event of a chain handled again after a pause.
func (s *schedule) later(c *chain, pause time.Duration) {
	time.AfterFunc(pause, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.push(c)
	})
}

// park gives a stream up, whose first event was written down as parked.
func (s *schedule) park(c *chain) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.held[c.stream]
	if p == nil {
		p = &parked{}
		s.held[c.stream] = p
	}
	p.asked = nil
	for len(c.events) > 0 {
		p.behind = max(p.behind, c.events[0].Seq)
		s.drop(c)
	}
	if c.request == nil {
		delete(s.chains, c.stream)
	}
	s.pass(c.slot)
}

// ask begins to carry out a request about a parked stream. It returns nil if one is
// carried out already, or the stream is not parked.
func (s *schedule) ask(slot int, request Parked) *chain {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.held[request.Stream]
	if p == nil || p.asked != nil {
		return nil
	}
	p.asked = &chain{slot: slot, stream: request.Stream, request: &request, after: request.Version - 1}
	if request.Request == "skip" {
		p.asked.after++
	}
	return p.asked
}

// feed gives a request events of its stream, and tells whether there were any that
// its slot has left out.
func (s *schedule) feed(c *chain, events []event.Event, wanted func(*event.Event) bool) (more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	behind := s.held[c.stream].behind
	for i := range events {
		e := &events[i]
		if e.Seq > behind {
			break
		}
		more = true
		if c.after = e.Version; wanted(e) {
			c.events = append(c.events, e)
			s.bytes += len(e.Value)
		}
	}
	switch {
	case len(c.events) > 0:
		s.push(c)
	case more: // none that a function is for
		s.idle = append(s.idle, c)
		s.tell()
	}
	return more
}

// takeIdle returns the requests that need events.
func (s *schedule) takeIdle() []*chain {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.idle
	s.idle = nil
	return list
}

// release has a stream handled again, as its slot goes on.
func (s *schedule) release(stream string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.held, stream)
}

// room tells whether more events of a slot may be taken in.
func (s *schedule) room(slot int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.slots[slot].open) < maxOpen && (s.bytes < maxBytes || len(s.chains) == 0)
}

// state is how far a slot has come: what was read last and what is passed, and
// whether it is stopped.
func (s *schedule) state(slot int) (read, passed place, stopped bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &s.slots[slot]
	return w.read, w.passed, w.stopped
}

// settled returns up to where the progress of a slot is written down.
func (s *schedule) settled(slot int) place {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.slots[slot].moved
}

// stop holds a slot; it begins at a place later.
func (s *schedule) stop(slot int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots[slot].stopped = true
}

func (s *schedule) begin(slot int, at place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots[slot] = window{read: at, passed: at, moved: at}
}

// moves returns the slots whose progress is to be written down, and takes it as
// written.
func (s *schedule) moves() map[int]place {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make(map[int]place)
	for slot := range s.slots {
		if w := &s.slots[slot]; w.passed != w.moved {
			list[slot] = w.passed
			w.moved = w.passed
		}
	}
	return list
}

// busy tells whether anything is being handled or waits for it.
func (s *schedule) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.chains) > 0
}

// parkedStreams returns how many streams are parked.
func (s *schedule) parkedStreams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}
