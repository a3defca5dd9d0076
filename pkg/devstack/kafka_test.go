package devstack_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/devstack"
)

func itoa(n uint16) string { return strconv.Itoa(int(n)) }

func client(t *testing.T, brokers []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(append(opts, kgo.SeedBrokers(brokers...))...)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func produce(t *testing.T, c *kgo.Client, topic, value string) {
	t.Helper()
	require.NoError(t, c.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte(value)}).FirstErr())
}

func values(t *testing.T, brokers []string, topic string, n int) (values []string) {
	t.Helper()
	c := client(t, brokers, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for len(values) < n {
		fetches := c.PollFetches(ctx)
		require.NoError(t, ctx.Err())
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	return values
}

func TestInProcessBrokerKeepsTopicsOverARestartAndACrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	broker, err := devstack.StartBroker(devstack.BrokerConfig{Dir: dir})
	require.NoError(t, err)
	first := client(t, broker.Addrs())
	created, err := kadm.NewClient(first).CreateTopic(t.Context(), 1, 1, map[string]*string{"retention.ms": kadm.StringPtr("-1")}, "kept")
	require.NoError(t, err)
	produce(t, first, "kept", "a")
	crashed := filepath.Join(t.TempDir(), "crashed")
	require.NoError(t, os.CopyFS(crashed, os.DirFS(dir)), "what a kill would leave")
	produce(t, first, "kept", "b")
	first.Close()
	broker.Close()

	for folder, want := range map[string][]string{dir: {"a", "b"}, crashed: {"a"}} {
		broker, err := devstack.StartBroker(devstack.BrokerConfig{Dir: folder})
		require.NoError(t, err)
		second := client(t, broker.Addrs())
		topics, err := kadm.NewClient(second).ListTopics(t.Context(), "kept")
		require.NoError(t, err)
		require.Equal(t, created.ID, topics["kept"].ID, "the topic is the same one")
		require.Equal(t, want, values(t, broker.Addrs(), "kept", len(want)))
		configs, err := kadm.NewClient(second).DescribeTopicConfigs(t.Context(), "kept")
		require.NoError(t, err)
		retention := ""
		for _, c := range configs[0].Configs {
			if c.Key == "retention.ms" {
				retention = c.MaybeValue()
			}
		}
		require.Equal(t, "-1", retention)
		second.Close()
		broker.Close()
	}
}

func TestFakeKafkaListensOnTheLoopbackInterface(t *testing.T) {
	t.Parallel()
	for _, addr := range devstack.FakeKafka(t) {
		require.Regexp(t, `^127\.0\.0\.1:\d+$`, addr)
	}
}

func TestRealKafkaTakesRecordsAndCommits(t *testing.T) {
	t.Parallel()
	brokers := devstack.RealKafka(t)
	c := client(t, brokers)
	topic := "devstack-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	_, err := kadm.NewClient(c).CreateTopic(t.Context(), 1, -1, nil, topic)
	require.NoError(t, err)
	produce(t, c, topic, "v")
	require.Equal(t, []string{"v"}, values(t, brokers, topic, 1))
	group := make(kadm.Offsets)
	group.AddOffset(topic, 0, 1, -1)
	require.NoError(t, kadm.NewClient(c).CommitAllOffsets(t.Context(), topic, group), "groups have their internal topic")
}

// TestKafkaClusterSurvivesItsNodesInTurn stops, kills and restarts nodes of three,
// with clients behind proxies.
func TestKafkaClusterSurvivesItsNodesInTurn(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("three brokers take a while")
	}
	var proxies []*devstack.Proxy
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	kafka, err := devstack.StartKafka(ctx, devstack.KafkaConfig{Nodes: 3, Through: func(_ int, addr string) string {
		proxies = append(proxies, devstack.StartProxy(t, addr))
		return proxies[len(proxies)-1].Addr()
	}})
	require.NoError(t, err)
	defer func() { require.NoError(t, kafka.Close()) }()
	c := client(t, kafka.Brokers(), kgo.RequiredAcks(kgo.AllISRAcks()))
	_, err = kadm.NewClient(c).CreateTopic(ctx, 1, 3, nil, "t")
	require.NoError(t, err)
	produce(t, c, "t", "before")

	require.NoError(t, kafka.Stop(0))
	produce(t, c, "t", "without the first")
	require.NoError(t, kafka.Start(0))
	require.NoError(t, kafka.Kill(1))
	require.Zero(t, kafka.Pid(1))
	produce(t, c, "t", "without the second")
	require.NoError(t, kafka.Start(1))

	for i := range 3 {
		require.NoError(t, kafka.Kill(i))
	}
	for i := range 3 {
		require.NoError(t, kafka.Launch(i))
	}
	require.NoError(t, kafka.Await(ctx))
	for _, p := range proxies {
		p.Cut()
	}
	produce(t, c, "t", "after")
	require.Equal(t, []string{"before", "without the first", "without the second", "after"}, values(t, kafka.Brokers(), "t", 4))
}
