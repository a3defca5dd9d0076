package devstack

import (
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// BrokerConfig says which in-process broker to start.
type BrokerConfig struct {
	// Dir keeps topics, groups and data over a restart; empty keeps them in memory.
	Dir string
	// Port is where it listens; 0 takes a free one.
	Port int
}

// Broker is kfake, a Kafka broker in this process. It proves nothing about
// replication or failover.
type Broker struct{ cluster *kfake.Cluster }

// StartBroker starts a broker.
func StartBroker(cfg BrokerConfig) (*Broker, error) {
	options := []kfake.Opt{kfake.NumBrokers(1), kfake.ClusterID("refold-dev"), kfake.SleepOutOfOrder(),
		kfake.GroupMinSessionTimeout(time.Second),
		kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"})}
	if cfg.Port != 0 {
		options = append(options, kfake.Ports(cfg.Port))
	}
	if cfg.Dir != "" {
		options = append(options, kfake.DataDir(cfg.Dir))
	}
	cluster, err := kfake.NewCluster(options...)
	if err != nil {
		return nil, fmt.Errorf("starting the in-process broker: %w", err)
	}
	return &Broker{cluster}, nil
}

// Addrs returns where it listens.
func (b *Broker) Addrs() []string { return b.cluster.ListenAddrs() }

// Cluster returns kfake itself, whose requests tests make fail.
func (b *Broker) Cluster() *kfake.Cluster { return b.cluster }

// Close stops the broker, after which its data is on disk.
func (b *Broker) Close() { b.cluster.Close() }
