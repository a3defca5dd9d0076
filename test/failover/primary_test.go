package failover

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/pkg/relay"
	"github.com/refoldhq/refold/pkg/strictjson"
	"github.com/refoldhq/refold/schemas"
)

// onStandby returns the log as it stands on a promoted standby.
func (l *log) onStandby(standby *devstack.Postgres) *log {
	l.t.Helper()
	pool, err := postgres.Open(ctx, postgres.Config{URL: standby.URL("postgres"), MaxConns: 4})
	require.NoError(l.t, err)
	l.t.Cleanup(pool.Close)
	return &log{t: l.t, pool: pool, brokers: l.brokers, category: l.category, value: l.value, heads: maps.Clone(l.heads), versions: maps.Clone(l.versions)}
}

// A standby is promoted while the old primary still answers, with a writer and a
// relay that have not heard of it: the topic gets events of both. Wherever the old
// branch came in between, before the new relay has begun or while it works, the
// slot is named and stopped within half a minute.
func TestOldPrimaryIsStillReachable(t *testing.T) {
	primary, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, primary.Close()) })
	old := newLog(t, primary.URL("postgres"), devstack.RealKafka(t))
	standby, err := primary.Standby(ctx)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, standby.Close()) })
	old.relay("old", primary.URL("postgres"))
	require.NoError(t, old.add(old.pool, streams(0, 200)...))
	old.awaitRelayed(old.pool)
	require.NoError(t, standby.CatchUp(ctx))
	require.NoError(t, standby.Promote(ctx))
	promoted := old.onStandby(standby)

	before, while := []string{"s1", "s2"}, elsewhere(streams(10, 190), streams(0, 10))[:2]
	require.NoError(t, old.add(old.pool, before...))
	old.awaitRelayed(old.pool)
	require.NoError(t, promoted.add(promoted.pool, streams(0, 10)...))
	promoted.relay("new", standby.URL("postgres"))
	named := func(lost []string) func() bool {
		return func() bool {
			for _, stream := range lost {
				var n int
				err := promoted.pool.QueryRow(ctx, `select count(*) from refold.relay_stop where kind = 'diverged' and slot = $1`, event.SlotOf(stream, slots)).Scan(&n)
				if err != nil || n != 1 {
					return false
				}
			}
			return true
		}
	}
	began := time.Now()
	old.eventually(named(before), "what came before the new relay is named")
	t.Logf("named after %v", time.Since(began))

	require.NoError(t, old.add(old.pool, while...))
	for _, stream := range while {
		slot := event.SlotOf(stream, slots)
		old.eventually(func() bool {
			var seq int64
			err := old.pool.QueryRow(ctx, `select u.seq from refold.relay_partition r, unnest(r.slots, r.seqs) u (slot, seq) where u.slot = $1`, slot).Scan(&seq)
			return err == nil && seq == old.heads[slot]
		}, "the old relay, which has lost other slots by now, has sent it")
	}
	began = time.Now()
	old.eventually(func() bool { // the next append to any slot of the partition shows what is in between
		require.NoError(t, promoted.add(promoted.pool, while...))
		return named(while)()
	}, "what came while it works is named")
	t.Logf("named after %v", time.Since(began))
	_, err = relay.VerifyTopic(ctx, promoted.pool, kafka.Config{Brokers: old.brokers}, promoted.category, time.Second)
	require.ErrorIs(t, err, relay.ErrBroken)
}

// elsewhere returns those of the streams that share no slot with others.
func elsewhere(streams, others []string) (list []string) {
	taken := make(map[int]bool)
	for _, stream := range others {
		taken[event.SlotOf(stream, slots)] = true
	}
	for _, stream := range streams {
		if slot := event.SlotOf(stream, slots); !taken[slot] {
			taken[slot] = true
			list = append(list, stream)
		}
	}
	return list
}

const definition = `projection: logins
category: User
fields:
  email:  {from: [UserCreated]}
  events: {count: "*"}
`

// The database of the projections fails over to a standby that has the events and
// not what the engine made of them: its workers claim again, believe nothing that
// they remember, and every event is in the rows once.
func TestProjectionsFailOver(t *testing.T) {
	primary, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, primary.Close()) })
	l := newLog(t, primary.URL("postgres"), devstack.RealKafka(t))
	feeds := l.project()
	standby, err := primary.Standby(ctx)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, standby.Close()) })
	either := fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?target_session_attrs=read-write", primary.Port(), standby.Port())
	l.relay("living", either)
	for range 10 {
		require.NoError(t, l.add(l.pool, streams(0, 100)...))
	}
	l.awaitRelayed(l.pool)
	require.NoError(t, standby.CatchUp(ctx))
	require.NoError(t, standby.PauseReplay(ctx))

	l.engine(either, feeds)
	const counted = `select coalesce(sum((data->>'events')::bigint), 0)::text from refold.projections`
	l.eventually(func() bool { return l.text(l.pool, counted) == "1000" }, "everything is applied")
	require.NoError(t, primary.Stop("immediate"))
	require.NoError(t, standby.Promote(ctx))
	promoted := l.onStandby(standby)
	require.Equal(t, "0", promoted.text(promoted.pool, counted), "the rows are lost")
	require.NoError(t, promoted.add(promoted.pool, streams(50, 100)...))
	promoted.eventually(func() bool { return promoted.text(promoted.pool, counted) == "1100" }, "everything is applied again, once")
	report, err := engine.Verify(ctx, promoted.pool, registry.New(promoted.pool), feeds[0])
	require.NoError(t, err)
	require.EqualValues(t, 1100, report.Events)
	require.EqualValues(t, 150, report.Rows)
}

// project gives the log events that a projection can read, and sets it up.
func (l *log) project() []engine.Feed {
	l.t.Helper()
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(l.t, err)
	category, _ := contracts.Category("User")
	typ, _ := category.Type("UserCreated")
	id, err := registry.New(l.pool).Register(ctx, "user-UserCreated", typ.Newest())
	require.NoError(l.t, err)
	l.value, err = typ.Newest().EncodeJSON(avro.AppendFrame(nil, id), strictjson.NewReader([]byte(`{"id": "1", "email": "a@example.com", "isActive": true}`)))
	require.NoError(l.t, err)
	definitions, err := projection.ParseDefinitions("p.yaml", []byte(definition))
	require.NoError(l.t, err)
	feeds, err := engine.Setup(ctx, l.pool, contracts, definitions, nil)
	require.NoError(l.t, err)
	return feeds
}

// engine runs one until the end of the test.
func (l *log) engine(url string, feeds []engine.Feed) {
	l.t.Helper()
	pool, err := postgres.Open(ctx, postgres.Config{URL: url, MaxConns: 4})
	require.NoError(l.t, err)
	e := engine.New(engine.Config{DatabaseURL: url, Kafka: kafka.Config{Brokers: l.brokers}, Prefix: l.category.Topic, Owner: "living"},
		pool, registry.New(pool), eventstore.NewReader(pool), slog.New(slog.NewTextHandler(testLog{l.t}, nil)), prometheus.NewRegistry())
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Run(running, feeds)
	}()
	l.t.Cleanup(func() {
		cancel()
		<-done
		pool.Close()
	})
}
