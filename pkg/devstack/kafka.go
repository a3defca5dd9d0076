package devstack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// kafkaVersion is that of the brokers that suites run against.
const kafkaVersion = "4.3.1"

// clusterID is any 16 bytes in base64.
const clusterID = "cmVmb2xkLXRlc3RzLWlkMQ"

// KafkaConfig says which brokers to start.
type KafkaConfig struct {
	// Nodes are combined brokers and controllers; 0 is one.
	Nodes int
	// Settings are those of server.properties, of every node, and come before our own.
	Settings map[string]string
	// Through, if set, gets the number of a node, from 0, and its address, and
	// returns the address that clients are told, usually that of a proxy in front.
	// The nodes themselves speak to each other directly.
	Through func(node int, addr string) string
	// Listeners are further ones of the first node, for clients that reach it by
	// another name or speak another protocol. What a protocol needs (keys, users)
	// stands in Settings, as listener.name.<name>....
	Listeners []Listener
}

// Listener is one more way to a broker.
type Listener struct {
	Name       string // such as PODS
	Port       int    // of the loopback interface
	Advertised string // host:port that clients are told
	Protocol   string // PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL
}

// Kafka is a real cluster of our own in KRaft mode. Its methods are not safe for
// concurrent use.
type Kafka struct {
	cfg    KafkaConfig
	folder *folder
	jars   string
	nodes  []*node
}

// node is one combined broker and controller.
type node struct {
	id                          int // from 1
	client, between, controller int // ports
	advertised                  string
	process                     *process
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
	k := &Kafka{cfg: cfg, jars: jars}
	if err := k.begin(ctx); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

func (k *Kafka) begin(ctx context.Context) (err error) {
	if k.folder, err = newFolder("refold-kafka-"); err != nil {
		return err
	}
	for id := range max(1, k.cfg.Nodes) {
		if err := k.plan(id + 1); err != nil {
			return err
		}
	}
	if err := k.format(ctx); err != nil {
		return err
	}
	for _, n := range k.nodes {
		if err := k.launch(n); err != nil {
			return err
		}
	}
	return k.awaitMembers(ctx, k.nodes...)
}

// plan chooses the ports of a node.
func (k *Kafka) plan(id int) (err error) {
	n := &node{id: id}
	for _, port := range []*int{&n.client, &n.between, &n.controller} {
		if *port, err = freePort(); err != nil {
			return err
		}
	}
	n.advertised = fmt.Sprintf("127.0.0.1:%d", n.client)
	if k.cfg.Through != nil {
		n.advertised = k.cfg.Through(id-1, n.advertised)
	}
	k.nodes = append(k.nodes, n)
	return nil
}

// format writes the configuration of the nodes and formats their storage.
func (k *Kafka) format(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range k.nodes {
		if err := os.WriteFile(k.config(n), []byte(k.properties(n)), 0o644); err != nil {
			return fmt.Errorf("writing the configuration of node %d: %w", n.id, err)
		}
		group.Go(func() error {
			out, err := k.java(ctx, "kafka.tools.StorageTool", "format", "-t", clusterID, "-c", k.config(n)).CombinedOutput()
			if err != nil {
				return fmt.Errorf("formatting the storage of node %d: %w\n%s", n.id, err, out)
			}
			return nil
		})
	}
	return group.Wait()
}

func (k *Kafka) config(n *node) string {
	return filepath.Join(k.folder.path, fmt.Sprintf("node%d.properties", n.id))
}

func (k *Kafka) properties(n *node) string {
	var voters []string
	for _, other := range k.nodes {
		voters = append(voters, fmt.Sprintf("%d@127.0.0.1:%d", other.id, other.controller))
	}
	replicas, inSync := strconv.Itoa(min(3, len(k.nodes))), strconv.Itoa(min(2, len(k.nodes)))
	settings := map[string]string{
		"process.roles":                  "broker,controller",
		"node.id":                        strconv.Itoa(n.id),
		"controller.quorum.voters":       strings.Join(voters, ","),
		"listeners":                      fmt.Sprintf("CLIENTS://127.0.0.1:%d,BROKERS://127.0.0.1:%d,CONTROLLER://127.0.0.1:%d", n.client, n.between, n.controller),
		"advertised.listeners":           fmt.Sprintf("CLIENTS://%s,BROKERS://127.0.0.1:%d", n.advertised, n.between),
		"listener.security.protocol.map": "CLIENTS:PLAINTEXT,BROKERS:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"inter.broker.listener.name":     "BROKERS",
		"controller.listener.names":      "CONTROLLER",
		"log.dirs":                       filepath.Join(k.folder.path, fmt.Sprintf("data%d", n.id)),
		"auto.create.topics.enable":      "false",

		"default.replication.factor":                       replicas,
		"min.insync.replicas":                              inSync,
		"offsets.topic.replication.factor":                 replicas,
		"offsets.topic.num.partitions":                     "4",
		"transaction.state.log.replication.factor":         replicas,
		"transaction.state.log.min.isr":                    inSync,
		"transaction.state.log.num.partitions":             "4",
		"share.coordinator.state.topic.replication.factor": replicas,
		"share.coordinator.state.topic.min.isr":            inSync,
		"share.coordinator.state.topic.num.partitions":     "1",

		"group.initial.rebalance.delay.ms":      "0",
		"group.min.session.timeout.ms":          "1000",
		"group.consumer.min.session.timeout.ms": "1000",
		"broker.session.timeout.ms":             "6000",
		"log.retention.check.interval.ms":       "5000",
		"log.cleaner.dedupe.buffer.size":        "16777216", // of the heap
	}
	if n.id == 1 {
		for _, l := range k.cfg.Listeners {
			settings["listeners"] += fmt.Sprintf(",%s://127.0.0.1:%d", l.Name, l.Port)
			settings["advertised.listeners"] += fmt.Sprintf(",%s://%s", l.Name, l.Advertised)
			settings["listener.security.protocol.map"] += fmt.Sprintf(",%s:%s", l.Name, l.Protocol)
		}
	}
	maps.Copy(settings, k.cfg.Settings)
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s=%s\n", name, settings[name])
	}
	return b.String()
}

// Tool runs one of Kafka's own command-line tools, by the name of its class, and
// returns what it prints.
func (k *Kafka) Tool(ctx context.Context, class string, args ...string) (string, error) {
	out, err := k.java(ctx, class, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("running %s: %w: %s", class, err, out)
	}
	return string(out), nil
}

// java returns a command that runs a class of Kafka.
func (k *Kafka) java(ctx context.Context, class string, args ...string) *exec.Cmd {
	options := []string{"-Xms128m", "-Xmx360m", "-XX:+UseSerialGC", "-Xshare:auto", "-Djava.awt.headless=true", "-Dlog4j2.level=WARN",
		"-cp", filepath.Join(k.jars, "*"), class}
	cmd := exec.CommandContext(ctx, "java", append(options, args...)...)
	cmd.Dir = k.folder.path
	return cmd
}

func (k *Kafka) launch(n *node) (err error) {
	// The process outlives every context of a caller; Stop, Kill and Close end it.
	cmd := k.java(context.Background(), "kafka.Kafka", k.config(n))
	log := filepath.Join(k.folder.path, fmt.Sprintf("node%d.log", n.id))
	if n.process, err = startProcess(cmd, log, syscall.SIGKILL, k.folder); err != nil {
		return fmt.Errorf("starting node %d: %w", n.id, err)
	}
	return nil
}

// awaitMembers waits until the nodes are unfenced brokers of the cluster.
func (k *Kafka) awaitMembers(ctx context.Context, nodes ...*node) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, errors.New("the brokers did not come up within three minutes"))
	defer cancel()
	for {
		missing, err := k.missing(ctx, nodes)
		if err == nil && len(missing) == 0 {
			return nil
		}
		if gone := ended(nodes); gone != nil {
			return fmt.Errorf("node %d ended while it was starting:\n%s", gone.id, gone.process.output())
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return errors.Join(fmt.Errorf("%w: nodes %v are missing\n%s", context.Cause(ctx), missing, nodes[0].process.output()), err)
		}
	}
}

// missing returns which of the nodes are no members. It asks with a client of its
// own each time, because a client that has met a half-formed cluster keeps what it
// heard.
func (k *Kafka) missing(ctx context.Context, nodes []*node) (ids []int, err error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Brokers()...), kgo.RetryTimeout(time.Second))
	if err != nil {
		return nil, fmt.Errorf("making a client for the brokers: %w", err)
	}
	defer client.Close()
	metadata, err := kadm.NewClient(client).BrokerMetadata(ctx)
	if err == nil && metadata.Controller < 0 {
		err = errors.New("the cluster has no controller")
	}
	for _, n := range nodes {
		if !slices.Contains(metadata.Brokers.NodeIDs(), int32(n.id)) {
			ids = append(ids, n.id)
		}
	}
	return ids, err
}

// ended returns a node that does not run, nil when all do.
func ended(nodes []*node) *node {
	i := slices.IndexFunc(nodes, func(n *node) bool { return !n.process.running() })
	if i < 0 {
		return nil
	}
	return nodes[i]
}

// Brokers returns the addresses of all nodes, as clients use them.
func (k *Kafka) Brokers() []string {
	var addrs []string
	for _, n := range k.nodes {
		addrs = append(addrs, n.advertised)
	}
	return addrs
}

// Pid returns the process id of a node, counted from 0; 0 while it is stopped.
func (k *Kafka) Pid(i int) int {
	if p := k.nodes[i].process; p.running() {
		return p.cmd.Process.Pid
	}
	return 0
}

// Stop ends a node, counted from 0, gracefully. A node without the others to hand
// over to may take until its own time-outs.
func (k *Kafka) Stop(i int) error { return k.nodes[i].process.end(syscall.SIGTERM, time.Minute) }

// Kill ends a node, counted from 0, as kill -9 does.
func (k *Kafka) Kill(i int) error { return k.nodes[i].process.end(syscall.SIGKILL, 10*time.Second) }

// Launch starts a node again without waiting, for when its peers must come up
// too; Await waits.
func (k *Kafka) Launch(i int) error { return k.launch(k.nodes[i]) }

// Await waits until all nodes that were started are members.
func (k *Kafka) Await(ctx context.Context) error {
	running := slices.DeleteFunc(slices.Clone(k.nodes), func(n *node) bool { return !n.process.running() })
	if len(running) == 0 {
		return errors.New("awaiting the brokers: none runs")
	}
	return k.awaitMembers(ctx, running...)
}

// Start starts a node again and waits until it is a member.
func (k *Kafka) Start(i int) error {
	if err := k.launch(k.nodes[i]); err != nil {
		return err
	}
	return k.awaitMembers(context.Background(), k.nodes[i])
}

// Close kills all nodes and removes their data.
func (k *Kafka) Close() error {
	var errs []error
	for _, n := range k.nodes {
		errs = append(errs, n.process.end(syscall.SIGKILL, 10*time.Second))
	}
	return errors.Join(append(errs, k.folder.remove())...)
}
