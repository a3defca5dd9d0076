package rebuilder

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/refoldhq/refold/pkg/devstack"
)

// rawBatches produces records with a codec and returns the batches as a broker
// sends them.
func rawBatches(t testing.TB, brokers []string, topic string, codec kgo.CompressionCodec, records ...*kgo.Record) []byte {
	t.Helper()
	ctx := context.Background()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ProducerBatchCompression(codec), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	defer client.Close()
	_, err = kadm.NewClient(client).CreateTopic(ctx, 1, -1, nil, topic)
	require.NoError(t, err)
	for _, r := range records {
		r.Topic = topic
	}
	require.NoError(t, client.ProduceSync(ctx, records...).FirstErr())
	topics, err := kadm.NewClient(client).ListTopics(ctx, topic)
	require.NoError(t, err)
	req := kmsg.NewPtrFetchRequest()
	req.MinBytes, req.MaxBytes = 1, 1<<20
	one, p := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
	one.Topic, one.TopicID, p.PartitionMaxBytes = topic, topics[topic].ID, 1<<20
	one.Partitions = append(one.Partitions, p)
	req.Topics = append(req.Topics, one)
	answer, err := client.Broker(int(topics[topic].Partitions[0].Leader)).Request(ctx, req)
	require.NoError(t, err)
	return answer.(*kmsg.FetchResponse).Topics[0].Partitions[0].RecordBatches
}

func someRecords() []*kgo.Record {
	return []*kgo.Record{
		{Key: []byte("a"), Value: []byte(strings.Repeat("x", 5000)), Headers: []kgo.RecordHeader{{Key: "one", Value: []byte("1")}, {Key: "", Value: nil}}},
		{Key: nil, Value: nil},
		{Key: []byte{}, Value: []byte("y")},
	}
}

func TestBatchesOfEveryCodecAreRead(t *testing.T) {
	t.Parallel()
	brokers := devstack.FakeKafka(t)
	for name, codec := range map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()} {
		data := rawBatches(t, brokers, name, codec, someRecords()...)
		end, next, err := wholeBatches(append(data, data[:30]...)) // the last one is cut off
		require.NoError(t, err)
		require.Equal(t, len(data), end)
		require.EqualValues(t, 3, next)
		var got []kgo.Record
		b := newBatches(name, 0)
		require.NoError(t, b.walk(data[:end], func(r *kgo.Record) error {
			kept := *r
			kept.Headers = append([]kgo.RecordHeader(nil), r.Headers...)
			got = append(got, kept)
			return nil
		}))
		require.Len(t, got, 3, name)
		for i, want := range someRecords() {
			require.Equal(t, string(want.Key), string(got[i].Key))
			require.Equal(t, string(want.Value), string(got[i].Value))
			require.EqualValues(t, i, got[i].Offset)
			require.Len(t, got[i].Headers, len(want.Headers))
		}
		data[len(data)-1] ^= 1
		require.ErrorIs(t, b.walk(data, func(*kgo.Record) error { return nil }), errBatch, "its checksum")
		b.close()
	}
}

func FuzzBatchesNeverPanic(f *testing.F) {
	f.Add([]byte{}, false)
	f.Add(append(make([]byte, 8), 0, 0, 0, 60, 0, 0, 0, 0, 2), true)
	f.Fuzz(func(t *testing.T, data []byte, asRecords bool) {
		if asRecords { // behind the checksum
			c := walker{in: data}
			var r kgo.Record
			for range 100 {
				if c.record(&r); c.bad {
					return
				}
			}
			return
		}
		end, _, err := wholeBatches(data)
		if err != nil {
			return
		}
		b := newBatches("t", 0)
		defer b.close()
		_ = b.walk(data[:end], func(*kgo.Record) error { return nil })
	})
}
