package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// kafkaVersion is that of the brokers that suites run against.
const kafkaVersion = "4.3.1"

// KafkaConfig says which brokers to start.
type KafkaConfig struct {
	// Nodes are combined brokers and controllers; 0 is one.
	Nodes int
	// Settings are added to every node's server.properties.
	Settings map[string]string
}

// Kafka is a real cluster of our own in KRaft mode. Its methods are not safe for
// concurrent use.
type Kafka struct {
	dir   string
	jars  string
	nodes []*node
}

type node struct {
	id               int
	port, controller int
	config           string
	process          *process
}

// ErrNoKafka is wrapped when real brokers cannot be had on this machine.
var ErrNoKafka = errors.New("no real Kafka: it needs Java 17 and Maven, or KAFKA_BOOTSTRAP_SERVERS")

// StartKafka starts a cluster and waits until all its brokers are members. The
// jars are fetched by Maven once for each user of the machine.
func StartKafka(ctx context.Context, cfg KafkaConfig) (*Kafka, error) {
	jars, err := kafkaJars()
	if err != nil {
		return nil, err
	}
	removeAbandoned("refold-kafka-")
	dir, err := os.MkdirTemp("", fmt.Sprintf("refold-kafka-%d-", os.Getpid()))
	if err != nil {
		return nil, err
	}
	k := &Kafka{dir: dir, jars: jars}
	if err := k.prepare(max(1, cfg.Nodes), cfg.Settings); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	for _, n := range k.nodes {
		if err := k.launch(n); err != nil {
			return nil, errors.Join(err, k.Close())
		}
	}
	if err := k.awaitMembers(ctx); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// prepare writes the configuration of the nodes and formats their storage.
func (k *Kafka) prepare(count int, settings map[string]string) error {
	for id := 1; id <= count; id++ {
		port, err := freePort()
		if err != nil {
			return err
		}
		controller, err := freePort()
		if err != nil {
			return err
		}
		k.nodes = append(k.nodes, &node{id: id, port: port, controller: controller, config: filepath.Join(k.dir, fmt.Sprintf("node%d.properties", id))})
	}
	var wg sync.WaitGroup
	failures := make([]error, count)
	for i, n := range k.nodes {
		if err := os.WriteFile(n.config, []byte(k.properties(n, settings)), 0o644); err != nil {
			return err
		}
		wg.Go(func() {
			out, err := k.java("kafka.tools.StorageTool", "format", "-t", "cmVmb2xkLXRlc3RzLWlk", "-c", n.config).CombinedOutput()
			if err != nil {
				failures[i] = fmt.Errorf("formatting the storage of node %d: %w\n%s", n.id, err, out)
			}
		})
	}
	wg.Wait()
	return errors.Join(failures...)
}

func (k *Kafka) properties(n *node, settings map[string]string) string {
	var voters []string
	for _, other := range k.nodes {
		voters = append(voters, fmt.Sprintf("%d@127.0.0.1:%d", other.id, other.controller))
	}
	replicas, inSync := min(3, len(k.nodes)), min(2, len(k.nodes))
	lines := []string{
		"process.roles=broker,controller",
		fmt.Sprintf("node.id=%d", n.id),
		"controller.quorum.voters=" + strings.Join(voters, ","),
		fmt.Sprintf("listeners=PLAINTEXT://127.0.0.1:%d,CONTROLLER://127.0.0.1:%d", n.port, n.controller),
		fmt.Sprintf("advertised.listeners=PLAINTEXT://127.0.0.1:%d", n.port),
		"controller.listener.names=CONTROLLER",
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"log.dirs=" + filepath.Join(k.dir, fmt.Sprintf("data%d", n.id)),
		"auto.create.topics.enable=false",
		"group.initial.rebalance.delay.ms=0",
		"offsets.topic.num.partitions=4",
		"transaction.state.log.num.partitions=4",
		"share.coordinator.state.topic.num.partitions=1",
		fmt.Sprintf("default.replication.factor=%d", replicas),
		fmt.Sprintf("min.insync.replicas=%d", inSync),
		"broker.session.timeout.ms=6000",
		"log.retention.check.interval.ms=5000",
		"group.consumer.min.session.timeout.ms=1000",
		"group.min.session.timeout.ms=1000",
	}
	for _, topic := range []string{"offsets.topic", "transaction.state.log", "share.coordinator.state.topic"} {
		lines = append(lines, fmt.Sprintf("%s.replication.factor=%d", topic, replicas))
		if topic != "offsets.topic" {
			lines = append(lines, fmt.Sprintf("%s.min.isr=%d", topic, inSync))
		}
	}
	for name, value := range settings {
		lines = append(lines, name+"="+value)
	}
	return strings.Join(lines, "\n") + "\n"
}

// java returns a command that runs a class of Kafka.
func (k *Kafka) java(class string, args ...string) *exec.Cmd {
	cmd := exec.Command("java", append([]string{"-Xmx360m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=4", "-cp", filepath.Join(k.jars, "*"), class}, args...)...)
	cmd.Dir = k.dir
	return cmd
}

// Admin runs one of Kafka's own admin tools, such as
// org.apache.kafka.tools.TopicCommand, against the cluster and returns what it
// prints.
func (k *Kafka) Admin(class string, args ...string) (string, error) {
	out, err := k.java(class, append([]string{"--bootstrap-server", strings.Join(k.Brokers(), ",")}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("running %s: %w\n%s", class, err, out)
	}
	return string(out), nil
}

func (k *Kafka) launch(n *node) (err error) {
	cmd := k.java("kafka.Kafka", n.config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if n.process, err = startProcess(cmd); err != nil {
		return fmt.Errorf("starting node %d: %w", n.id, err)
	}
	return nil
}

// awaitMembers waits until every node that runs is a broker of the cluster and
// topics can be made.
func (k *Kafka) awaitMembers(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("the brokers did not come up within a minute"))
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Brokers()...))
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	for {
		metadata, err := admin.BrokerMetadata(ctx)
		if err == nil && metadata.Controller >= 0 && k.allIn(metadata.Brokers.NodeIDs()) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %v\n%s", context.Cause(ctx), err, k.nodes[0].process.output())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (k *Kafka) allIn(ids []int32) bool {
	for _, n := range k.nodes {
		if n.running() && !slices.Contains(ids, int32(n.id)) {
			return false
		}
	}
	return true
}

func (n *node) running() bool {
	if n.process == nil {
		return false
	}
	select {
	case <-n.process.done:
		return false
	default:
		return true
	}
}

// Brokers returns the addresses of all nodes.
func (k *Kafka) Brokers() []string {
	var addrs []string
	for _, n := range k.nodes {
		addrs = append(addrs, fmt.Sprintf("127.0.0.1:%d", n.port))
	}
	return addrs
}

// Stop ends a node, counted from 0, gracefully.
func (k *Kafka) Stop(i int) error { return k.nodes[i].process.end(syscall.SIGTERM, time.Minute) }

// Kill ends a node, counted from 0, as kill -9 does.
func (k *Kafka) Kill(i int) error { return k.nodes[i].process.end(syscall.SIGKILL, 10*time.Second) }

// Start starts a node again and waits until it is a member.
func (k *Kafka) Start(i int) error {
	if err := k.launch(k.nodes[i]); err != nil {
		return err
	}
	return k.awaitMembers(context.Background())
}

// Close kills all nodes and removes their data.
func (k *Kafka) Close() error {
	for _, n := range k.nodes {
		if n.running() {
			n.process.end(syscall.SIGKILL, 10*time.Second) // the data goes with it
		}
	}
	return os.RemoveAll(k.dir)
}
