package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/refoldhq/refold/pkg/kafka"
)

// inspection is what the brokers say of a topic.
type inspection struct {
	topic        kafka.Topic
	starts, ends kadm.ListedOffsets
	producerID   int64
	epoch        int16
	err          error
}

// inspectLimit bounds the time that brokers have to answer.
const inspectLimit = 10 * time.Second

// inspectTopics asks for the topics of partitions that wait to be settled.
func (s *session) inspectTopics(now time.Time) {
	known := make(map[string]bool)
	wanted := make(map[string]*partition)
	for _, p := range s.owned {
		known[p.topic] = known[p.topic] || p.knownTopic
		if p.phase == settling && !now.Before(p.retryAt) && !p.leaving && !s.inspecting[p.topic] {
			wanted[p.topic] = p
		}
	}
	for topic, p := range wanted {
		s.inspecting[topic] = true
		create, partitions := !known[topic], p.partitions
		s.background.Go(func() {
			ctx, cancel := context.WithTimeoutCause(s.brokers, inspectLimit, errors.New("the brokers did not answer"))
			defer cancel()
			found := s.inspect(ctx, topic, partitions, create)
			s.post(func() {
				s.inspecting[topic] = false
				s.settleTopic(topic, &found)
			})
		})
	}
}

func (s *session) inspect(ctx context.Context, topic string, partitions int, create bool) (found inspection) {
	if !create {
		if _, found.err = kafka.ReadTopic(ctx, s.admin, topic); found.err != nil {
			return found // a topic that we have filled is never made anew in silence
		}
	}
	if found.topic, found.err = kafka.EnsureTopic(ctx, s.admin, topic, partitions); found.err != nil {
		return found
	}
	if !found.topic.Created { // one that was just made is empty, and some brokers do not know it yet
		if found.starts, found.err = s.admin.ListStartOffsets(ctx, topic); found.err != nil {
			return found
		}
		if found.ends, found.err = s.admin.ListEndOffsets(ctx, topic); found.err != nil {
			return found
		}
	}
	request := kmsg.NewPtrInitProducerIDRequest()
	response, err := request.RequestWith(ctx, s.client)
	if err == nil {
		err = kerr.ErrorForCode(response.ErrorCode)
	}
	if err != nil {
		found.err = fmt.Errorf("asking for a producer id: %w", err)
		return found
	}
	found.producerID, found.epoch = response.ProducerID, response.ProducerEpoch
	return found
}

// settleTopic judges what the brokers say for all partitions that wait for it.
func (s *session) settleTopic(topic string, found *inspection) {
	if len(found.topic.Warnings) > 0 && !s.warned[topic] {
		s.warned[topic] = true
		s.log.Error("the topic's settings lose events, or may: rebuilds from its beginning need them all", "topic", topic, "err", found.topic.Warnings)
	}
	for _, p := range s.owned {
		if p.topic != topic || p.phase != settling {
			continue
		}
		if found.err != nil && !s.permanent(p, found.err) {
			p.retryAt = time.Now().Add(500 * time.Millisecond)
			if p.trouble == "" {
				p.troubled = time.Now()
			}
			p.trouble = found.err.Error()
			continue
		}
		s.settlePartition(p, found)
	}
}

// permanent tells whether an operator has to do something about an error.
func (s *session) permanent(p *partition, err error) bool {
	return errors.Is(err, kafka.ErrPartitions) || errors.Is(err, kafka.ErrRights) || errors.Is(err, kafka.ErrNoTopic) && p.knownTopic
}

// settlePartition checks that the topic is the one that the cursor speaks of and
// holds what was compared, and has the rest compared.
func (s *session) settlePartition(p *partition, found *inspection) {
	start, end := int64(0), int64(0)
	if o, ok := found.starts.Lookup(p.topic, int32(p.number)); ok {
		start = o.Offset
	}
	if o, ok := found.ends.Lookup(p.topic, int32(p.number)); ok {
		end = o.Offset
	}
	sendAgain := fmt.Sprintf("`writer repair %s --republish` sends again from the event table what the topic lacks", p.name)
	switch {
	case errors.Is(found.err, kafka.ErrNoTopic):
		s.raise(p, "the topic is gone; its events are in the event table. Restore it, or make it anew: "+sendAgain)
	case found.err != nil:
		s.raise(p, found.err.Error())
	case p.knownTopic && found.topic.ID != p.topicID:
		s.raise(p, fmt.Sprintf("the topic was made anew: its id is %x, the cursor speaks of %x. %s", found.topic.ID, p.topicID, sendAgain))
	case end < p.end:
		s.raise(p, fmt.Sprintf("the partition ends at offset %d and held records up to %d: the brokers have lost some. %s", end, p.end, sendAgain))
	case start > p.end:
		s.raise(p, fmt.Sprintf("the partition begins at offset %d and was compared up to %d: records were deleted before they were compared. "+
			"Delete the topic, then %s", start, p.end, sendAgain))
	default:
		if start > 0 && !s.warned[p.String()] {
			s.warned[p.String()] = true
			s.log.Error("the beginning of a partition was deleted: events flow on, but a rebuild needs --source=eventstore",
				"topic", p.topic, "partition", p.number, "offset", start)
		}
		p.topicID = found.topic.ID
		p.producer = kafka.Producer{ID: found.producerID, Epoch: found.epoch}
		p.trouble, p.retryAt, p.alarm = "", time.Time{}, ""
		p.dirty = p.dirty || !p.knownTopic
		if s.faults.noCompare {
			p.end = end
		}
		s.compareTo(p, end, end)
	}
}

// lookAgain has the topics of stopped partitions looked at again: the cause may be
// gone.
func (s *session) lookAgain() {
	for _, p := range s.owned {
		if p.phase == alarmed {
			p.phase, p.retryAt = settling, time.Time{}
		}
	}
}

// lookAtEnds asks where the partitions end, to find what others have written
// while nothing of ours is under way.
func (s *session) lookAtEnds() {
	asked := make(map[*partition]int64)
	topics := make(map[string]bool)
	for _, p := range s.owned {
		if p.phase == flowing && p.flying == nil {
			asked[p] = p.end
			topics[p.topic] = true
		}
	}
	if len(asked) == 0 {
		return
	}
	var names []string
	for name := range topics {
		names = append(names, name)
	}
	s.background.Go(func() {
		ctx, cancel := context.WithTimeoutCause(s.brokers, inspectLimit, errors.New("the brokers did not answer"))
		defer cancel()
		ends, err := s.admin.ListEndOffsets(ctx, names...)
		s.post(func() {
			for p, end := range asked {
				o, ok := ends.Lookup(p.topic, int32(p.number))
				if err != nil && !ok || !ok || o.Err != nil || s.owned[p.key] != p || p.phase != flowing || p.flying != nil || p.end != end {
					continue
				}
				if o.Offset < p.end {
					s.settle(p, time.Time{})
				} else if o.Offset > p.end {
					s.reset(p)
					s.compareTo(p, o.Offset, o.Offset)
				}
			}
		})
	})
}
