package devstack

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/postgres"
)

// sharedPostgres is the server of this test process: DATABASE_URL if set, else
// one of our own, which ends with the process.
var sharedPostgres = sync.OnceValues(func() (string, error) {
	if s := os.Getenv("DATABASE_URL"); s != "" {
		return s, nil
	}
	server, err := StartPostgres(context.Background(), PostgresConfig{})
	if err != nil {
		return "", err
	}
	return server.URL("postgres"), nil
})

// Database returns the URL of a fresh, empty database, dropped when the test ends.
func Database(t testing.TB) string {
	t.Helper()
	return createDatabase(t, "")
}

// template is a migrated database that others are copied from.
var template = sync.OnceValues(func() (name string, err error) {
	server, err := sharedPostgres()
	if err != nil {
		return "", err
	}
	name = fmt.Sprintf("refold_template_%d_%s", os.Getpid(), randomHex())
	ctx := context.Background()
	if err := execOn(ctx, server, "create database "+name); err != nil {
		return "", err
	}
	pool, err := postgres.Open(ctx, postgres.Config{URL: onDatabase(server, name)})
	if err != nil {
		return "", err
	}
	defer pool.Close()
	return name, postgres.Migrate(ctx, pool)
})

// MigratedDatabase returns a pool on a fresh database with refold's schema. Its
// URL is pool.Config().ConnString().
func MigratedDatabase(t testing.TB) *pgxpool.Pool {
	t.Helper()
	from, err := template()
	require.NoError(t, err)
	pool, err := postgres.Open(context.Background(), postgres.Config{URL: createDatabase(t, from), MaxConns: 16})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func createDatabase(t testing.TB, from string) string {
	t.Helper()
	server, err := sharedPostgres()
	require.NoError(t, err, "starting Postgres")
	name := "refold_test_" + randomHex()
	sql := "create database " + name
	if from != "" {
		sql += " template " + from
	}
	ctx := context.Background()
	require.NoError(t, execOn(ctx, server, sql))
	t.Cleanup(func() {
		if err := execOn(ctx, server, "drop database if exists "+name+" with (force)"); err != nil {
			t.Logf("dropping the database of the test: %v", err)
		}
	})
	return onDatabase(server, name)
}

func execOn(ctx context.Context, server, sql string) error {
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

// onDatabase returns the URL of another database of the same server.
func onDatabase(server, name string) string {
	u, err := url.Parse(server)
	if err != nil {
		return server // pgx will say what is wrong with it
	}
	u.Path = "/" + name
	return u.String()
}

func randomHex() string {
	var b [6]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

// FakeKafka returns the addresses of a kfake broker of the test's own.
func FakeKafka(t testing.TB) []string {
	t.Helper()
	broker, err := StartBroker(BrokerConfig{})
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	return broker.Addrs()
}

var sharedKafka = sync.OnceValues(func() (brokers []string, err error) {
	if s := os.Getenv("KAFKA_BOOTSTRAP_SERVERS"); s != "" {
		return strings.Split(s, ","), nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cluster, err := StartKafka(ctx, KafkaConfig{})
	if err != nil {
		return nil, err
	}
	return cluster.Brokers(), nil
})

// RealKafka returns the brokers of a real Kafka that all tests of this process
// share: KAFKA_BOOTSTRAP_SERVERS if set, else one of our own. Where none can be
// had the test says so loudly and is skipped; with CI=true it fails.
func RealKafka(t testing.TB) []string {
	t.Helper()
	brokers, err := sharedKafka()
	if errors.Is(err, ErrNoKafka) && os.Getenv("CI") != "true" {
		fmt.Fprintf(os.Stderr, "\n*** %s DID NOT RUN: %v\n\n", t.Name(), err)
		t.Skip(err)
	}
	require.NoError(t, err, "starting Kafka")
	return brokers
}
