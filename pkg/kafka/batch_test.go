package kafka_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/kafka"
)

var ctx = context.Background()

// whole is an event with everything that an event can have.
func whole() event.Event {
	return event.Event{
		ID: event.ID{1, 2, 3, 15: 16}, PrevID: event.ID{9, 8, 7, 15: 6}, Category: "User", Stream: "user-42",
		Version: 3, Slot: event.SlotOf("user-42", 64), Seq: 905, Type: "UserEmailChanged", Value: []byte("\x00\x00\x00\x00\x07body"),
		Time: event.TimeOf(time.Date(2023, 11, 8, 9, 5, 7, 120_000_000, time.UTC)), Recorded: event.TimeOf(time.Date(2026, 1, 2, 3, 4, 5, 6_000, time.UTC)),
		Metadata: event.Metadata{Actor: "ann", CorrelationID: "corr", CausationID: "cause", Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
	}
}

// The record is a contract with every consumer, so it is written out here.
func TestRecordOfAnEvent(t *testing.T) {
	t.Parallel()
	e := whole()
	r := kafka.ToRecord(&e, "refold.user", 5)
	require.Equal(t, "user-42", string(r.Key))
	require.Equal(t, "\x00\x00\x00\x00\x07body", string(r.Value), "magic 0 and the schema id in four bytes come from the log unchanged")
	require.Equal(t, e.Recorded.Std(), r.Timestamp)
	var headers [][2]string
	for _, h := range r.Headers {
		headers = append(headers, [2]string{h.Key, string(h.Value)})
	}
	require.Equal(t, [][2]string{
		{"ce_specversion", "1.0"},
		{"ce_id", "01020300-0000-0000-0000-000000000010"},
		{"ce_source", "refold/User"},
		{"ce_type", "UserEmailChanged"},
		{"ce_subject", "user-42"},
		{"ce_time", "2023-11-08T09:05:07.12Z"},
		{"content-type", "application/avro"},
		{"ce_recorded", "2026-01-02T03:04:05.000006Z"},
		{"ce_streamversion", "3"},
		{"ce_slot", "44"},
		{"ce_seq", "905"},
		{"ce_previd", "09080700-0000-0000-0000-000000000006"},
		{"ce_actor", "ann"},
		{"ce_correlationid", "corr"},
		{"ce_causationid", "cause"},
		{"traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
	}, headers)
}

func events() *rapid.Generator[event.Event] {
	text := rapid.StringMatching(`[ -~äß€]{0,40}`)
	return rapid.Custom(func(t *rapid.T) event.Event {
		stream := rapid.StringMatching(`[A-Za-z0-9_:~-]{1,80}`).Draw(t, "stream")
		e := event.Event{
			Category: "User", Stream: stream, Slot: event.SlotOf(stream, 64),
			Version: rapid.Int64Range(1, 1<<40).Draw(t, "version"), Seq: rapid.Int64Range(1, 1<<50).Draw(t, "seq"),
			Type: rapid.StringMatching(`[A-Z][A-Za-z]{0,20}`).Draw(t, "type"), Value: rapid.SliceOfN(rapid.Byte(), 5, 3000).Draw(t, "value"),
			Time:     event.Time(rapid.Int64Range(int64(event.MinTime), int64(event.MaxTime)).Draw(t, "time")),
			Recorded: event.Time(rapid.Int64Range(1_700_000_000_000_000, 1_800_000_000_000_000).Draw(t, "recorded")),
			Metadata: event.Metadata{Actor: text.Draw(t, "actor"), CorrelationID: text.Draw(t, "correlation"), CausationID: text.Draw(t, "causation"), Traceparent: text.Draw(t, "parent")},
		}
		copy(e.ID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		e.ID[0] |= 1
		if e.Seq > 1 {
			e.PrevID = event.ID{15: rapid.ByteRange(1, 255).Draw(t, "prev")}
		}
		return e
	})
}

func TestRecordsKeepEverythingOfTheirEvents(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		e := events().Draw(t, "event")
		r := kafka.ToRecord(&e, "refold.user", int32(e.Slot%8))
		var back event.Event
		require.NoError(t, kafka.Parse(r, "User", 64, 8, &back))
		require.Equal(t, e, back)
	})
}

// A broker and a client that share no code with the encoder read its batches.
func TestBatchesAreReadByOthers(t *testing.T) {
	t.Parallel()
	for name, brokers := range map[string]func(testing.TB) []string{"kfake": devstack.FakeKafka, "real": devstack.RealKafka} {
		for _, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				sendAndRead(t, brokers(t), codec)
			})
		}
	}
}

func sendAndRead(t *testing.T, brokers []string, codec kgo.CompressionCodec) {
	compressor, err := kgo.DefaultCompressor(codec)
	require.NoError(t, err)
	client, admin := connect(t, brokers)
	name := "t" + event.NewID().String()
	topic, err := kafka.EnsureTopic(ctx, admin, name, 1)
	require.NoError(t, err)
	var batch kafka.Batch
	var sent []event.Event
	for round := range 3 {
		batch.Reset()
		for i := range 50 {
			e := whole()
			e.Seq, e.Recorded = int64(len(sent)+1), e.Recorded+event.Time(1_000_000*(i%7)-3_000_000*round)
			e.Value = append(e.Value, strings.Repeat("x", i*i)...)
			if i%2 == 0 {
				e.Metadata = event.Metadata{}
			}
			batch.Add(&e)
			sent = append(sent, e)
		}
		produce(t, client, name, topic, batch.Encode(nil, kafka.Producer{ID: -1, Epoch: -1, Sequence: -1}, compressor))
	}
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{name: {0: kgo.NewOffset().AtStart()}})
	for at := 0; at < len(sent); {
		fetches := client.PollFetches(ctx)
		require.NoError(t, fetches.Err())
		for _, got := range fetches.Records() {
			want := kafka.ToRecord(&sent[at], name, 0)
			require.Equal(t, int64(at), got.Offset)
			require.Equal(t, want.Key, got.Key)
			require.Equal(t, want.Value, got.Value)
			require.Equal(t, want.Headers, got.Headers)
			require.Equal(t, want.Timestamp.UnixMilli(), got.Timestamp.UnixMilli())
			at++
		}
	}
}

// produce sends one encoded batch as it is.
func produce(t *testing.T, client *kgo.Client, name string, topic kafka.Topic, records []byte) {
	t.Helper()
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 10_000
	part := kmsg.NewProduceRequestTopicPartition()
	part.Records = records
	of := kmsg.NewProduceRequestTopic()
	of.Topic, of.TopicID, of.Partitions = name, topic.ID, append(of.Partitions, part)
	req.Topics = append(req.Topics, of)
	require.Eventually(t, func() bool { // a topic that was just made has no leader yet
		metadata, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, client)
		require.NoError(t, err)
		for _, m := range metadata.Topics {
			if *m.Topic != name || len(m.Partitions) == 0 || m.Partitions[0].Leader < 0 {
				continue
			}
			resp, err := client.Broker(int(m.Partitions[0].Leader)).Request(ctx, req)
			require.NoError(t, err)
			return resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode == 0
		}
		return false
	}, 30*time.Second, 20*time.Millisecond)
}

func TestEncodingAllocatesNothingPerEvent(t *testing.T) {
	var batch kafka.Batch
	e := whole()
	batch.Add(&e)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		batch.Reset()
		for range 100 {
			batch.Add(&e)
		}
	}))
}

func BenchmarkBatch(b *testing.B) {
	for name, codec := range map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()} {
		b.Run(name, func(b *testing.B) {
			compressor, err := kgo.DefaultCompressor(codec)
			require.NoError(b, err)
			var batch kafka.Batch
			e := whole()
			var out []byte
			for b.Loop() {
				batch.Reset()
				for i := range 1000 {
					e.Seq++
					e.ID, e.PrevID, e.Recorded = event.NewID(), e.ID, e.Recorded+event.Time(i)
					batch.Add(&e)
				}
				out = batch.Encode(out[:0], kafka.Producer{}, compressor)
			}
			b.ReportMetric(float64(len(out))/1000, "B/event")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/event")
		})
	}
}

func FuzzParse(f *testing.F) {
	e := whole()
	for _, h := range kafka.ToRecord(&e, "t", 1).Headers {
		f.Add("user-42", []byte("value"), h.Key, h.Value, int32(1))
	}
	f.Add("", []byte{}, "ce_seq", []byte("-1"), int32(-1))
	f.Fuzz(func(t *testing.T, key string, value []byte, name string, header []byte, partition int32) {
		e := whole()
		r := kafka.ToRecord(&e, "t", partition)
		r.Key, r.Value = []byte(key), value
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: name, Value: header})
		var got event.Event
		if kafka.Parse(r, "User", 64, 8, &got) != nil {
			return
		}
		if got.Slot != event.SlotOf(key, 64) || got.Slot%8 != int(partition) || got.Seq < 1 || got.Version < 1 || len(got.Value) == 0 || got.ID.IsZero() || got.PrevID.IsZero() != (got.Seq == 1) {
			t.Fatalf("accepted %+v in partition %d", got, partition)
		}
	})
}
