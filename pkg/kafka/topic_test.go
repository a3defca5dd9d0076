package kafka_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/kafka"
)

func TestTopicsAreMadeForRebuildsFromTheirBeginning(t *testing.T) {
	t.Parallel()
	for name, brokers := range map[string]func(testing.TB) []string{"kfake": devstack.FakeKafka, "real": devstack.RealKafka} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, admin := connect(t, brokers(t))
			topic := "t" + event.NewID().String()
			made, err := kafka.EnsureTopic(ctx, admin, topic, 4)
			require.NoError(t, err)
			require.Empty(t, made.Warnings)
			require.NotZero(t, made.ID)
			require.Eventually(t, func() bool { // until every broker knows it
				_, err := kafka.ReadTopic(ctx, admin, topic)
				return err == nil
			}, 30*time.Second, 10*time.Millisecond)
			again, err := kafka.EnsureTopic(ctx, admin, topic, 4)
			require.NoError(t, err)
			require.True(t, made.Created)
			require.False(t, again.Created)
			require.Equal(t, made.ID, again.ID)
			found, err := kafka.ReadTopic(ctx, admin, topic)
			require.NoError(t, err)
			require.Equal(t, made.ID, found.ID)
			require.Equal(t, 4, found.Partitions)

			_, err = kafka.EnsureTopic(ctx, admin, topic, 8)
			require.ErrorIs(t, err, kafka.ErrPartitions)
			require.ErrorContains(t, err, "has 4, its category has 8")
		})
	}
}

func TestSettingsThatLoseEventsAreNamed(t *testing.T) {
	t.Parallel()
	_, admin := connect(t, devstack.FakeKafka(t))
	_, err := admin.CreateTopic(ctx, 2, 1, map[string]*string{"cleanup.policy": kadm.StringPtr("compact"), "retention.ms": kadm.StringPtr("60000")}, "t")
	require.NoError(t, err)
	topic, err := kafka.EnsureTopic(ctx, admin, "t", 2)
	require.NoError(t, err)
	require.Contains(t, topic.Warnings, "cleanup.policy is compact, should be delete")
	require.Contains(t, topic.Warnings, "retention.ms is 60000, should be -1")
}

func TestMissingTopicIsToldApart(t *testing.T) {
	t.Parallel()
	_, admin := connect(t, devstack.FakeKafka(t))
	_, err := kafka.ReadTopic(ctx, admin, "absent")
	require.ErrorIs(t, err, kafka.ErrNoTopic)
}

func TestMissingRightsSayWhatToGrant(t *testing.T) {
	t.Parallel()
	allow := func(topic string, op kmsg.ACLOperation) kfake.ACL {
		return kfake.ACL{Resource: kmsg.ACLResourceTypeTopic, Name: topic, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: op, Allow: true}
	}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "root", "root"), kfake.SeedTopics(2, "made", "hidden"),
		kfake.User("PLAIN", "ann", "secret", allow("made", kmsg.ACLOperationDescribe), allow("made", kmsg.ACLOperationWrite)))
	require.NoError(t, err)
	t.Cleanup(cluster.Close)
	_, admin := connectWith(t, kafka.Config{Brokers: cluster.ListenAddrs(), SecurityProtocol: "SASL_PLAINTEXT", SASLMechanism: "PLAIN", SASLUsername: "ann", SASLPassword: "secret"})

	_, err = kafka.EnsureTopic(ctx, admin, "absent", 2)
	require.ErrorIs(t, err, kafka.ErrRights)
	require.ErrorContains(t, err, "grant it CREATE on the topic, or make the topic with 2 partitions and cleanup.policy=delete")

	topic, err := kafka.EnsureTopic(ctx, admin, "made", 2)
	require.NoError(t, err, "a topic that somebody else has made will do")
	require.Contains(t, topic.Warnings, "its settings could not be read: grant the Kafka user DESCRIBE_CONFIGS on the topic")

	_, err = kafka.ReadTopic(ctx, admin, "hidden")
	require.ErrorIs(t, err, kafka.ErrRights)
}

func TestTopicNames(t *testing.T) {
	t.Parallel()
	require.Equal(t, "refold.useraccount", kafka.TopicName("refold", "UserAccount"))
}
