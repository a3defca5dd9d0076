// Command lag prints how many records a consumer group lacks, as KEDA's Kafka
// scaler counts them: ends of the partitions less the offsets of the group.
//
//	KAFKA_BOOTSTRAP_SERVERS=... lag GROUP
package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: lag GROUP")
		os.Exit(2)
	}
	total, err := lag(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "lag:", err)
		os.Exit(1)
	}
	fmt.Println(total)
}

func lag(group string) (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(os.Getenv("KAFKA_BOOTSTRAP_SERVERS"), ",")...))
	if err != nil {
		return 0, fmt.Errorf("making a client for the brokers: %w", err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	offsets, err := admin.FetchOffsets(ctx, group)
	if err != nil {
		return 0, fmt.Errorf("reading the offsets of %s: %w", group, err)
	}
	var topics []string
	for topic := range offsets {
		topics = append(topics, topic)
	}
	if len(topics) == 0 {
		return 0, fmt.Errorf("the group %s has no offsets", group)
	}
	ends, err := admin.ListEndOffsets(ctx, topics...)
	if err != nil {
		return 0, fmt.Errorf("reading the ends of %v: %w", topics, err)
	}
	var total int64
	ends.Each(func(end kadm.ListedOffset) {
		if at, ok := offsets.Lookup(end.Topic, end.Partition); ok {
			total += end.Offset - at.At
		} else {
			total += end.Offset
		}
	})
	return total, nil
}
