// Bench measures refold against the limits and peers of the same machine in the
// same run, and writes what it found as a Markdown report.
//
//	go run . [-only append,relay] [-out RESULTS.md] [-scale 1]
//
// Every figure stands beside a limit (the bare loop that does the least that
// any program must do) or a peer, because machines are noisy and a ratio within
// one run says more than a number. Postgres runs with fsync on, Kafka is the
// real one, and both share the machine with what is measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/devstack"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == bareCommand {
		fmt.Fprintln(os.Stderr, "bench:", serveBare(os.Args[2]))
		os.Exit(1)
	}
	only := flag.String("only", "", "sections to run, separated by commas; all when empty")
	out := flag.String("out", "", "file of the report; standard output when empty")
	scale := flag.Float64("scale", 1, "multiplies the number of events of each section")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *only, *out, *scale); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// section is one part of the report.
type section struct {
	name  string
	title string
	run   func(context.Context, *bench) error
}

var sections = []section{
	{"append", "Appending", benchAppend},
	{"http", "Appending over HTTP", benchHTTP},
	{"aggregate", "Aggregates", benchAggregate},
	{"relay", "Relay", benchRelay},
	{"apply", "Applying", benchApply},
	{"rebuild", "Rebuild", benchRebuild},
	{"beside", "Rebuild beside live traffic", benchBeside},
	{"memory", "Memory of rebuilds", benchMemory},
	{"visible", "From append to row", benchVisible},
	{"query", "Queries", benchQuery},
	{"growth", "Growth", benchGrowth},
	{"idle", "Idle", benchIdle},
}

// bench is what the sections share: servers, scale and the report.
type bench struct {
	postgres *devstack.Postgres
	kafka    *devstack.Kafka
	scale    float64
	report   *report
	log      *slog.Logger
}

// events scales a number of events.
func (b *bench) events(n int) int { return max(1000, int(float64(n)*b.scale)) }

// client returns a client of the broker that learns of new topics at once.
func (b *bench) client(options ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(b.kafka.Brokers()...), kgo.MetadataMinAge(20 * time.Millisecond)}, options...)...)
}

// warm has the broker compile what it runs, as one that has been up for a while
// has: for its first seconds it takes half of the machine for that.
func (b *bench) warm(ctx context.Context) error {
	const topic = "warm"
	c, err := b.client(kgo.ConsumeTopics(topic), kgo.DefaultProduceTopic(topic))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := kadm.NewClient(c).CreateTopic(ctx, 8, 1, nil, topic); err != nil {
		return err
	}
	value, consumed := make([]byte, 200), 0
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); {
		for range 64 {
			c.Produce(ctx, &kgo.Record{Value: value}, nil)
		}
		if err := c.Flush(ctx); err != nil {
			return err
		}
		consumed += c.PollFetches(ctx).NumRecords()
	}
	if consumed == 0 {
		return errors.New("nothing was consumed")
	}
	return nil
}

func run(ctx context.Context, only, out string, scale float64) error {
	postgres, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{Fsync: true, Settings: map[string]string{
		"shared_buffers": "1GB", "max_wal_size": "8GB", "max_connections": "300"}})
	if err != nil {
		return fmt.Errorf("starting Postgres: %w", err)
	}
	defer postgres.Close()
	kafka, err := devstack.StartKafka(ctx, devstack.KafkaConfig{Nodes: 1})
	if err != nil {
		return fmt.Errorf("starting Kafka: %w", err)
	}
	defer kafka.Close()

	b := &bench{postgres: postgres, kafka: kafka, scale: scale, report: newReport(), log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	b.report.machine(ctx, postgres)
	if err := b.warm(ctx); err != nil {
		return fmt.Errorf("warming the broker: %w", err)
	}
	for _, s := range sections {
		if only != "" && !strings.Contains(","+only+",", ","+s.name+",") {
			continue
		}
		fmt.Fprintln(os.Stderr, "==", s.title)
		b.report.section(s.title)
		if err := s.run(ctx, b); err != nil {
			return fmt.Errorf("measuring %s: %w", s.name, err)
		}
	}
	return b.report.write(out)
}
