package torture

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// produceJunk sends records that refold did not make: each must be counted as
// foreign and change nothing.
func produceJunk(w *world, ctx context.Context, rnd *rand.Rand) func() {
	w.history.fault("produce junk")
	client, err := kgo.NewClient(kgo.SeedBrokers(w.kafka.Brokers()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		w.history.fault("connecting to Kafka: %v", err)
		return func() {}
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for range 5 {
		record := junk(rnd)
		record.Topic, record.Partition = w.topic, int32(rnd.IntN(8))
		if err := client.ProduceSync(ctx, record).FirstErr(); err != nil {
			w.history.fault("producing junk: %v", err)
		}
	}
	return func() {}
}

func junk(rnd *rand.Rand) *kgo.Record {
	bytes := make([]byte, rnd.IntN(200))
	for i := range bytes {
		bytes[i] = byte(rnd.Uint32())
	}
	record := &kgo.Record{Key: []byte("s1"), Value: bytes}
	switch rnd.IntN(5) {
	case 0:
		record.Key = nil
	case 1:
		record.Value = nil
	case 2:
		record.Headers = []kgo.RecordHeader{{Key: "ce_id", Value: []byte("not-an-id")}, {Key: "ce_seq", Value: []byte("-5")}}
	case 3:
		record.Key = bytes
	}
	return record
}
