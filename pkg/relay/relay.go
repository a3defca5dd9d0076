// Package relay carries committed events from the event table to Kafka: every
// event, in the order of its slot, into the one partition where its slot belongs.
//
// The event table itself is the outbox. A relay owns partitions by leases in the
// database, reads `slot, seq > cursor`, produces with acks=all and idempotence,
// and moves the cursor after the acknowledgement, under the fence of its lease.
//
// What is promised: the first occurrences of a slot's events in the topic are in
// order and without a gap, through every failure, because a partition has one
// batch under way and the next one leaves only after the answer. What is not: a
// crash between acknowledgement and cursor leaves copies of at most what was sent
// since the cursor moved, byte for byte the same, which consumers drop by their
// seq.
//
// A [Relay] works in sessions. A session is one database session and one loop,
// which owns all state; when the database session is lost, or leads to another
// incarnation of the server, it owns nothing any more. Requests to brokers run
// beside the loop and hand it their answers, so that no broker keeps the leases
// from being renewed.
//
// On taking a partition over the relay compares every record behind the last
// compared offset with the table, and later whatever lies between its own records
// (design.md section 3, "A lost tail"). A record of ours that names another event
// than the table does is a divergence: a failover has lost events that were
// relayed already. It stops the slot, names both sides, and waits for [Repair];
// nothing is overwritten. A record that the broker refuses stops its slot too, and
// is tried again. Slots flow apart from each other.
package relay

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/trace"

	"github.com/refoldhq/refold/pkg/kafka"
)

// Config bounds a relay. The zero value of each field takes its default.
type Config struct {
	DatabaseURL string
	Kafka       kafka.Config
	// Owner names this process for people and for sharing; random when empty.
	Owner string
	// Beside names the writer of this process, which calls Committed: what it
	// announces to other processes is known here. Empty when there is none.
	Beside string
	// Lease is how long a partition stays with a relay that says nothing; 9 s.
	Lease time.Duration
	// Poll is how often the heads are looked at without being woken; 500 ms.
	Poll time.Duration
	// CursorEvery is how long acknowledgements may wait to be noted; 100 ms. What
	// was sent meanwhile is compared by the next owner after a crash.
	CursorEvery time.Duration
	// BatchBytes bounds a batch before compression; 512 KiB. A larger event has a
	// batch to itself.
	BatchBytes int
	// BufferBytes bounds what is read and not acknowledged; 64 MiB.
	BufferBytes int
	// RetryRefused is how long a record that the broker refused waits to be tried
	// again, at first; 2 s. It doubles up to a minute.
	RetryRefused time.Duration
	// Tracer is told of each batch with events that are traced; nil tells nobody.
	Tracer trace.Tracer
}

func (c Config) withDefaults() Config {
	if c.Owner == "" {
		c.Owner = rand.Text()
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&c.Lease, 9 * time.Second}, {&c.Poll, 500 * time.Millisecond}, {&c.CursorEvery, 100 * time.Millisecond}, {&c.RetryRefused, 2 * time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.BatchBytes == 0 {
		c.BatchBytes = 512 << 10
	}
	if c.BufferBytes == 0 {
		c.BufferBytes = 64 << 20
	}
	return c
}

// Relay carries events. Run may be called once; the other methods are safe for
// concurrent use.
type Relay struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	faults  faults
	wake    chan struct{} // size 1: one token stands for any number of wake-ups

	mu    sync.Mutex
	inbox []func()                // what the loop has to do, from other goroutines
	hints map[string]map[int]bool // slots with new events, by category
	all   bool                    // any slot may have new events
}

// faults are bugs that tests plant, to see that they are caught.
type faults struct {
	cursorEarly bool // moves the cursor before the acknowledgement
	passRefused bool // goes on behind a record that the broker has refused
	noFence     bool // moves cursors whoever owns the partition
	noCompare   bool // does not compare at a takeover
}

// New returns a relay. It does not dial; Run does.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) *Relay {
	return &Relay{cfg: cfg.withDefaults(), log: log, metrics: newMetrics(reg), wake: make(chan struct{}, 1), hints: make(map[string]map[int]bool)}
}

// Wake says that any slot may have new events. It does not block.
func (r *Relay) Wake() {
	r.mu.Lock()
	r.all = true
	r.mu.Unlock()
	r.signal()
}

// Committed says that slots of a category have new events. It does not block.
func (r *Relay) Committed(category string, slots []int) {
	r.mu.Lock()
	of := r.hints[category]
	if of == nil {
		of = make(map[int]bool)
		r.hints[category] = of
	}
	for _, slot := range slots {
		of[slot] = true
	}
	r.mu.Unlock()
	r.signal()
}

// post has the loop call f.
func (r *Relay) post(f func()) {
	r.mu.Lock()
	r.inbox = append(r.inbox, f)
	r.mu.Unlock()
	r.signal()
}

func (r *Relay) signal() {
	select {
	case r.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Run carries events until ctx ends, then waits for what is in flight, gives its
// partitions back and returns nil. A lost database or broker ends a session, not
// Run.
func (r *Relay) Run(ctx context.Context) error {
	options, err := r.cfg.Kafka.Options()
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(append(options, kgo.RequiredAcks(kgo.AllISRAcks()), kgo.RetryTimeout(10*time.Second))...)
	if err != nil {
		return fmt.Errorf("making the producer: %w", err)
	}
	defer client.Close()
	for ctx.Err() == nil {
		if err := r.session(ctx, client); err != nil && ctx.Err() == nil {
			r.log.Warn("relay session ended", "err", err)
			wait(ctx, time.Second)
		}
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
