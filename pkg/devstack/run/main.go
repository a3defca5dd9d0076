// Command run starts one Postgres and one real Kafka, runs a command with
// DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS pointing to them, stops them, and
// ends with the command's exit code:
//
//	go run ./pkg/devstack/run go test ./...
//
// What the environment names already is used and not started. Without Java or
// Maven the command runs without Kafka, with a warning; with CI=true that is an
// error.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/refoldhq/refold/pkg/devstack"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
	}
	os.Exit(code)
}

func run(args []string) (code int, err error) {
	if len(args) == 0 {
		return 2, errors.New("usage: run COMMAND [ARGUMENT...]")
	}
	// Ctrl-C reaches the command too; its end is ours.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)

	s := &servers{}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.start(context.Background()); err != nil {
		return 1, err
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), s.env...)
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(1, exit.ExitCode()), nil // the command has said why itself
	}
	if err != nil {
		return 1, err
	}
	return 0, nil
}

// servers are those that were started here.
type servers struct {
	env      []string
	postgres *devstack.Postgres
	kafka    *devstack.Kafka
}

func (s *servers) start(ctx context.Context) (err error) {
	if os.Getenv("DATABASE_URL") == "" {
		if s.postgres, err = devstack.StartPostgres(ctx, devstack.PostgresConfig{
			Settings: map[string]string{"max_connections": "400"}, // several packages at a time
		}); err != nil {
			return err
		}
		s.env = append(s.env, "DATABASE_URL="+s.postgres.URL("postgres"))
	}
	if os.Getenv("KAFKA_BOOTSTRAP_SERVERS") == "" {
		s.kafka, err = devstack.StartKafka(ctx, devstack.KafkaConfig{})
		if errors.Is(err, devstack.ErrNoKafka) && os.Getenv("CI") != "true" {
			fmt.Fprintf(os.Stderr, "\n*** THE TESTS THAT NEED A REAL KAFKA WILL NOT RUN: %v\n\n", err)
			return nil
		}
		if err != nil {
			return err
		}
		s.env = append(s.env, "KAFKA_BOOTSTRAP_SERVERS="+strings.Join(s.kafka.Brokers(), ","))
	}
	return nil
}

func (s *servers) close() (err error) {
	if s.postgres != nil {
		err = s.postgres.Close()
	}
	if s.kafka != nil {
		err = errors.Join(err, s.kafka.Close())
	}
	return err
}
