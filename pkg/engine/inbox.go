package engine

import (
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// inbox holds the records that wait for a worker. The poll loop puts them in and
// never waits; a full inbox pauses its partition in the client, and the worker
// resumes it when half of that is gone.
//
// An inbox is shut until its worker has claimed and the client fetches from the
// offset of the claim: what comes before that was fetched for nobody and is
// dropped, as it will be fetched again.
type inbox struct {
	limit         func() int64
	pause, resume func()
	ready         chan struct{} // size 1: something was put in

	mu     sync.Mutex
	open   bool
	paused bool
	chunks [][]*kgo.Record
	bytes  int64 // with those of the chunk that the worker has in hand
	inHand int64
}

func newInbox(limit func() int64, pause, resume func()) *inbox {
	return &inbox{limit: limit, pause: pause, resume: resume, ready: make(chan struct{}, 1)}
}

// recordBytes estimates the memory of a record without key and value: the record,
// its headers and their values.
const recordBytes = 1000

func sizeOf(records []*kgo.Record) (n int64) {
	for _, r := range records {
		n += recordBytes + int64(len(r.Key)+len(r.Value))
	}
	return n
}

// put takes records in, from the poll loop.
func (q *inbox) put(records []*kgo.Record) {
	limit, size := q.limit(), sizeOf(records)
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.open {
		return
	}
	q.chunks, q.bytes = append(q.chunks, records), q.bytes+size
	if q.bytes >= limit && !q.paused {
		q.paused = true
		q.pause()
	}
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// take returns the records that came first, of all that are there about as many as
// are wanted, nil when there are none. The worker is done with those of the last
// call.
func (q *inbox) take(wanted int) []*kgo.Record {
	limit := q.limit()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes -= q.inHand
	q.inHand = 0
	var records []*kgo.Record
	for len(q.chunks) > 0 && (records == nil || len(records)+len(q.chunks[0]) <= wanted) {
		if records == nil {
			records = slices.Clip(q.chunks[0]) // what follows belongs to the client
		} else {
			records = append(records, q.chunks[0]...)
		}
		q.chunks[0] = nil
		q.chunks = q.chunks[1:]
	}
	q.inHand = sizeOf(records)
	if q.paused && q.open && q.bytes-q.inHand <= limit/2 {
		q.paused = false
		q.resume()
	}
	return records
}

// holds tells whether so many records wait.
func (q *inbox) holds(n int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, chunk := range q.chunks {
		if n -= len(chunk); n <= 0 {
			return true
		}
	}
	return false
}

// shut drops what waits and takes nothing in until reopen; the client fetches
// nothing meanwhile.
func (q *inbox) shut() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open, q.chunks, q.bytes, q.inHand = false, nil, 0, 0
	q.paused = true
	q.pause()
}

// reopen lets the client fetch again. It is called by the poll loop, after the
// client was told the offset.
func (q *inbox) reopen() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open, q.paused = true, false
	q.resume()
}
