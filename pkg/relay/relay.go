// Package relay carries committed events from the event table to Kafka: every
// event, in the order of its slot, into the one partition where its slot belongs.
//
// The event table itself is the outbox. A relay owns partitions by leases in the
// database, reads `slot, seq > cursor`, produces with acks=all and idempotence,
// and moves the cursor after the acknowledgement, under the fence of its lease.
// What is promised: the first occurrences of a slot's events in the topic are in
// order and without a gap. What is not: a crash between acknowledgement and
// cursor leaves copies of at most what was in flight, byte for byte the same,
// which consumers drop by their seq.
//
// A [Relay] works in one loop on one database session; when the session is lost,
// or leads to another incarnation of the server, it owns nothing any more. On
// taking a partition over it compares every record behind the last compared
// offset with the table, and later whatever lies between its own records. A
// record of ours that names another event than the table does is a divergence: a
// failover has lost events that were relayed already. It stops the partition and
// raises an alarm that names both sides; nothing is overwritten.
package relay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/postgres"
)

// Config bounds a relay. The zero value of each field takes its default.
type Config struct {
	DatabaseURL string
	Kafka       kafka.Config
	// Owner names this process for people and for sharing; random when empty.
	Owner string
	// Lease is how long a partition stays with a relay that says nothing; 9 s.
	Lease time.Duration
	// Poll is how often the heads are looked at without being woken; 500 ms.
	Poll time.Duration
	// MaxInFlight is the most events between table and acknowledgement; 20,000.
	MaxInFlight int
}

func (c Config) withDefaults() Config {
	if c.Owner == "" {
		c.Owner = rand.Text()
	}
	if c.Lease == 0 {
		c.Lease = 9 * time.Second
	}
	if c.Poll == 0 {
		c.Poll = 500 * time.Millisecond
	}
	if c.MaxInFlight == 0 {
		c.MaxInFlight = 20_000
	}
	return c
}

// Relay carries events. Run may be called once.
type Relay struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{} // size 1: one token stands for any number of wake-ups

	mu   sync.Mutex
	acks []ack // of records, in the order in which the client reports them

	// The rest belongs to the loop.
	client      *kgo.Client
	admin       *kadm.Client
	conn        *pgx.Conn
	incarnation postgres.Incarnation
	owned       map[key]*partition
	inFlight    int
	alarms      []pendingAlarm
	created     map[string][16]byte // topics made by this session, with their ids
	faults      faults
}

// faults are planted by tests, to see that the guards catch them.
type faults struct {
	cursorEarly bool // moves the cursor before the acknowledgement
	noCompare   bool // does not compare at a takeover
}

// New returns a relay. It does not dial; Run does.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) *Relay {
	return &Relay{cfg: cfg.withDefaults(), log: log, metrics: newMetrics(reg), wake: make(chan struct{}, 1)}
}

// Wake says that there may be new events. It does not block and is safe for
// concurrent use.
func (r *Relay) Wake() {
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
	r.client, err = kgo.NewClient(append(options, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0), kgo.ProducerBatchMaxBytes(kafka.MaxMessageBytes-1024), kgo.MaxBufferedRecords(2*r.cfg.MaxInFlight), kgo.MaxBufferedBytes(256<<20),
		kgo.UnknownTopicRetries(-1), kgo.StopProducerOnDataLossDetected(), kgo.ProducerBatchCompression(kgo.Lz4Compression(), kgo.NoCompression()))...)
	if err != nil {
		return fmt.Errorf("making the producer: %w", err)
	}
	defer r.client.Close()
	r.admin = kadm.NewClient(r.client)
	for ctx.Err() == nil {
		if err := r.session(ctx); err != nil && ctx.Err() == nil {
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

// session is one database session: it owns what it takes over within it.
func (r *Relay) session(ctx context.Context) (err error) {
	if r.conn, err = postgres.Connect(ctx, postgres.Config{URL: r.cfg.DatabaseURL, AppName: "refold-relay", StatementTimeout: 20 * time.Second}); err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		r.conn.Close(closing)
	}()
	if r.incarnation, err = postgres.ReadIncarnation(ctx, r.conn); err != nil {
		return err
	}
	r.owned, r.inFlight, r.created = make(map[key]*partition), 0, make(map[string][16]byte)
	r.mu.Lock()
	r.acks = nil
	r.mu.Unlock()
	defer r.metrics.reset()

	listening, stop := context.WithCancel(ctx)
	var others sync.WaitGroup
	others.Go(func() { r.listen(listening) })
	defer others.Wait()
	defer stop()
	err = r.loop(ctx)
	if released := r.release(context.WithoutCancel(ctx)); err == nil {
		err = released
	}
	return err
}

// loop reads, produces and moves cursors until ctx ends.
func (r *Relay) loop(ctx context.Context) error {
	poll := time.NewTicker(r.cfg.Poll)
	defer poll.Stop()
	renew := time.NewTicker(r.cfg.Lease / 4)
	defer renew.Stop()
	if err := r.share(ctx); err != nil {
		return err
	}
	for {
		more, err := r.step(ctx)
		if err != nil {
			return err
		}
		if more {
			select { // a backlog must not keep the leases from being renewed
			case <-renew.C:
				if err := r.share(ctx); err != nil {
					return err
				}
			default:
			}
			if ctx.Err() != nil {
				return nil
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-poll.C:
		case <-renew.C:
			if err := r.share(ctx); err != nil {
				return err
			}
		}
	}
}

// step takes in acknowledgements and produces what is new. It tells whether
// there is more to do at once.
func (r *Relay) step(ctx context.Context) (more bool, err error) {
	if err := r.settle(ctx); err != nil {
		return false, err
	}
	if r.inFlight >= r.cfg.MaxInFlight/2 {
		return false, nil // an acknowledgement wakes us
	}
	n, err := r.produce(ctx)
	return n > 0, err
}

// release waits for what is in flight and gives the partitions back, so that
// others need not wait for the leases to expire.
func (r *Relay) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := r.client.Flush(ctx); err != nil {
		return fmt.Errorf("waiting for acknowledgements: %w", err)
	}
	if err := r.settle(ctx); err != nil {
		return err
	}
	for _, p := range r.owned {
		if _, err := r.conn.Exec(ctx, `update refold.relay_partition set expires = '-infinity', owner = null
			where category = $1 and generation = $2 and partition = $3 and fence = $4 and nonce = $5`, p.category, p.generation, p.number, p.fence, p.nonce); err != nil {
			return fmt.Errorf("giving back a partition: %w", err)
		}
	}
	_, err := r.conn.Exec(ctx, `delete from refold.relay_member where owner = $1`, r.cfg.Owner)
	return err
}

// listen wakes the loop when another process has committed events. It is only a
// short cut: the loop polls as well.
func (r *Relay) listen(ctx context.Context) {
	for ctx.Err() == nil {
		if err := r.listenOnce(ctx); err != nil && ctx.Err() == nil {
			wait(ctx, time.Second)
		}
	}
}

func (r *Relay) listenOnce(ctx context.Context) error {
	conn, err := postgres.Connect(ctx, postgres.Config{URL: r.cfg.DatabaseURL, AppName: "refold-relay-listen"})
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `listen refold_log`); err != nil {
		return err
	}
	for {
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return err
		}
		r.Wake()
	}
}

// ack is the answer to one record.
type ack struct {
	p      *partition
	slot   int
	seq    int64
	id     event.ID
	offset int64
	err    error
}

var errDiverged = errors.New("the topic and the event table name different events")
