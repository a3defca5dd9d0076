package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.opentelemetry.io/otel/trace"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/kafka"
)

// A partition has one batch in flight. Its bytes, with the producer's id and
// sequence, stay the same until the broker's verdict is known, so that a repeat is
// recognised as such, and the next batch leaves only after the verdict. The
// library's producer would go on with later batches when one is refused, and a
// slot's later events would be read before its earlier ones.
//
// A broker serves one request of a connection at a time (it reads the next when the
// answer is sent), so a leader has one request under way, with batches of as many
// partitions as are ready. While it is, batches fill: an idle relay sends at once,
// a busy one in large batches.

const (
	maxRequestBytes = 8 << 20
	produceTimeout  = 15 * time.Second // of the broker, for its replicas
	retryPause      = 100 * time.Millisecond
)

// dispatch sends every batch of at least so many bytes whose leader is free.
func (s *session) dispatch(now time.Time, least int) {
	var requests map[int32][]*partition
	var bytes map[int32]int
	for _, p := range s.owned {
		if p.phase != flowing || p.asked || now.Before(p.retryAt) || p.flying == nil && (p.staged == nil || p.staged.Size() < least) {
			continue
		}
		leader, ok := s.leaders.of(p)
		if !ok || s.leaders.busy[leader] {
			continue
		}
		if p.flying == nil {
			p.flying, p.staged = p.staged, nil
		}
		if requests == nil {
			requests, bytes = make(map[int32][]*partition), make(map[int32]int)
		}
		if bytes[leader] > 0 && bytes[leader]+p.flying.Size() > maxRequestBytes {
			continue // goes with the next one
		}
		bytes[leader] += p.flying.Size()
		requests[leader] = append(requests[leader], p)
	}
	for leader, partitions := range requests {
		s.request(leader, partitions)
	}
	s.lookUpLeaders(now)
}

// sending is a batch on its way. It is what the goroutine of a request knows.
type sending struct {
	p       *partition
	b       *batch
	by      kafka.Producer
	records []byte
	topic   string
	id      [16]byte
	number  int32
}

func (s *session) request(leader int32, partitions []*partition) {
	s.leaders.busy[leader] = true
	s.flights++
	s.requested = time.Now()
	all := make([]sending, 0, len(partitions))
	for _, p := range partitions {
		p.asked, p.retryAt, p.flying.began = true, time.Time{}, s.requested
		all = append(all, sending{p: p, b: p.flying, by: p.producer, topic: p.topic, id: p.topicID, number: int32(p.number)})
	}
	s.background.Go(func() {
		start := time.Now()
		for i := range all {
			b := all[i].b
			if len(b.encoded) == 0 {
				b.encoded = b.Encode(b.encoded, all[i].by, s.compressor)
			}
			all[i].records = b.encoded
		}
		response, err := s.produce(leader, all)
		took := time.Since(start)
		s.post(func() {
			s.leaders.busy[leader] = false
			s.flights--
			s.restUntil = time.Now().Add(min(took, maxRest))
			s.metrics.requests.WithLabelValues(outcome(err)).Observe(took.Seconds())
			if err != nil {
				s.leaders.forget(leader)
			}
			for i := range all {
				s.verdict(&all[i], response, err)
			}
		})
	})
}

func outcome(err error) string {
	if err != nil {
		return "failed"
	}
	return "answered"
}

// produce sends batches to their leader and returns its answer.
func (s *session) produce(leader int32, all []sending) (*kmsg.ProduceResponse, error) {
	request := kmsg.NewPtrProduceRequest()
	request.Acks, request.TimeoutMillis = -1, int32(produceTimeout.Milliseconds())
	at := make(map[string]int)
	for i := range all {
		part := kmsg.NewProduceRequestTopicPartition()
		part.Partition, part.Records = all[i].number, all[i].records
		n, ok := at[all[i].topic]
		if !ok {
			n = len(request.Topics)
			at[all[i].topic] = n
			topic := kmsg.NewProduceRequestTopic()
			topic.Topic, topic.TopicID = all[i].topic, all[i].id
			request.Topics = append(request.Topics, topic)
		}
		request.Topics[n].Partitions = append(request.Topics[n].Partitions, part)
	}
	ctx, cancel := context.WithTimeoutCause(s.brokers, produceTimeout+10*time.Second, errors.New("the leader did not answer"))
	defer cancel()
	response, err := s.client.Broker(int(leader)).Request(ctx, request)
	if err != nil {
		return nil, err
	}
	produced, ok := response.(*kmsg.ProduceResponse)
	if !ok {
		return nil, fmt.Errorf("the leader answers with a %T", response)
	}
	return produced, nil
}

// verdict takes in what became of a batch.
func (s *session) verdict(sent *sending, response *kmsg.ProduceResponse, err error) {
	p := sent.p
	if s.owned[p.key] != p || p.flying != sent.b {
		return // of a former ownership, or given up meanwhile
	}
	p.asked = false
	var offset int64
	if err == nil {
		offset, err = answerOf(sent, response)
	}
	switch {
	case err == nil && offset >= 0:
		s.acknowledge(p, offset)
	case err == nil, errors.Is(err, kerr.DuplicateSequenceNumber), errors.Is(err, kerr.OutOfOrderSequenceNumber), errors.Is(err, kerr.UnknownProducerID),
		errors.Is(err, kerr.InvalidProducerEpoch), errors.Is(err, kerr.InvalidProducerIDMapping):
		// The broker knows the batch, or does not know us any more: what the topic
		// holds is found by reading it, with a new producer id.
		s.log.Warn("relay looks at a partition anew", "topic", p.topic, "partition", p.number, "err", err)
		s.settle(p, time.Time{})
	case isRefusal(err):
		s.refuse(p, err)
	default:
		s.tryAgain(p, err)
	}
}

// answerOf finds the broker's answer to a batch.
func answerOf(sent *sending, response *kmsg.ProduceResponse) (offset int64, err error) {
	for i := range response.Topics {
		t := &response.Topics[i]
		if t.Topic != sent.topic && t.TopicID != sent.id {
			continue
		}
		for j := range t.Partitions {
			if part := &t.Partitions[j]; part.Partition == sent.number {
				err := kerr.ErrorForCode(part.ErrorCode)
				if err != nil && part.ErrorMessage != nil {
					err = fmt.Errorf("%w: %s", err, *part.ErrorMessage)
				}
				return part.BaseOffset, err
			}
		}
	}
	return 0, errors.New("the leader's answer does not name the partition")
}

// isRefusal tells whether an error speaks of the records of a batch, and not of
// the partition or the broker.
func isRefusal(err error) bool {
	for _, of := range []error{kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord, kerr.InvalidTimestamp, kerr.PolicyViolation} {
		if errors.Is(err, of) {
			return true
		}
	}
	return false
}

// acknowledge takes in that the topic holds the batch from an offset on. Records
// between the known end and there were written by somebody else, and are compared
// before anything more is sent.
func (s *session) acknowledge(p *partition, offset int64) {
	b := p.flying
	n := b.Len()
	for i, at := range b.last {
		if at.seq > p.slots[i].acked.seq {
			p.slots[i].acked = at
		}
	}
	if p.probe >= 0 {
		s.goOn(p, &p.slots[p.probe])
		p.probe, p.limit = -1, maxRecords
		s.reset(p)
	} else if p.limit < maxRecords && time.Since(p.cramped) > crampedFor {
		p.limit = min(maxRecords, 2*p.limit)
	}
	p.producer.Sequence = int32((int64(p.producer.Sequence) + int64(n)) & 0x7fffffff)
	p.dirty, p.trouble, p.eventSize = true, "", b.Size()/n
	s.metrics.published.Add(float64(n))
	s.metrics.batch.Observe(float64(n))
	s.metrics.delay.Observe(max(0, time.Since(b.oldest.Std()).Seconds()))
	b.links.Span(s.cfg.Tracer, "send "+p.topic, trace.SpanKindProducer, b.began, nil, kafka.SpanAttributes(p.topic, p.number, n)...)
	p.flying = nil
	s.recycle(b)
	if offset > p.end {
		s.reset(p)
		s.compareTo(p, offset, offset+int64(n))
		return
	}
	p.end = max(p.end, offset+int64(n))
}

// crampedFor is how long a partition's batches stay small after one was refused.
const crampedFor = 30 * time.Second

// refuse takes in that the broker does not want the records of a batch. Nothing of
// the partition was sent behind them. A batch of several is halved; one record
// stops its slot.
func (s *session) refuse(p *partition, err error) {
	b := p.flying
	p.flying, p.trouble = nil, ""
	s.metrics.failed.WithLabelValues(p.topic).Inc()
	if b.Len() > 1 {
		p.limit, p.cramped = max(1, b.Len()/2), time.Now()
		s.recycle(b)
		s.reset(p)
		return
	}
	for i, at := range b.last {
		if at.seq == 0 {
			continue
		}
		if s.faults.passRefused {
			p.slots[i].acked = at
			break
		}
		s.stopSlot(p, &p.slots[i], &stop{kind: refused, seq: at.seq, event: at.id, offset: -1,
			reason: fmt.Sprintf("the broker refuses event %s at %s: %v", at.id, event.Position{Category: p.name, Slot: p.slots[i].number, Seq: at.seq}, err)})
	}
	if p.probe >= 0 {
		p.probe, p.limit = -1, maxRecords
	}
	s.recycle(b)
	s.reset(p)
}

// tryAgain keeps a batch to be sent once more as it is.
func (s *session) tryAgain(p *partition, err error) {
	s.noteTrouble(p, fmt.Errorf("sending to the leader: %w", err))
	p.retryAt = time.Now().Add(retryPause)
	s.leaders.unknown(p)
	s.log.Debug("relay sends a batch again", "topic", p.topic, "partition", p.number, "err", err)
}
