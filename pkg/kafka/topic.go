package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// TopicName returns the topic of a category, such as "refold.user".
func TopicName(prefix, category string) string { return prefix + "." + strings.ToLower(category) }

// MaxMessageBytes is the topic's limit for a batch, Kafka's default. A record of
// the largest size that an append takes fits it.
const MaxMessageBytes = 1_048_588

// settings are what a topic must have so that a rebuild from offset zero finds
// every event: nothing is deleted, compacted or re-stamped.
var settings = map[string]string{
	"cleanup.policy":         "delete",
	"retention.ms":           "-1",
	"retention.bytes":        "-1",
	"message.timestamp.type": "CreateTime",
	"max.message.bytes":      fmt.Sprint(MaxMessageBytes),
}

// Topic is what a topic is and how it differs from what it should be.
type Topic struct {
	ID         [16]byte
	Partitions int
	// Warnings say which settings differ; they break rebuilds from offset zero.
	Warnings []string
}

// EnsureTopic makes a topic if it is missing, and checks it. A topic with
// another number of partitions is an error: its events would be in the wrong
// places.
func EnsureTopic(ctx context.Context, admin *kadm.Client, name string, partitions int) (Topic, error) {
	configs := make(map[string]*string)
	for key, value := range settings {
		configs[key] = kadm.StringPtr(value)
	}
	created, err := admin.CreateTopic(ctx, int32(partitions), -1, configs, name)
	if err == nil {
		err = created.Err
	}
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return Topic{}, fmt.Errorf("creating the topic %s: %w", name, err)
	}
	topic := Topic{ID: created.ID, Partitions: partitions}
	if err != nil { // it was there; one that was just made may not be known to every broker yet
		if topic, err = ReadTopic(ctx, admin, name); err != nil {
			return topic, err
		}
	}
	if topic.Partitions != partitions {
		return topic, fmt.Errorf("the topic %s has %d partitions, the category has %d: events would be in the wrong places", name, topic.Partitions, partitions)
	}
	topic.Warnings, err = checkSettings(ctx, admin, name)
	return topic, err
}

// ErrNoTopic is wrapped when a topic does not exist.
var ErrNoTopic = errors.New("no such topic")

// ReadTopic returns the id and the partitions of a topic.
func ReadTopic(ctx context.Context, admin *kadm.Client, name string) (Topic, error) {
	topics, err := admin.ListTopics(ctx, name)
	if err != nil {
		return Topic{}, fmt.Errorf("looking up the topic %s: %w", name, err)
	}
	detail, ok := topics[name]
	if !ok || errors.Is(detail.Err, kerr.UnknownTopicOrPartition) {
		return Topic{}, fmt.Errorf("%w: %s", ErrNoTopic, name)
	}
	if detail.Err != nil {
		return Topic{}, fmt.Errorf("looking up the topic %s: %w", name, detail.Err)
	}
	return Topic{ID: detail.ID, Partitions: len(detail.Partitions)}, nil
}

func checkSettings(ctx context.Context, admin *kadm.Client, name string) (warnings []string, err error) {
	described, err := admin.DescribeTopicConfigs(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("reading the settings of the topic %s: %w", name, err)
	}
	for _, resource := range described {
		for _, c := range resource.Configs {
			if want, ours := settings[c.Key]; ours && c.Value != nil && *c.Value != want {
				warnings = append(warnings, fmt.Sprintf("%s is %s, should be %s", c.Key, *c.Value, want))
			}
		}
	}
	return warnings, nil
}
