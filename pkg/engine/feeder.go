package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/refoldhq/refold/pkg/eventstore"
)

// feeder is one membership in the group of one version. Its poll loop hands
// records to the workers and waits for none of them, so the group hears from it
// whatever the database does.
type feeder struct {
	engine     *Engine
	feed       Feed
	categories map[string]eventstore.Category // by topic
	client     *kgo.Client
	admin      *kadm.Client
	connected  chan struct{} // closed once client is set: its goroutines may call us before NewClient has returned

	mu      sync.Mutex // guards all below
	workers map[topicPartition]*worker
	seeks   []seek
	wake    context.CancelFunc // ends the present poll
	sent    map[topicPartition]int64
}

type topicPartition struct {
	topic     string
	partition int32
}

// seek is a worker's wish that the client fetch its partition from an offset.
type seek struct {
	worker *worker
	to     int64
	anew   bool // the client has given the partition up
}

func newFeeder(e *Engine, feed Feed) *feeder {
	f := &feeder{engine: e, feed: feed, categories: make(map[string]eventstore.Category), connected: make(chan struct{}), workers: make(map[topicPartition]*worker),
		wake: func() {}, sent: make(map[topicPartition]int64)}
	for _, c := range feed.Categories {
		f.categories[c.Topic] = c
	}
	return f
}

// maxPoll is the most records of one poll.
const maxPoll = 10_000

// run feeds until ctx ends or the client does.
func (f *feeder) run(ctx context.Context) error {
	if err := f.connect(); err != nil {
		return err
	}
	defer f.client.CloseAllowingRebalance() // leaves the group; a plain Close would wait for our next poll
	defer f.stopAll()
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	all.Go(func() { f.tellOffsets(ctx) })
	for {
		fetches := f.client.PollRecords(f.polling(ctx), maxPoll)
		if ctx.Err() != nil {
			return nil
		}
		if fetches.IsClientClosed() {
			return kgo.ErrClientClosed
		}
		fetches.EachError(f.fetchFailed)
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			if w := f.worker(p.Topic, p.Partition); w != nil && len(p.Records) > 0 {
				w.inbox.put(p.Records)
			}
		})
		f.doSeeks()
		f.client.AllowRebalance()
	}
}

func (f *feeder) connect() error {
	cfg := f.engine.cfg.Kafka
	cfg.ClientID = f.engine.cfg.Prefix + "-projector-" + f.engine.cfg.Owner
	options, err := cfg.Options()
	if err != nil {
		return err
	}
	topics := make([]string, 0, len(f.categories))
	for topic := range f.categories {
		topics = append(topics, topic)
	}
	f.client, err = kgo.NewClient(append(options, kgo.ConsumerGroup(GroupName(f.engine.cfg.Prefix, f.feed.Version)), kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()), kgo.DisableAutoCommit(), kgo.Balancers(kgo.CooperativeStickyBalancer()), kgo.BlockRebalanceOnPoll(),
		kgo.SessionTimeout(10*time.Second), kgo.HeartbeatInterval(time.Second), kgo.RebalanceTimeout(20*time.Second),
		kgo.FetchMaxWait(500*time.Millisecond), kgo.FetchMaxBytes(4<<20), kgo.FetchMaxPartitionBytes(1<<20),
		kgo.AdjustFetchOffsetsFn(f.assigned),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { f.stop(lost) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { f.stop(lost) }))...)
	if err != nil {
		return fmt.Errorf("joining the group: %w", err)
	}
	f.admin = kadm.NewClient(f.client)
	close(f.connected)
	return nil
}

// assigned starts a worker for each new partition. Its inbox is shut, which pauses
// the partition in the client, until it has claimed; the offset that is returned
// is one that nothing is fetched from. It is called when the group's own offsets
// were looked up, so that they do not overtake what a worker wants.
func (f *feeder) assigned(_ context.Context, assigned map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	<-f.connected
	for topic, partitions := range assigned {
		category, ours := f.categories[topic]
		if !ours {
			continue
		}
		for partition := range partitions {
			f.stop(map[string][]int32{topic: {partition}}) // there should be none
			w := newWorker(f, category, int(partition))
			w.inbox.shut()
			partitions[partition] = kgo.NewOffset().At(0)
			f.mu.Lock()
			f.workers[topicPartition{topic, partition}] = w
			f.mu.Unlock()
			go w.run()
		}
	}
	return assigned, nil
}

// polling returns the context of the next poll, which ends early when somebody
// wants to seek.
func (f *feeder) polling(ctx context.Context) context.Context {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wake() // releases the last one
	ctx, f.wake = context.WithCancel(ctx)
	if len(f.seeks) > 0 {
		f.wake()
	}
	return ctx
}

// seek has the poll loop fetch a worker's partition from an offset.
func (f *feeder) seek(w *worker, to int64, anew bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seeks = append(f.seeks, seek{w, to, anew})
	f.wake()
}

// doSeeks is called by the poll loop, while no partition can be revoked.
func (f *feeder) doSeeks() {
	f.mu.Lock()
	list := f.seeks
	f.seeks = nil
	f.mu.Unlock()
	first, offsets := make(map[string]map[int32]kgo.EpochOffset), make(map[string]map[int32]kgo.EpochOffset)
	set := func(in map[string]map[int32]kgo.EpochOffset, w *worker, to int64) {
		if in[w.category.Topic] == nil {
			in[w.category.Topic] = make(map[int32]kgo.EpochOffset)
		}
		in[w.category.Topic][int32(w.partition)] = kgo.EpochOffset{Epoch: -1, Offset: to}
	}
	var opened []*worker
	for _, s := range list {
		if f.worker(s.worker.category.Topic, int32(s.worker.partition)) != s.worker {
			continue // revoked meanwhile
		}
		if s.anew { // to set what is set already does nothing
			set(first, s.worker, s.to+1)
		}
		set(offsets, s.worker, s.to)
		opened = append(opened, s.worker)
	}
	if len(opened) == 0 {
		return
	}
	f.client.SetOffsets(first)
	f.client.SetOffsets(offsets)
	for _, w := range opened {
		w.inbox.reopen()
	}
}

func (f *feeder) worker(topic string, partition int32) *worker {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.workers[topicPartition{topic, partition}]
}

// fetchFailed shows an error of fetching. The client tries most of them again by
// itself; where it does not, the worker begins anew and says why it cannot.
func (f *feeder) fetchFailed(topic string, partition int32, err error) {
	if errors.Is(err, context.Canceled) {
		return // a poll that was ended early
	}
	f.engine.metrics.fetches.WithLabelValues(f.feed.Version.Projection).Inc()
	v := f.feed.Version
	f.engine.log.Warn("fetching failed", "projection", v.Projection, "version", v.Number, "topic", topic, "partition", partition, "err", err)
	w := f.worker(topic, partition)
	if w == nil {
		return
	}
	var lost *kgo.ErrDataLoss
	if errors.Is(err, kerr.OffsetOutOfRange) || errors.As(err, &lost) {
		err = &standing{fmt.Sprintf("the topic %s does not have the offset at which partition %d is to be read on: %v", topic, partition, err)}
	} else if kerr.IsRetriable(err) {
		return
	}
	select {
	case w.failed <- err:
	default: // one is enough
	}
}

// tellEvery is how often Kafka is told the offsets, so that lag shows in the
// usual tools. The database is the truth, so it does not matter when that fails.
const tellEvery = time.Second

func (f *feeder) tellOffsets(ctx context.Context) {
	for ctx.Err() == nil {
		wait(ctx, tellEvery)
		f.mu.Lock()
		offsets := make(map[string]map[int32]kgo.EpochOffset)
		for at, w := range f.workers {
			s := w.shown()
			if !s.claimed || s.next == f.sent[at] {
				continue
			}
			f.sent[at] = s.next
			if offsets[at.topic] == nil {
				offsets[at.topic] = make(map[int32]kgo.EpochOffset)
			}
			offsets[at.topic][at.partition] = kgo.EpochOffset{Epoch: -1, Offset: s.next}
		}
		f.mu.Unlock()
		if len(offsets) > 0 {
			f.client.CommitOffsets(ctx, offsets, nil)
		}
	}
}

// prove commits an offset and returns nil if the group has accepted it, which it
// does from its present members only.
func (f *feeder) prove(ctx context.Context, topic string, partition int32, offset int64) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	failed := errors.New("the group has not answered")
	f.client.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{topic: {partition: {Epoch: -1, Offset: offset}}},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, answer *kmsg.OffsetCommitResponse, err error) {
			failed = err
			if err != nil || answer == nil {
				return
			}
			for _, t := range answer.Topics {
				for _, p := range t.Partitions {
					failed = errors.Join(failed, kerr.ErrorForCode(p.ErrorCode))
				}
			}
		})
	return failed
}

func (f *feeder) stop(lost map[string][]int32) {
	f.mu.Lock()
	var stopping []*worker
	for topic, partitions := range lost {
		for _, partition := range partitions {
			at := topicPartition{topic, partition}
			if w := f.workers[at]; w != nil {
				stopping = append(stopping, w)
				delete(f.workers, at)
				delete(f.sent, at)
			}
		}
	}
	f.mu.Unlock()
	stopWorkers(stopping)
}

func (f *feeder) stopAll() {
	f.mu.Lock()
	var stopping []*worker
	for _, w := range f.workers {
		stopping = append(stopping, w)
	}
	f.workers = make(map[topicPartition]*worker)
	f.mu.Unlock()
	stopWorkers(stopping)
}

func stopWorkers(list []*worker) {
	var all sync.WaitGroup
	for _, w := range list {
		all.Go(w.stop)
	}
	all.Wait()
}
