package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// leaders knows which broker leads which partition.
type leaders struct {
	by      map[topicPartition]int32
	busy    map[int32]bool // a request is under way
	asking  bool
	askAt   time.Time
	missing map[string]time.Time // topics that the brokers do not know, since when
}

type topicPartition struct {
	topic  string
	number int
}

func newLeaders() leaders {
	return leaders{by: make(map[topicPartition]int32), busy: make(map[int32]bool), missing: make(map[string]time.Time)}
}

func (l *leaders) of(p *partition) (leader int32, ok bool) {
	leader, ok = l.by[topicPartition{p.topic, p.number}]
	return leader, ok
}

// unknown has the leader of a partition looked up before it is used again.
func (l *leaders) unknown(p *partition) { delete(l.by, topicPartition{p.topic, p.number}) }

// forget has the leaders looked up of all that a broker led.
func (l *leaders) forget(leader int32) {
	for at, of := range l.by {
		if of == leader {
			delete(l.by, at)
		}
	}
}

const (
	lookUpPause = 100 * time.Millisecond
	// missingLimit is how long a topic may be unknown to the brokers before it
	// counts as gone: one that was just made takes a moment to be known to all.
	missingLimit = 5 * time.Second
)

// lookUpLeaders asks for the leaders that are not known, of partitions that have
// something to send or will have.
func (s *session) lookUpLeaders(now time.Time) {
	if s.leaders.asking || now.Before(s.leaders.askAt) {
		return
	}
	topics := make(map[string]bool)
	for _, p := range s.owned {
		if _, ok := s.leaders.of(p); !ok && p.phase == flowing {
			topics[p.topic] = true
		}
	}
	if len(topics) == 0 {
		return
	}
	s.leaders.asking = true
	s.background.Go(func() {
		ctx, cancel := context.WithTimeoutCause(s.brokers, inspectLimit, errors.New("the brokers did not answer"))
		defer cancel()
		request := kmsg.NewPtrMetadataRequest()
		for name := range topics {
			topic := kmsg.NewMetadataRequestTopic()
			topic.Topic = &name
			request.Topics = append(request.Topics, topic)
		}
		response, err := request.RequestWith(ctx, s.client)
		s.post(func() {
			s.leaders.asking, s.leaders.askAt = false, time.Now().Add(lookUpPause)
			if err == nil {
				s.learnLeaders(response)
			} else {
				s.troubleWithoutLeader(fmt.Errorf("looking up leaders: %w", err))
			}
		})
	})
}

func (s *session) learnLeaders(response *kmsg.MetadataResponse) {
	for i := range response.Topics {
		topic := &response.Topics[i]
		if topic.Topic == nil {
			continue
		}
		name := *topic.Topic
		if err := kerr.ErrorForCode(topic.ErrorCode); err != nil {
			if s.leaders.missing[name].IsZero() {
				s.leaders.missing[name] = time.Now()
			}
			s.topicTrouble(name, err)
			continue
		}
		delete(s.leaders.missing, name)
		for j := range topic.Partitions {
			if part := &topic.Partitions[j]; part.Leader >= 0 && part.ErrorCode == 0 {
				s.leaders.by[topicPartition{name, int(part.Partition)}] = part.Leader
			}
		}
		for _, p := range s.owned {
			if p.topic != name || p.phase != flowing {
				continue
			}
			if topic.TopicID != p.topicID {
				s.settle(p, time.Time{}) // made anew
			} else if _, ok := s.leaders.of(p); !ok {
				s.noteTrouble(p, kerr.LeaderNotAvailable)
			} else if p.flying == nil { // there was only no leader
				p.trouble, p.retryAt = "", time.Time{}
			}
		}
	}
}

// topicTrouble notes why a topic has no leaders, and has it looked at anew when
// that lasts.
func (s *session) topicTrouble(topic string, err error) {
	lasts := time.Since(s.leaders.missing[topic]) > missingLimit
	for _, p := range s.owned {
		if p.topic != topic || p.phase != flowing {
			continue
		}
		s.noteTrouble(p, err)
		if lasts {
			s.settle(p, time.Time{})
		}
	}
	if lasts {
		delete(s.leaders.missing, topic)
	}
}

// troubleWithoutLeader notes what keeps partitions from being sent to.
func (s *session) troubleWithoutLeader(err error) {
	for _, p := range s.owned {
		if _, ok := s.leaders.of(p); !ok && p.phase == flowing {
			s.noteTrouble(p, err)
		}
	}
}

func (s *session) noteTrouble(p *partition, err error) {
	if p.trouble == "" {
		p.troubled = time.Now()
	}
	p.trouble = err.Error()
	if p.retryAt.Before(time.Now()) {
		p.retryAt = time.Now().Add(lookUpPause)
	}
}
