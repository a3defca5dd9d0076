package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/kafka"
)

type devCommand struct {
	database
	naming
	Addr      string `help:"Where the API is served." default:"127.0.0.1:8080" env:"REFOLD_ADDR"`
	AdminAddr string `help:"Where health, metrics and profiles are served." default:"127.0.0.1:9080" env:"REFOLD_ADMIN_ADDR"`
	DataDir   string `help:"Keeps log, topics and rows over a restart; empty keeps nothing." env:"REFOLD_DATA_DIR"`
}

// Run starts what no environment variable names and serves everything.
func (c *devCommand) Run(ctx context.Context, cli *cli) error {
	url, stop, err := c.postgres(ctx)
	if err != nil {
		return err
	}
	defer stop()
	brokers, stop, err := c.kafka()
	if err != nil {
		return err
	}
	defer stop()
	cfg := writerConfig{database: url, brokers: brokers, naming: c.naming, admin: admin{AdminAddr: c.AdminAddr}, addr: c.Addr, migrate: true, relay: true, reads: true}
	return serve(ctx, cli.logger(), cfg, func() { c.greet(url, brokers) })
}

// postgres returns the database that is configured, else one of our own.
func (c *devCommand) postgres(ctx context.Context) (url string, stop func(), err error) {
	if c.DatabaseURL != "" {
		return c.DatabaseURL, func() {}, nil
	}
	cfg := devstack.PostgresConfig{Fsync: c.DataDir != ""}
	if c.DataDir != "" {
		cfg.Dir = filepath.Join(c.DataDir, "postgres")
	}
	server, err := devstack.StartPostgres(ctx, cfg)
	if err != nil {
		return "", nil, err
	}
	return server.URL("postgres"), func() {
		if err := server.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "stopping postgres:", err)
		}
	}, nil
}

func (c *devCommand) kafka() (kafka.Config, func(), error) {
	cfg, err := kafka.ConfigFromEnv()
	if err != nil || len(cfg.Brokers) > 0 {
		return cfg, func() {}, err
	}
	dir := ""
	if c.DataDir != "" {
		dir = filepath.Join(c.DataDir, "kafka")
	}
	broker, err := devstack.StartBroker(devstack.BrokerConfig{Dir: dir})
	if err != nil {
		return cfg, nil, err
	}
	cfg.Brokers = broker.Addrs()
	return cfg, broker.Close, nil
}

// greet says where everything is and what to try.
func (c *devCommand) greet(url string, brokers kafka.Config) {
	api := "http://" + c.Addr
	fmt.Printf(`refold is ready.

  API       %s  (description: %s/openapi.json)
  reads     %s/v1/read-models
  schemas   %s/schema-registry
  admin     http://%s/readyz?verbose
  Postgres  %s
  Kafka     %s
`, api, api, api, api, c.AdminAddr, url, strings.Join(brokers.Brokers, ","))
	if c.Schemas == "" {
		fmt.Printf(`  topics    %s.user

Append an event, and read the row that it makes:

  TOKEN=$(curl -s %s/v1/streams/User/42/events -H 'Content-Type: application/json' \
    -d '{"events":[{"type":"UserCreated","data":{"id":"42","email":"ada@example.com","isActive":false,"name":"Ada"}}]}' \
    | sed 's/.*"token":"\([^"]*\)".*/\1/'); curl -s %s/v1/read-models/rm_users/42 -H "Refold-Token: $TOKEN"
`, c.Prefix, api, api)
	}
}
