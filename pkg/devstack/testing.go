package devstack

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

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

// IgnoreServers is for goleak: a goroutine stays for each server that the tests of
// this process share.
func IgnoreServers() goleak.Option {
	return goleak.IgnoreAnyFunction("github.com/refoldhq/refold/pkg/devstack.(*process).keep")
}

// Database returns the URL of a fresh, empty database, dropped when the test ends.
func Database(t testing.TB) string {
	t.Helper()
	return createDatabase(t, "")
}

// template is a migrated database that others are copied from. Its name comes from
// the migrations, so that all test processes on one server share it.
var template = sync.OnceValues(func() (name string, err error) {
	server, err := sharedPostgres()
	if err != nil {
		return "", err
	}
	hash, err := hashOfMigrations()
	if err != nil {
		return "", err
	}
	name = "refold_template_" + hash
	return name, makeTemplate(context.Background(), server, name)
})

func hashOfMigrations() (string, error) {
	files, err := postgres.Migrations()
	if err != nil {
		return "", err
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return "", fmt.Errorf("listing the migrations: %w", err)
	}
	hash := sha256.New()
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return "", fmt.Errorf("reading the migration %s: %w", name, err)
		}
		fmt.Fprintf(hash, "%s %d\n%s", name, len(text), text)
	}
	return hex.EncodeToString(hash.Sum(nil)[:8]), nil
}

// makeTemplate makes the template unless another process has: an advisory lock
// keeps them apart, and the name appears only once the migrations are through.
func makeTemplate(ctx context.Context, server, name string) error {
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return fmt.Errorf("connecting to the server of the tests: %w", err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `select pg_advisory_lock(hashtextextended('refold_template', 0))`); err != nil {
		return fmt.Errorf("waiting for another process to make the template: %w", err)
	}
	var exists bool
	if err := conn.QueryRow(ctx, `select exists (select from pg_database where datname = $1)`, name).Scan(&exists); err != nil || exists {
		return err
	}
	unfinished := name + "_unfinished"
	for _, sql := range []string{"drop database if exists " + unfinished + " with (force)", "create database " + unfinished} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("making the template: %w", err)
		}
	}
	if err := migrate(ctx, onDatabase(server, unfinished)); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "alter database "+unfinished+" rename to "+name)
	return err
}

func migrate(ctx context.Context, url string) error {
	pool, err := postgres.Open(ctx, postgres.Config{URL: url})
	if err != nil {
		return err
	}
	defer pool.Close()
	return postgres.Migrate(ctx, pool)
}

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
	requireKafka(t, err)
	return brokers
}

// OwnKafka starts real brokers for one test, which may do to them what it likes.
// Where none can be had it is as with [RealKafka].
func OwnKafka(t testing.TB, cfg KafkaConfig) *Kafka {
	t.Helper()
	starting, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cluster, err := StartKafka(starting, cfg)
	requireKafka(t, err)
	t.Cleanup(func() { require.NoError(t, cluster.Close()) })
	return cluster
}

func requireKafka(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, ErrNoKafka) && os.Getenv("CI") != "true" {
		fmt.Fprintf(os.Stderr, "\n*** %s DID NOT RUN: %v\n\n", t.Name(), err)
		t.Skip(err)
	}
	require.NoError(t, err, "starting Kafka")
}
