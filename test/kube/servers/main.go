// Command servers starts a Postgres and a Kafka broker on this machine for pods,
// to whom it is machine.lab, and stops them at SIGTERM. What the pods' side needs
// lies in the folder that it is given, once the file "ready" is there:
//
//	ports            shell assignments: where the servers listen on the loopback interface
//	ca.crt           the certificate by which the servers are trusted, and api.crt
//	api.crt, .key    a certificate for the Services of the release "secure"
//	kafka.password   that of the user refold
//	query.token      a bearer token that may only query
//	probe.token      one that may append, too
//
// Pods reach Postgres at machine.lab:5432, the broker at machine.lab:9092 in plain
// text and at machine.lab:9093 by SASL_SSL, and the issuer of the tokens at
// http://machine.lab:8090.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/devstack"
)

// kafkaPassword guards a broker that lives for one run on the loopback interface.
const kafkaPassword = "refold-on-the-lab" //nolint:gosec // see above

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: servers FOLDER")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "servers:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string) (err error) {
	authority, err := newAuthority()
	if err != nil {
		return err
	}
	servers, err := authority.issue("machine.lab")
	if err != nil {
		return err
	}
	apis, err := authority.issue("secure-refold-writer.secure.svc", "secure-refold-queries.secure.svc", "secure-refold-writer.secure.svc.cluster.local")
	if err != nil {
		return err
	}
	tokens, issuerPort, err := serveIssuer("http://machine.lab:8090")
	if err != nil {
		return err
	}
	bundle := filepath.Join(dir, "kafka.pem")
	if err := write(dir, map[string][]byte{"ca.crt": authority.certificate, "api.crt": apis.certificate, "api.key": apis.key, "kafka.password": []byte(kafkaPassword),
		"kafka.pem": append(servers.key[:len(servers.key):len(servers.key)], servers.certificate...), "query.token": tokens.query, "probe.token": tokens.probe}); err != nil {
		return err
	}
	postgres, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, postgres.Close()) }()
	if err := encrypt(ctx, postgres, servers); err != nil {
		return err
	}
	plain, secure, err := twoPorts()
	if err != nil {
		return err
	}
	kafka, err := devstack.StartKafka(ctx, devstack.KafkaConfig{Settings: secureListener(bundle), Listeners: []devstack.Listener{
		{Name: "PODS", Port: plain, Advertised: "machine.lab:9092", Protocol: "PLAINTEXT"},
		{Name: "SECURE", Port: secure, Advertised: "machine.lab:9093", Protocol: "SASL_SSL"},
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kafka.Close()) }()

	ports := fmt.Sprintf("POSTGRES_PORT=%d\nKAFKA_PORT=%d\nKAFKA_TLS_PORT=%d\nISSUER_PORT=%d\nKAFKA_BOOTSTRAP_SERVERS=%s\n",
		postgres.Port(), plain, secure, issuerPort, kafka.Brokers()[0])
	if err := write(dir, map[string][]byte{"ports": []byte(ports)}); err != nil {
		return err
	}
	if err := write(dir, map[string][]byte{"ready": nil}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func write(dir string, files map[string][]byte) error {
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return fmt.Errorf("writing what the pods' side needs: %w", err)
		}
	}
	return nil
}

// encrypt gives a running server its certificate. It goes on taking connections
// in plain text: the clients say what they want.
func encrypt(ctx context.Context, server *devstack.Postgres, c pair) error {
	owner, err := os.Stat(server.Dir())
	if err != nil {
		return fmt.Errorf("looking at the data folder: %w", err)
	}
	for name, text := range map[string][]byte{"server.crt": c.certificate, "server.key": c.key} {
		path := filepath.Join(server.Dir(), name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return fmt.Errorf("writing Postgres's certificate: %w", err)
		}
		stat := owner.Sys().(*syscall.Stat_t)
		if err := os.Chown(path, int(stat.Uid), int(stat.Gid)); err != nil {
			return fmt.Errorf("handing the certificate to Postgres: %w", err)
		}
	}
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer conn.Close(ctx)
	for _, sql := range []string{"alter system set ssl = on", "select pg_reload_conf()", "create database refold", "create database secure"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// secureListener are the settings of the listener that asks for a password.
func secureListener(bundle string) map[string]string {
	const listener = "listener.name.secure."
	return map[string]string{
		listener + "ssl.keystore.type":       "PEM",
		listener + "ssl.keystore.location":   bundle,
		listener + "sasl.enabled.mechanisms": "PLAIN",
		listener + "plain.sasl.jaas.config":  fmt.Sprintf(`org.apache.kafka.common.security.plain.PlainLoginModule required user_refold="%s";`, kafkaPassword),
	}
}

// twoPorts returns ports that nobody listens on.
func twoPorts() (a, b int, err error) {
	for _, port := range []*int{&a, &b} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, 0, fmt.Errorf("looking for a free port: %w", err)
		}
		defer l.Close()
		*port = l.Addr().(*net.TCPAddr).Port
	}
	return a, b, nil
}
