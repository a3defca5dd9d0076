package engine

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/relay"
)

// worker folds one partition for as long as the group assigns it. It claims the
// partition, works until something goes wrong, and claims again.
type worker struct {
	feeder    *feeder
	engine    *Engine
	feed      Feed
	category  eventstore.Category
	partition int
	inbox     *inbox
	failed    chan error    // size 1: fetching failed for good
	asked     chan struct{} // size 1: there are requests
	ctx       context.Context
	cancel    context.CancelFunc
	work      context.Context // outlives ctx a little, so that a batch may end
	abort     context.CancelFunc
	done      chan struct{}

	// Of the present claim.
	conn    *pgx.Conn
	epoch   int64
	next    int64 // offset
	seqs    sequencer
	parked  map[string]bool
	skipped Decisions
	lost    relay.Branches // records that are no events of the log any more
	folder  *projection.Folder
	rows    *cachePart
	healAt  time.Time
	healing backoff
	probeAt time.Time

	poison map[event.ID]refusal

	// Of all claims.
	refetch bool // the client has given up fetching the partition
	limit   int  // events in a batch: lowered to find the one that the server refuses
	breaker breaker
	spare   []taken // the memory of the last batch's events

	mu       sync.Mutex // guards what others see
	state    shown
	requests []request
	decided  Decisions // since the claim
}

// shown is what others see of a worker.
type shown struct {
	claimed         bool
	next            int64 // offset, 0 before the first claim
	parked, stopped int
	standing        string // why it cannot go on; empty while it does
}

type place struct {
	slot int
	seq  int64
}

func newWorker(f *feeder, category eventstore.Category, partition int) *worker {
	e := f.engine
	w := &worker{feeder: f, engine: e, feed: f.feed, category: category, partition: partition, failed: make(chan error, 1), asked: make(chan struct{}, 1),
		done: make(chan struct{}), rows: e.cache.part(), limit: e.cfg.MaxBatch, poison: make(map[event.ID]refusal),
		healing: backoff{least: healLeast, most: healMost}, breaker: breaker{most: e.cfg.MaxParked}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.work, w.abort = context.WithCancel(context.Background())
	here := map[string][]int32{category.Topic: {int32(partition)}}
	w.inbox = newInbox(e.queueLimit, func() { f.client.PauseFetchPartitions(here) }, func() { f.client.ResumeFetchPartitions(here) })
	return w
}

func (w *worker) shown() shown {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

func (w *worker) show(change func(*shown)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.state)
}

// stopPatience is how long a batch that is under way may take when the worker is
// to stop: less than the group waits for its members.
const stopPatience = 6 * time.Second

// stop ends the worker after the batch that is under way.
func (w *worker) stop() {
	w.cancel()
	timer := time.AfterFunc(stopPatience, w.abort)
	defer timer.Stop()
	<-w.done
}

// run claims and works until the worker is stopped.
func (w *worker) run() {
	defer close(w.done)
	defer w.abort()
	w.engine.register(w)
	defer w.engine.unregister(w)
	pause := backoff{least: 100 * time.Millisecond, most: 5 * time.Second}
	var failing time.Time
	for former := int64(0); w.ctx.Err() == nil; {
		began := time.Now()
		err := w.hold(former)
		if epoch := w.release(); epoch != 0 { // else it is the former claim that is to be continued
			former = epoch
		}
		if w.ctx.Err() != nil {
			return
		}
		if time.Since(began) > 30*time.Second {
			pause.reset()
			failing = time.Time{}
		}
		if failing.IsZero() {
			failing = began
		}
		w.engine.metrics.restarts.WithLabelValues(w.feed.Version.Projection).Inc()
		if errors.Is(err, errFenced) {
			w.engine.metrics.fenced.Inc()
			w.log("a partition was claimed by another owner", err)
			former = 0
			w.awaitMembership()
			wait(w.ctx, pause.next())
			continue
		}
		var stands *standing
		if errors.As(err, &stands) || time.Since(failing) > 10*time.Second {
			w.alarm(former, err)
		}
		w.log("a partition is taken up again", err)
		wait(w.ctx, pause.next())
	}
}

func (w *worker) log(what string, err error) {
	v := w.feed.Version
	w.engine.log.Warn(what, "projection", v.Projection, "version", v.Number, "topic", w.category.Topic, "partition", w.partition, "offset", w.next, "err", err)
}

// hold claims the partition and works until that is over.
func (w *worker) hold(former int64) error {
	claiming, cancel := context.WithTimeout(w.ctx, 30*time.Second)
	defer cancel()
	if err := w.claim(claiming, former); err != nil {
		return fmt.Errorf("claiming %s/%d: %w", w.category.Topic, w.partition, err)
	}
	cancel()
	w.show(func(s *shown) {
		s.claimed, s.next, s.parked, s.stopped = true, w.next, len(w.parked), len(w.seqs.stopped)
	})
	w.feeder.seek(w, w.next, w.refetch)
	w.refetch = false
	if err := w.serve(); err != nil {
		return fmt.Errorf("applying %s/%d from offset %d: %w", w.category.Topic, w.partition, w.next, err)
	}
	return nil
}

// release gives up all that belongs to the claim and returns its epoch.
func (w *worker) release() (epoch int64) {
	w.inbox.shut()
	w.rows.drop()
	clear(w.poison) // what was refused may be taken when it is tried again
	w.show(func(s *shown) { s.claimed = false })
	if w.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		w.conn.Close(ctx)
		w.conn = nil
	}
	epoch, w.epoch = w.epoch, 0
	return epoch
}

// claim takes the partition over on a session of the worker's own. With the epoch
// of a former claim it continues that one, unless somebody else has claimed.
func (w *worker) claim(ctx context.Context, former int64) (err error) {
	described, err := kafka.ReadTopic(ctx, w.feeder.admin, w.category.Topic)
	if errors.Is(err, kafka.ErrNoTopic) {
		return &standing{err.Error()}
	}
	if err != nil {
		return err
	}
	if err := w.connect(ctx); err != nil {
		return err
	}
	v := w.feed.Version
	var slots []int16
	var seqs []int64
	var ids [][16]byte
	var topic [16]byte
	var stopped []byte
	for {
		err = w.conn.QueryRow(ctx, `select epoch, next, slot_list, seq_list, id_list, topic, stopped_list from refold.progress_claim($1, $2, $3, $4, $5, $6, $7, $8)`,
			v.Projection, v.Number, w.category.Name, w.category.Generation, w.partition, w.engine.cfg.Owner, described.ID, former).
			Scan(&w.epoch, &w.next, &slots, &seqs, &ids, &topic, &stopped)
		if postgres.Classify(err) != postgres.ClassLockTimeout {
			break
		}
		if err := w.clear(ctx); err != nil {
			return err
		}
	}
	if err != nil {
		return fenced(err)
	}
	if err := w.checkPlan(ctx); err != nil {
		return err
	}
	if topic != described.ID {
		return &standing{fmt.Sprintf("the topic was recreated: its id is %s, the progress is that of %s", hex.EncodeToString(described.ID[:]), hex.EncodeToString(topic[:]))}
	}
	var list []StoppedSlot
	if err := json.Unmarshal(stopped, &list); err != nil {
		return fmt.Errorf("reading the stopped slots: %w", err)
	}
	w.seqs = newSequencer(slots, seqs, ids, list)
	if w.lost, err = relay.Repairs(ctx, w.engine.pool, w.category, described.ID); err != nil {
		return err
	}
	w.folder = w.feed.Plan.NewFolder()
	w.healAt, w.probeAt = time.Time{}, time.Time{}
	w.healing.reset()
	if w.parked, err = w.readParked(ctx); err != nil {
		return err
	}
	if w.skipped, err = ReadDecisions(ctx, w.conn, w.feed.Version.Projection, w.category.Name, w.seqs.slots); err != nil {
		return err
	}
	return nil
}

// connect opens the worker's session.
func (w *worker) connect(ctx context.Context) error {
	taken, err := w.engine.takeRoom(ctx)
	if err != nil {
		return err
	}
	defer taken()
	w.conn, err = postgres.Connect(ctx, postgres.Config{URL: w.engine.cfg.DatabaseURL, AppName: "refold-projector", ByKey: true,
		StatementTimeout: 30 * time.Second, LockTimeout: 20 * time.Second, IdleInTransactionTimeout: 5 * time.Second})
	return err
}

// clear ends the session of the former owner, whose transaction is in the way of
// a claim: its process is stopped in the middle of a commit.
func (w *worker) clear(ctx context.Context) error {
	v := w.feed.Version
	var b postgres.Backend
	err := w.engine.pool.QueryRow(ctx, `select coalesce(owner_pid, 0), coalesce(owner_start, 'epoch') from refold.progress
		where projection = $1 and version = $2 and category = $3 and generation = $4 and partition = $5`,
		v.Projection, v.Number, w.category.Name, w.category.Generation, w.partition).Scan(&b.PID, &b.Started)
	if err != nil {
		return fmt.Errorf("looking for the owner of the partition: %w", err)
	}
	ended, err := b.Terminate(ctx, w.engine.pool)
	if err != nil {
		return err
	}
	if ended {
		w.log("the session of a former owner that was in the way is ended", nil)
	}
	return nil
}

// fenced marks what the server says to a former owner.
func fenced(err error) error {
	if postgres.IsCode(err, "RF010") {
		return fmt.Errorf("%w: %w", errFenced, err)
	}
	return err
}

// awaitMembership returns when the group has accepted an offset of ours, which
// proves that we are a member at this moment: a worker that was paused, and is
// none any more, must not take a partition from its rightful owner for ever.
func (w *worker) awaitMembership() {
	pause := backoff{least: 200 * time.Millisecond, most: 2 * time.Second}
	for w.ctx.Err() == nil {
		if w.feeder.prove(w.ctx, w.category.Topic, int32(w.partition), w.next) == nil {
			return
		}
		wait(w.ctx, pause.next())
	}
}

// alarm writes down why the partition stands, as long as it is nobody else's.
func (w *worker) alarm(epoch int64, why error) {
	w.show(func(s *shown) { s.standing = why.Error() })
	v := w.feed.Version
	w.engine.log.Error("a partition stands", "projection", v.Projection, "version", v.Number, "topic", w.category.Topic, "partition", w.partition, "err", why)
	ctx, cancel := context.WithTimeout(w.ctx, 5*time.Second)
	defer cancel()
	if _, err := w.engine.pool.Exec(ctx, `update refold.progress set alarm = $6 where projection = $1 and version = $2 and category = $3 and generation = $4 and partition = $5
		and owner_epoch = $7`, v.Projection, v.Number, w.category.Name, w.category.Generation, w.partition, clean(why.Error()), epoch); err != nil {
		w.log("an alarm could not be written down", err)
	}
}

// runs notes that a batch was committed.
func (w *worker) runs() {
	w.show(func(s *shown) {
		s.next, s.parked, s.stopped, s.standing = w.next, len(w.parked), len(w.seqs.stopped), ""
	})
}

// serve works until the worker is stopped or something goes wrong.
func (w *worker) serve() error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for w.ctx.Err() == nil {
		if in, any := w.due(); any {
			timer.Reset(in)
		} else {
			timer.Stop()
		}
		select {
		case <-w.ctx.Done():
		case err := <-w.failed:
			w.refetch = true
			return err
		case <-w.inbox.ready:
		case <-w.asked:
		case <-timer.C:
		}
		if err := w.turn(); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) stopping() bool { return w.ctx.Err() != nil }

// turn does all that there is to do.
func (w *worker) turn() error {
	for records := w.inbox.take(w.limit); ; {
		began := time.Now()
		ctx, cancel := context.WithTimeout(w.work, time.Minute)
		n, err := w.step(ctx, records)
		cancel()
		if err != nil {
			return err
		}
		if records = records[n:]; len(records) == 0 {
			if n > 0 {
				w.rest(time.Since(began))
			}
			records = w.inbox.take(w.limit)
		}
		if len(records) == 0 || w.stopping() {
			return nil
		}
	}
}

const (
	maxRest = 20 * time.Millisecond
	// plenty is how many records make a batch that is worth its commit.
	plenty = 250
)

// rest waits twice as long as the last batch took, while little is to be done: a
// commit costs much more than another event in it. So an idle machine makes small
// batches at once and a busy one fewer and larger ones, instead of spending on
// commits what it lacks for events.
func (w *worker) rest(d time.Duration) {
	if !w.inbox.holds(plenty) {
		wait(w.ctx, min(2*d, maxRest))
	}
}

// step carries out what was asked for, tends stopped slots, and commits a batch;
// it returns how many of the records it has dealt with.
func (w *worker) step(ctx context.Context, records []*kgo.Record) (n int, err error) {
	if err := w.carryOut(ctx); err != nil {
		return 0, err
	}
	if in, any := w.due(); any && in == 0 {
		if err := w.tend(ctx); err != nil {
			return 0, err
		}
	}
	if len(records) == 0 {
		return 0, nil
	}
	start := time.Now()
	b := w.newBatch()
	if n, err = w.gather(ctx, b, records); err != nil {
		return 0, err
	}
	if b.to == b.from && len(b.events) == 0 {
		return n, nil
	}
	links := w.links(b)
	done, err := w.settle(ctx, b)
	if err != nil || !done {
		return 0, err
	}
	if links != nil {
		v := w.feed.Version
		links.Span(w.engine.cfg.Tracer, "process "+w.category.Topic, trace.SpanKindConsumer, start, nil, append(kafka.SpanAttributes(w.category.Topic, w.partition, len(b.events)),
			attribute.String("refold.projection", v.Projection), attribute.Int("refold.version", v.Number))...)
	}
	w.engine.metrics.duration.Observe(time.Since(start).Seconds())
	w.engine.metrics.batch.Observe(float64(len(b.events)))
	return n, nil
}

// links returns where a batch's events came from, nil where nobody wants to know.
func (w *worker) links(b *batch) *kafka.Links {
	if w.engine.cfg.Tracer == nil {
		return nil
	}
	links := &kafka.Links{}
	for i := range b.events {
		links.Add(b.events[i].event.Metadata.Traceparent)
	}
	return links
}
