package engine

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
)

// feeder is one membership in the group of one version.
type feeder struct {
	engine     *Engine
	feed       Feed
	categories map[string]eventstore.Category // by topic
	client     *kgo.Client
	connected  chan struct{} // closed once client is set: its goroutines may claim before NewClient has returned
	failed     chan error    // size 1: the first failure ends the feeder

	mu      sync.Mutex // guards workers
	workers map[topicPartition]*worker
}

type topicPartition struct {
	topic     string
	partition int32
}

func newFeeder(e *Engine, feed Feed) *feeder {
	f := &feeder{engine: e, feed: feed, categories: make(map[string]eventstore.Category), connected: make(chan struct{}), failed: make(chan error, 1), workers: make(map[topicPartition]*worker)}
	for _, c := range feed.Categories {
		f.categories[c.Topic] = c
	}
	return f
}

// run feeds until ctx ends or something fails.
func (f *feeder) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := f.connect(ctx); err != nil {
		return err
	}
	defer f.client.CloseAllowingRebalance() // leaves the group; a plain Close would wait for our next poll
	defer f.stopAll()
	go func() {
		select {
		case err := <-f.failed:
			cancel(err)
		case <-ctx.Done():
		}
	}()
	for {
		fetches := f.client.PollRecords(ctx, 20_000)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for _, e := range fetches.Errors() {
			return fmt.Errorf("fetching %s/%d: %w", e.Topic, e.Partition, e.Err)
		}
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			if len(p.Records) > 0 {
				f.dispatch(ctx, topicPartition{p.Topic, p.Partition}, p.Records)
			}
		})
		f.client.AllowRebalance()
	}
}

func (f *feeder) connect(ctx context.Context) error {
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
	f.client, err = kgo.NewClient(append(options, kgo.ConsumerGroup(groupName(f.engine.cfg.Prefix, f.feed.Version)), kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()), kgo.DisableAutoCommit(), kgo.Balancers(kgo.CooperativeStickyBalancer()), kgo.BlockRebalanceOnPoll(),
		kgo.SessionTimeout(10*time.Second), kgo.HeartbeatInterval(time.Second), kgo.RebalanceTimeout(20*time.Second), kgo.FetchMaxWait(500*time.Millisecond), kgo.FetchMaxBytes(8<<20), kgo.FetchMaxPartitionBytes(2<<20), kgo.MaxBufferedRecords(20_000),
		kgo.AdjustFetchOffsetsFn(f.claim),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { f.stop(lost) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { f.stop(lost) }))...)
	if err != nil {
		return fmt.Errorf("joining the group: %w", err)
	}
	close(f.connected)
	return nil
}

// claim claims newly assigned partitions and says where to read on from.
func (f *feeder) claim(ctx context.Context, assigned map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	<-f.connected
	admin := kadm.NewClient(f.client)
	for topic, partitions := range assigned {
		category, ours := f.categories[topic]
		if !ours {
			continue
		}
		described, err := kafka.ReadTopic(ctx, admin, topic)
		if err != nil {
			f.fail(err)
			return nil, err
		}
		for partition := range partitions {
			f.stop(map[string][]int32{topic: {partition}}) // a claim of our own fences a worker of our own too
			w := newWorker(f, category, int(partition))
			next, err := w.claim(ctx, described.ID)
			if err != nil {
				err = fmt.Errorf("claiming %s/%d: %w", topic, partition, err)
				f.fail(err)
				return nil, err
			}
			partitions[partition] = kgo.NewOffset().At(next)
			f.start(topicPartition{topic, partition}, w)
		}
	}
	return assigned, nil
}

func (f *feeder) start(at topicPartition, w *worker) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.workers[at] = w
	go w.run()
}

// dispatch hands records to the worker of their partition. A worker that has
// enough holds the poll loop up: the client's own buffers fill, and Kafka waits.
func (f *feeder) dispatch(ctx context.Context, at topicPartition, records []*kgo.Record) {
	f.mu.Lock()
	w := f.workers[at]
	f.mu.Unlock()
	if w == nil {
		return // revoked meanwhile
	}
	select {
	case w.queue <- records:
	case <-w.done:
	case <-ctx.Done():
	}
}

func (f *feeder) fail(err error) {
	select {
	case f.failed <- err:
	default: // the first one is told
	}
}

func (f *feeder) stop(lost map[string][]int32) {
	f.mu.Lock()
	var stopping []*worker
	for topic, partitions := range lost {
		for _, partition := range partitions {
			if w := f.workers[topicPartition{topic, partition}]; w != nil {
				stopping = append(stopping, w)
				delete(f.workers, topicPartition{topic, partition})
			}
		}
	}
	f.mu.Unlock()
	for _, w := range stopping {
		w.stop()
	}
}

func (f *feeder) stopAll() {
	f.mu.Lock()
	workers := f.workers
	f.workers = make(map[topicPartition]*worker)
	f.mu.Unlock()
	for _, w := range workers {
		w.stop()
	}
}
