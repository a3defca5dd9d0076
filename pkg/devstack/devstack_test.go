package devstack_test

import (
	"context"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/postgres"
)

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func TestPostgresKeepsItsDataOverAKill(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{})
	require.NoError(t, err)
	defer server.Close()
	_, err = connect(t, server.URL("postgres")).Exec(ctx, `create table kept as select 7 as n`)
	require.NoError(t, err)
	before, err := postgres.ReadIncarnation(ctx, connect(t, server.URL("postgres")))
	require.NoError(t, err)

	require.NoError(t, server.Kill())
	require.NoError(t, server.Start())

	conn := connect(t, server.URL("postgres"))
	var n int
	require.NoError(t, conn.QueryRow(ctx, `select n from kept`).Scan(&n))
	require.Equal(t, 7, n)
	after, err := postgres.ReadIncarnation(ctx, conn)
	require.NoError(t, err)
	require.Equal(t, before.System, after.System)
	require.NotEqual(t, before.Started, after.Started, "a restart is another incarnation")
}

func TestPromotedStandbyThatWasBehindHasLostTheTailAndIsAnotherIncarnation(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	primary, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{})
	require.NoError(t, err)
	defer primary.Close()
	p := connect(t, primary.URL("postgres"))
	_, err = p.Exec(ctx, `create table t (n int); insert into t values (1)`)
	require.NoError(t, err)
	standby, err := primary.Standby(ctx)
	require.NoError(t, err)
	defer standby.Close()
	require.NoError(t, standby.PauseReplay(ctx))
	_, err = p.Exec(ctx, `insert into t values (2)`)
	require.NoError(t, err)
	before, err := postgres.ReadIncarnation(ctx, p)
	require.NoError(t, err)

	s := connect(t, standby.URL("postgres"))
	_, err = postgres.ReadIncarnation(ctx, s)
	require.Error(t, err, "a standby has no incarnation")
	require.NoError(t, standby.Promote(ctx))
	var n int
	require.NoError(t, s.QueryRow(ctx, `select count(*) from t`).Scan(&n))
	require.Equal(t, 1, n)
	after, err := postgres.ReadIncarnation(ctx, s)
	require.NoError(t, err)
	require.Equal(t, before.System, after.System)
	require.NotEqual(t, before.Timeline, after.Timeline)
}

func TestDatabasesOfTestsAreMigratedAndApart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b := devstack.MigratedDatabase(t), devstack.MigratedDatabase(t)
	_, err := a.Exec(ctx, `insert into refold.category (name, slots, partitions, topic) values ('User', 64, 8, 'refold.user')`)
	require.NoError(t, err)
	var n int
	require.NoError(t, b.QueryRow(ctx, `select count(*) from refold.category`).Scan(&n))
	require.Zero(t, n)
}

func TestSeveredConnectionStillDeliversWhatItsClientHadSent(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := devstack.MigratedDatabase(t)
	config := pool.Config().ConnConfig.Copy()
	proxy := devstack.StartProxy(t, config.Host+":"+itoa(config.Port))
	direct := connect(t, pool.Config().ConnString())
	through, err := pgx.ParseConfig("postgres://" + config.User + ":" + config.Password + "@" + proxy.Addr() + "/" + config.Database + "?sslmode=disable")
	require.NoError(t, err)
	conn, err := pgx.ConnectConfig(ctx, through)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, `create table refold.late (n int)`)
	require.NoError(t, err)

	proxy.Hold(devstack.ToServer)
	result := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, `insert into refold.late values (1)`, pgx.QueryExecModeSimpleProtocol)
		result <- err
	}()
	proxy.AwaitHeld(devstack.ToServer)
	proxy.Sever()
	require.Error(t, <-result, "the client has given it up")
	require.Zero(t, count(t, direct))
	proxy.Release(devstack.ToServer)
	require.Eventually(t, func() bool { return count(t, direct) == 1 }, waitLimit, pollEvery)
}

func count(t *testing.T, conn *pgx.Conn) (n int) {
	require.NoError(t, conn.QueryRow(context.Background(), `select count(*) from refold.late`).Scan(&n))
	return n
}

func TestInProcessBrokerKeepsTopicsOverARestart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := t.TempDir()
	broker, err := devstack.StartBroker(devstack.BrokerConfig{Dir: dir})
	require.NoError(t, err)
	client, err := kgo.NewClient(kgo.SeedBrokers(broker.Addrs()...))
	require.NoError(t, err)
	created, err := kadm.NewClient(client).CreateTopic(ctx, 8, 1, nil, "kept")
	require.NoError(t, err)
	require.NoError(t, client.ProduceSync(ctx, &kgo.Record{Topic: "kept", Key: []byte("k"), Value: []byte("v")}).FirstErr())
	client.Close()
	broker.Close()

	broker, err = devstack.StartBroker(devstack.BrokerConfig{Dir: dir})
	require.NoError(t, err)
	defer broker.Close()
	client, err = kgo.NewClient(kgo.SeedBrokers(broker.Addrs()...))
	require.NoError(t, err)
	defer client.Close()
	topics, err := kadm.NewClient(client).ListTopics(ctx, "kept")
	require.NoError(t, err)
	require.Equal(t, created.ID, topics["kept"].ID, "the topic is the same one")
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, "kept")
	require.NoError(t, err)
	var sum int64
	ends.Each(func(o kadm.ListedOffset) { sum += o.Offset })
	require.EqualValues(t, 1, sum)
}

func TestRealKafkaTakesRecords(t *testing.T) {
	brokers := devstack.RealKafka(t)
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	require.NoError(t, err)
	defer client.Close()
	topic := "devstack-" + itoa(uint16(os.Getpid()))
	_, err = kadm.NewClient(client).CreateTopic(context.Background(), 1, 1, nil, topic)
	require.NoError(t, err)
	require.NoError(t, client.ProduceSync(context.Background(), &kgo.Record{Topic: topic, Value: []byte("v")}).FirstErr())
}
