package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// benchRelay measures the relay draining a backlog to real Kafka beside a bare
// loop that selects the same rows and produces them, and how long a commit
// takes to Kafka at 5,000 events a second.
func benchRelay(ctx context.Context, b *bench) error {
	p, err := b.platform(ctx, "bench_relay", "writer-without-relay")
	if err != nil {
		return err
	}
	defer p.close()
	n := b.events(1_000_000)
	if _, err := importEvents(ctx, p.writerURL, "relay", n, 10); err != nil {
		return err
	}
	p.end("writer-without-relay")

	bare, bareCPU, err := b.bareRelay(ctx, p.url, n)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := p.start(ctx, "relay"); err != nil {
		return err
	}
	if err := b.awaitRecords(ctx, p.prefix+".user", int64(n)); err != nil {
		return err
	}
	took := time.Since(start)
	u, err := p.usage("relay")
	if err != nil {
		return err
	}
	b.report.line(fmt.Sprintf("draining %d events, start of the process included", n), fmt.Sprintf("%s, %.1f us CPU each, %s", thousands(rate(n, took)), float64(u.cpu.Microseconds())/float64(n), u),
		">= 400k/s, <= 3 us CPU", fmt.Sprintf("bare SELECT-to-produce loop: %s, %.1f us CPU each", thousands(rate(n, bare)), float64(bareCPU.Microseconds())/float64(n)), bare.Seconds()/took.Seconds())
	return b.commitToKafka(ctx)
}

// bareRelay copies the event table to a topic with nothing in between.
func (b *bench) bareRelay(ctx context.Context, url string, n int) (took, used time.Duration, err error) {
	client, err := b.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.MaxBufferedRecords(200_000), kgo.ProducerLinger(5*time.Millisecond))
	if err != nil {
		return 0, 0, err
	}
	defer client.Close()
	topic := fmt.Sprintf("bare-%d", time.Now().UnixNano())
	if _, err := kadm.NewClient(client).CreateTopic(ctx, 8, 1, nil, topic); err != nil {
		return 0, 0, err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close(ctx)
	before, start := cpu(), time.Now()
	rows, err := conn.Query(ctx, `select slot, seq, stream, value from refold.event order by category, slot, seq`)
	if err != nil {
		return 0, 0, err
	}
	var failure error
	var all sync.WaitGroup
	for rows.Next() {
		var slot int16
		var seq int64
		var stream, value []byte
		if err := rows.Scan(&slot, &seq, &stream, &value); err != nil {
			return 0, 0, err
		}
		all.Add(1)
		client.Produce(ctx, &kgo.Record{Topic: topic, Partition: int32(slot % 8), Key: stream, Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				failure = err
			}
			all.Done()
		})
	}
	all.Wait()
	if err := rows.Err(); err != nil {
		return 0, 0, err
	}
	return time.Since(start), cpu() - before, failure
}

func (b *bench) awaitRecords(ctx context.Context, topic string, n int64) error {
	client, err := b.client()
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	return await(ctx, 5*time.Minute, "waiting for the topic "+topic, func() bool {
		ends, err := admin.ListEndOffsets(ctx, topic)
		if err != nil {
			return false
		}
		var sum int64
		ends.Each(func(o kadm.ListedOffset) { sum += max(o.Offset, 0) })
		return sum >= n
	})
}

// commitToKafka appends at a steady rate over HTTP and measures from the
// database's time of the append, which is taken inside the transaction, to the
// arrival of the record at a consumer of this process.
func (b *bench) commitToKafka(ctx context.Context) error {
	p, err := b.platform(ctx, "bench_commit", "writer")
	if err != nil {
		return err
	}
	defer p.close()
	consumer, err := b.client(kgo.ConsumeTopics(p.prefix+".user"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(time.Second))
	if err != nil {
		return err
	}
	defer consumer.Close()
	const perSecond, seconds = 5000, 8
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	sent := make(chan error, 1)
	go func() {
		sent <- steady(ctx, p.writerURL, perSecond, seconds*time.Second, func(string, string, time.Time) error { return nil })
	}()
	var all latencies
	for len(all) < perSecond*seconds*9/10 && ctx.Err() == nil {
		consumer.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			now := time.Now()
			for _, h := range r.Headers {
				if h.Key == "ce_recorded" {
					if at, err := time.Parse(time.RFC3339, string(h.Value)); err == nil {
						all = append(all, now.Sub(at))
					}
				}
			}
		})
	}
	if err := <-sent; err != nil {
		return err
	}
	all = all[len(all)/8:] // the first second warms up
	b.report.line("append (locks taken) to record consumed, 5k events/s over HTTP", all.String(), "commit to Kafka: p50 <= 3 ms, p99 <= 10 ms", "Debezium tuned, elsewhere: 10 / 20 ms", 0)
	return nil
}

// steady appends single events at a rate from 32 connections and tells of each
// the stream, the token and when its answer had come.
func steady(ctx context.Context, url string, perSecond int, during time.Duration, done func(stream, token string, at time.Time) error) error {
	const connections = 32
	start := time.Now()
	total := int(float64(perSecond) * during.Seconds())
	var all errgroup.Group
	for w := range connections {
		all.Go(func() error {
			c, err := dial(url)
			if err != nil {
				return err
			}
			defer c.Close()
			for i := w; i < total && ctx.Err() == nil; i += connections {
				time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(perSecond))))
				stream := fmt.Sprintf("st%d-%d", start.UnixNano(), i)
				token, err := c.append(stream)
				if err == nil {
					err = done(stream, token, time.Now())
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	return all.Wait()
}
