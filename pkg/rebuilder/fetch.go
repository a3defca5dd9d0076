package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// fetcher reads the batches of one partition by plain fetch requests. The
// client's consumer makes a record with fourteen pieces of memory of each of the
// millions; here a batch is walked in place, see [batches].
type fetcher struct {
	client *kgo.Client
	part   *part
	leader int32 // -1 when it is not known
	at     int64 // the next offset
}

const (
	// fetchBytes is the most that one fetch brings.
	fetchBytes = 2 << 20
	// fetchWait is how long a broker may wait for something to send.
	fetchWait = 500 * time.Millisecond
	// fetchRetries bounds how often a leader is looked up anew for one fetch.
	fetchRetries = 20
)

// next returns the next whole batches, empty when the broker has none.
func (f *fetcher) next(ctx context.Context) (data []byte, err error) {
	for range fetchRetries {
		if data, err = f.fetch(ctx); err == nil || errors.Is(err, errRecreated) || ctx.Err() != nil {
			return data, err
		}
		f.leader = -1
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return nil, err
		}
	}
	return nil, err
}

func (f *fetcher) fetch(ctx context.Context) ([]byte, error) {
	if f.leader < 0 {
		topics, err := kadm.NewClient(f.client).ListTopics(ctx, f.part.category.Topic)
		if err != nil {
			return nil, fmt.Errorf("looking for the leader of %s/%d: %w: %w", f.part.category.Topic, f.part.partition, errBroker, err)
		}
		detail := topics[f.part.category.Topic]
		if detail.ID != f.part.topicID {
			return nil, fmt.Errorf("%w: %s has another id than when the rebuild began", errRecreated, f.part.category.Topic)
		}
		f.leader = detail.Partitions[int32(f.part.partition)].Leader
	}
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes = int32(fetchWait/time.Millisecond), 1, fetchBytes
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.TopicID = f.part.category.Topic, f.part.topicID
	partition := kmsg.NewFetchRequestTopicPartition()
	partition.Partition, partition.FetchOffset, partition.PartitionMaxBytes = int32(f.part.partition), f.at, fetchBytes
	topic.Partitions = append(topic.Partitions, partition)
	req.Topics = append(req.Topics, topic)
	answer, err := f.client.Broker(int(f.leader)).Request(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("fetching %s/%d: %w: %w", f.part.category.Topic, f.part.partition, errBroker, err)
	}
	return f.take(answer.(*kmsg.FetchResponse))
}

func (f *fetcher) take(answer *kmsg.FetchResponse) ([]byte, error) {
	code := answer.ErrorCode
	var data []byte
	for _, topic := range answer.Topics {
		for _, p := range topic.Partitions {
			if code == 0 {
				code = p.ErrorCode
			}
			data = p.RecordBatches
		}
	}
	switch err := kerr.ErrorForCode(code); {
	case err == nil:
		end, next, err := wholeBatches(data)
		if err != nil {
			return nil, fmt.Errorf("%s/%d at offset %d: %w", f.part.category.Topic, f.part.partition, f.at, err)
		}
		if next > f.at {
			f.at = next
		}
		return data[:end], nil
	case errors.Is(err, kerr.OffsetOutOfRange), errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.InconsistentTopicID), errors.Is(err, kerr.UnknownTopicOrPartition):
		return nil, fmt.Errorf("%w: %s/%d at offset %d: %w", errRecreated, f.part.category.Topic, f.part.partition, f.at, err)
	default:
		return nil, fmt.Errorf("fetching %s/%d: %w: %w", f.part.category.Topic, f.part.partition, errBroker, err)
	}
}

// fetched is what the fetching goroutine hands over.
type fetched struct {
	data []byte
	err  error
}

// run fetches ahead of who reads from the channel, by one answer, until ctx ends,
// the offset end is reached or something fails.
func (f *fetcher) run(ctx context.Context, end int64, out chan<- fetched) {
	defer close(out)
	for f.at < end {
		data, err := f.next(ctx)
		select {
		case out <- fetched{data, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}
