// Package torture runs writers, relays, projectors and queries as processes
// under load, breaks what they depend on by a seeded schedule, heals it, and
// then checks the invariants of refold from the outside: the clients' history,
// the event table, the topics and the rows must agree.
package torture

import (
	"fmt"
	"sync"
	"time"
)

// outcome is what a client knows about a request.
type outcome int

const (
	unknown  outcome = iota // no answer, or one that says so: it may have happened
	ok                      // acknowledged
	failed                  // refused: it has not happened and never will
	conflict                // refused for its expected version
)

// newEvent is one event of a request, as it was sent.
type newEvent struct {
	Type   string
	Owner  string
	Label  string
	Amount int64
}

// request is one append and everything a client learned about it. Retries of it
// carry the same idempotency key, which is its id and its correlation id too.
type request struct {
	ID       string
	Stream   string
	Expected int64 // -1: any
	Events   []newEvent

	Invoked, Returned time.Time
	Outcome           outcome
	FirstVersion      int64
	Positions         []string
	IDs               []string
	Token             string
	Actual            int64 // of a conflict
	// acked is the last version of the stream that had been acknowledged to
	// anybody when the request was made.
	acked int64
}

// history is what all clients did. It is safe for concurrent use.
type history struct {
	mu       sync.Mutex
	requests []*request
	byID     map[string]*request
	acked    map[string]int64 // stream: last version acknowledged
	faults   []string
}

func newHistory() *history {
	return &history{byID: make(map[string]*request), acked: make(map[string]int64)}
}

// invoke records that r is about to be sent.
func (h *history) invoke(r *request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Invoked, r.acked = time.Now(), h.acked[r.Stream]
	h.requests = append(h.requests, r)
	h.byID[r.ID] = r
}

// settle records what became of r.
func (h *history) settle(r *request, settle func(*request)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	settle(r)
	r.Returned = time.Now()
	if r.Outcome == ok {
		h.acked[r.Stream] = max(h.acked[r.Stream], r.FirstVersion+int64(len(r.Events))-1)
	}
}

func (h *history) fault(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = append(h.faults, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (h *history) count(o outcome) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.requests {
		if r.Outcome == o {
			n++
		}
	}
	return n
}
