package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
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
	// Created tells that this call made it; it is empty, and some brokers may not
	// know it yet.
	Created bool
	// Warnings say which settings differ; they break rebuilds from offset zero.
	Warnings []string
}

// ErrPartitions is wrapped when a topic has another number of partitions than
// its category: its events would be in the wrong places.
var ErrPartitions = errors.New("the topic and the category differ in partitions")

// ErrRights is wrapped when the brokers refuse us for lack of rights. The message
// names the right and how to grant it.
var ErrRights = errors.New("the Kafka user lacks a right")

// EnsureTopic makes a topic if it is missing, and checks it. Errors wrap
// [ErrPartitions] or [ErrRights] where these are the cause. A user who may not
// read settings still gets the topic, and a warning.
func EnsureTopic(ctx context.Context, admin *kadm.Client, name string, partitions int) (Topic, error) {
	configs := make(map[string]*string)
	for key, value := range settings {
		configs[key] = kadm.StringPtr(value)
	}
	created, err := admin.CreateTopic(ctx, int32(partitions), -1, configs, name)
	if err == nil {
		err = created.Err
	}
	topic := Topic{ID: created.ID, Partitions: partitions, Created: err == nil}
	switch {
	case err == nil:
	case errors.Is(err, kerr.TopicAlreadyExists): // one that was just made may not be known to every broker yet
		if topic, err = ReadTopic(ctx, admin, name); err != nil {
			return topic, err
		}
	case unauthorized(err):
		// Somebody else may make topics here, and has.
		if found, readErr := ReadTopic(ctx, admin, name); readErr == nil {
			topic = found
			break
		}
		return Topic{}, fmt.Errorf("creating the topic %s: %w: grant it CREATE on the topic, or make the topic with %d partitions and %s: %w",
			name, ErrRights, partitions, settingsText(), err)
	default:
		return Topic{}, fmt.Errorf("creating the topic %s: %w", name, err)
	}
	if topic.Partitions != partitions {
		return topic, fmt.Errorf("%w: the topic %s has %d, its category has %d; make the topic anew, or set the category's partitions before its first event",
			ErrPartitions, name, topic.Partitions, partitions)
	}
	topic.Warnings, err = checkSettings(ctx, admin, name)
	return topic, err
}

// ErrNoTopic is wrapped when a topic does not exist.
var ErrNoTopic = errors.New("no such topic")

// ReadTopic returns the id and the partitions of a topic.
func ReadTopic(ctx context.Context, admin *kadm.Client, name string) (Topic, error) {
	topics, err := admin.ListTopics(ctx, name)
	detail, ok := topics[name]
	switch err = errors.Join(err, detail.Err); {
	case unauthorized(err):
		return Topic{}, fmt.Errorf("looking up the topic %s: %w: grant it DESCRIBE, READ and WRITE on the topic: %w", name, ErrRights, err)
	case errors.Is(err, kerr.UnknownTopicOrPartition) || err == nil && !ok:
		return Topic{}, fmt.Errorf("%w: %s", ErrNoTopic, name)
	case err != nil:
		return Topic{}, fmt.Errorf("looking up the topic %s: %w", name, err)
	}
	return Topic{ID: detail.ID, Partitions: len(detail.Partitions)}, nil
}

func checkSettings(ctx context.Context, admin *kadm.Client, name string) (warnings []string, err error) {
	const noRight = "its settings could not be read: grant the Kafka user DESCRIBE_CONFIGS on the topic"
	described, err := admin.DescribeTopicConfigs(ctx, name)
	if unauthorized(err) {
		return []string{noRight}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the settings of the topic %s: %w", name, err)
	}
	for _, resource := range described {
		if unauthorized(resource.Err) {
			warnings = append(warnings, noRight)
		}
		for _, c := range resource.Configs {
			if want, ours := settings[c.Key]; ours && c.Value != nil && *c.Value != want {
				warnings = append(warnings, fmt.Sprintf("%s is %s, should be %s", c.Key, *c.Value, want))
			}
		}
	}
	return warnings, nil
}

func unauthorized(err error) bool {
	return errors.Is(err, kerr.TopicAuthorizationFailed) || errors.Is(err, kerr.ClusterAuthorizationFailed)
}

// settingsText returns the settings as an operator would write them.
func settingsText() string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		all = append(all, key+"="+settings[key])
	}
	return strings.Join(all, " ")
}
