package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/service"
)

// The default ports, which the tags below repeat.
const apiPort, adminPort = 8080, 9080

type devCommand struct {
	service.Admin `embed:"" set:"admin_port=9080" set:"drain_delay=0s"`
	service.API   `embed:"" set:"api_port=8080"`

	service.RebuildFlags `embed:""`

	PostgresPort int `help:"Where the embedded Postgres listens; 0 takes a free port." default:"15432"`
	KafkaPort    int `help:"Where the embedded broker listens; 0 takes a free port." default:"19092"`

	DataDir string `help:"Keeps log, topics and rows over a restart; empty keeps nothing." placeholder:"DIR"`
	Seed    string `help:"Makes traffic to look at: demo creates accounts and uses them." enum:",demo" default:"" placeholder:"demo"`
}

// Run starts what no environment variable names and serves everything.
func (c *devCommand) Run(ctx context.Context, s *service.Settings) error {
	if c.Seed != "" {
		if _, err := c.newSeeding(s); err != nil {
			return service.Usage(err)
		}
	}
	if err := c.ports(s); err != nil {
		return err
	}
	stop, err := c.postgres(ctx, s)
	if err != nil {
		return err
	}
	defer stop()
	stop, err = c.kafka(s)
	if err != nil {
		return err
	}
	defer stop()
	return c.serve(ctx, s)
}

// ports takes another port for each default one that somebody has taken, and says
// so: curl lines work as pasted wherever they can, and a second `writer dev` starts
// all the same. An address that was asked for is not replaced.
func (c *devCommand) ports(s *service.Settings) (err error) {
	move := func(what string, port int) int {
		if err != nil {
			return port
		}
		var free int
		if free, err = devstack.PortOr(port); port != 0 && free != port {
			fmt.Fprintf(os.Stderr, "port %d is taken: %s is at %d\n", port, what, free)
		}
		return free
	}
	address := func(what, addr string, port int) string {
		if addr != fmt.Sprintf("127.0.0.1:%d", port) {
			return addr
		}
		return fmt.Sprintf("127.0.0.1:%d", move(what, port))
	}
	c.Addr, c.AdminAddr = address("the API", c.Addr, apiPort), address("the admin server", c.AdminAddr, adminPort)
	if s.DatabaseURL == "" {
		c.PostgresPort = move("Postgres", c.PostgresPort)
	}
	if len(s.Kafka.BootstrapServers) == 0 {
		c.KafkaPort = move("Kafka", c.KafkaPort)
	}
	return err
}

// serve runs every component in this process.
func (c *devCommand) serve(ctx context.Context, s *service.Settings) error {
	h, err := service.NewHost(s, "dev", c.Admin)
	if err != nil {
		return err
	}
	w, err := service.NewWriter(h, true)
	if err != nil {
		return err
	}
	feeding, err := service.NewFeeding(h, nil)
	if err != nil {
		return err
	}
	queries, err := service.NewQueries(h)
	if err != nil {
		return err
	}
	rebuilds, err := service.NewRebuilds(h, c.RebuildFlags)
	if err != nil {
		return err
	}
	for _, component := range []service.Component{w, service.NewAggregates(w, aggregate.Config{}, demo(), nil), service.NewRelay(h, w), feeding, queries, rebuilds} {
		h.Add(component)
	}
	var traffic sync.WaitGroup
	defer traffic.Wait()
	h.Ready = func() {
		c.greet(s)
		if c.Seed != "" {
			if seeding, err := c.newSeeding(s); err == nil { // as it was checked before
				traffic.Go(func() { seeding.work(ctx) })
			}
		}
	}
	if err := h.Handle(c.API); err != nil {
		return err
	}
	return h.Run(ctx)
}

// postgres starts a database unless one is configured.
func (c *devCommand) postgres(ctx context.Context, s *service.Settings) (stop func(), err error) {
	if s.DatabaseURL != "" {
		return func() {}, nil
	}
	cfg := devstack.PostgresConfig{Port: c.PostgresPort, Fsync: c.DataDir != ""}
	if c.DataDir != "" {
		cfg.Dir = filepath.Join(c.DataDir, "postgres")
	}
	server, err := devstack.StartPostgres(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.DatabaseURL = server.URL("postgres")
	return func() {
		if err := server.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "stopping postgres:", err)
		}
	}, nil
}

// kafka starts a broker in this process unless some are configured.
func (c *devCommand) kafka(s *service.Settings) (stop func(), err error) {
	if len(s.Kafka.BootstrapServers) > 0 {
		return func() {}, nil
	}
	dir := ""
	if c.DataDir != "" {
		dir = filepath.Join(c.DataDir, "kafka")
	}
	broker, err := devstack.StartBroker(devstack.BrokerConfig{Dir: dir, Port: c.KafkaPort})
	if err != nil {
		return nil, err
	}
	s.Kafka.BootstrapServers = broker.Addrs()
	return broker.Close, nil
}

// greet says where everything is and what to try.
func (c *devCommand) greet(s *service.Settings) {
	api := "http://" + c.Addr
	if c.TLSCertFile != "" {
		api = "https://" + c.Addr
	}
	fmt.Printf(`refold is ready.

  API       %s  (description: %s/openapi.json)
  commands  %s/v1/commands
  reads     %s/v1/read-models
  schemas   %s/schema-registry
  admin     http://%s/readyz?verbose
  Postgres  %s
  Kafka     %s
`, api, api, api, api, api, c.AdminAddr, s.DatabaseURL, strings.Join(s.Kafka.BootstrapServers, ","))
	if s.Schemas == "" {
		fmt.Printf(`  topics    %s.user

Append an event, and read the row that it makes:

  TOKEN=$(curl -s %s/v1/streams/User/42/events -H 'Content-Type: application/json' \
    -d '{"events":[{"type":"UserCreated","data":{"id":"42","email":"ada@example.com","isActive":false,"name":"Ada"}}]}' \
    | sed 's/.*"token":"\([^"]*\)".*/\1/'); curl -s %s/v1/read-models/rm_users/42 -H "Refold-Token: $TOKEN"
`, s.Prefix, api, api)
	}
}
