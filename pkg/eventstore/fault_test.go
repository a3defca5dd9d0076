package eventstore_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
)

// start runs a store with settings of the test's own, which logs into log, and
// with the bugs that plant puts into it.
func start(t testing.TB, pool *pgxpool.Pool, cfg eventstore.Config, log io.Writer, plant ...func(*eventstore.Store)) *eventstore.Store {
	t.Helper()
	store := eventstore.New(cfg, slog.New(slog.NewTextHandler(log, nil)), prometheus.NewRegistry())
	for _, p := range plant {
		p(store)
	}
	require.NoError(t, store.EnsureCategories(ctx, pool, categories))
	running, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		store.Run(running)
		close(done)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return store
}

// proxied returns a proxy before the pool's database, the URL through it, and one
// that falls back to the database itself where the proxy refuses.
func proxied(t testing.TB, pool *pgxpool.Pool) (proxy *devstack.Proxy, through, fallback string) {
	t.Helper()
	direct, err := url.Parse(pool.Config().ConnString())
	require.NoError(t, err)
	proxy = devstack.StartProxy(t, direct.Host)
	t.Cleanup(proxy.Heal) // before the store is stopped
	through = proxy.URL(direct.String())
	both := *direct
	both.Host = proxy.Addr() + "," + direct.Host
	return proxy, through, both.String()
}

// lockedLog is a log that may be read while it is written.
type lockedLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// marked is a request whose events hold a mark that goes over the wire with the
// COMMIT. With a claim it takes two trips.
func marked(stream string, twoTrips bool) *eventstore.Request {
	r := request(to(stream, eventstore.None, 2))
	r.Appends[0].Events[1].Value = []byte("the mark")
	if twoTrips {
		r.Appends[0].Claims = []eventstore.Claim{{Namespace: "n", Value: stream}}
	}
	return r
}

func hasMark(read []byte) bool { return bytes.Contains(read, []byte("the mark")) }

// ways are the two ways to carry out a batch.
var ways = map[string]bool{"one trip": false, "two trips": true}

func TestCommitWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	for name, twoTrips := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := devstack.MigratedDatabase(t)
			proxy, through, _ := proxied(t, pool)
			store := start(t, pool, eventstore.Config{DatabaseURL: through}, io.Discard)
			_, err := store.Append(ctx, marked("before", twoTrips)) // statements are prepared now
			require.NoError(t, err)

			proxy.HoldWhen(devstack.ToServer, hasMark)
			answered := appending(store, marked("a", twoTrips))
			proxy.AwaitHeld(devstack.ToServer)
			proxy.Hold(devstack.ToClient)
			proxy.Release(devstack.ToServer) // it happens
			proxy.AwaitHeld(devstack.ToClient)
			proxy.Cut() // and nobody hears of it
			proxy.Heal()

			a := <-answered
			require.NoError(t, a.err)
			require.False(t, a.result.Replayed, "it is the first answer")
			require.EqualValues(t, 2, a.result.Appends[0].LastVersion)
			requireLog(t, pool, 4)
		})
	}
}

// What was answered is in the log, whatever becomes of the connection: a store that
// answers first has lost it when the COMMIT never arrives.
func TestAnswersComeAfterTheCommit(t *testing.T) {
	t.Parallel()
	lost := func(plant ...func(*eventstore.Store)) bool {
		pool := devstack.MigratedDatabase(t)
		proxy, through, _ := proxied(t, pool)
		store := start(t, pool, eventstore.Config{DatabaseURL: through, TripTimeout: 3 * time.Second, ResolveWithin: 4 * time.Second}, io.Discard, plant...)
		proxy.HoldWhen(devstack.ToServer, hasMark)
		answered := appending(store, marked("a", true))
		proxy.AwaitHeld(devstack.ToServer)
		proxy.Refuse()
		proxy.Cut()
		a := <-answered
		if a.err != nil {
			require.ErrorIs(t, a.err, eventstore.ErrOutcomeUnknown)
		}
		var there int
		require.NoError(t, pool.QueryRow(ctx, `select count(*) from refold.event where stream = 'a'`).Scan(&there))
		return a.err == nil && there == 0
	}
	require.False(t, lost())
	require.True(t, lost((*eventstore.Store).AnswerEarly), "the check sees what it guards against")
}

// The COMMIT arrives only when its sender has long given it up and carried out its
// batch by another session.
func TestCommitThatArrivesLate(t *testing.T) {
	t.Parallel()
	for name, twoTrips := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := devstack.MigratedDatabase(t)
			proxy, _, fallback := proxied(t, pool)
			store := start(t, pool, eventstore.Config{DatabaseURL: fallback}, io.Discard)
			_, err := store.Append(ctx, marked("before", twoTrips))
			require.NoError(t, err)

			proxy.HoldWhen(devstack.ToServer, hasMark)
			answered := appending(store, marked("a", twoTrips))
			proxy.AwaitHeld(devstack.ToServer)
			proxy.Refuse()
			proxy.Sever()
			a := <-answered
			require.NoError(t, a.err)
			require.EqualValues(t, 2, a.result.Appends[0].LastVersion)
			var there int
			require.NoError(t, pool.QueryRow(ctx, `select count(*) from pg_stat_activity where application_name = 'refold-append' and datname = current_database()`).Scan(&there))
			require.Equal(t, 2, there, "the backend that may still get the COMMIT has been ended: what is left is one for each lane")
			proxy.Release(devstack.ToServer)
			_, err = store.Append(ctx, request(to("a", eventstore.Exactly(2), 1)))
			require.NoError(t, err)
			requireLog(t, pool, 5)
		})
	}
}

func TestCommitOnAHalfOpenConnection(t *testing.T) {
	t.Parallel()
	for name, twoTrips := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := devstack.MigratedDatabase(t)
			proxy, through, _ := proxied(t, pool)
			store := start(t, pool, eventstore.Config{DatabaseURL: through, TripTimeout: 3 * time.Second, ResolveWithin: 4 * time.Second}, io.Discard)
			_, err := store.Append(ctx, marked("before", twoTrips))
			require.NoError(t, err)

			proxy.HoldWhen(devstack.ToServer, hasMark)
			lost := marked("a", twoTrips)
			answered := appending(store, lost)
			proxy.AwaitHeld(devstack.ToServer)
			a := <-answered
			require.ErrorIs(t, a.err, eventstore.ErrOutcomeUnknown)
			require.NotErrorIs(t, a.err, eventstore.ErrUnavailable, "which says that nothing happened")

			proxy.Heal()
			result, err := store.Append(ctx, lost) // with the same ids
			require.NoError(t, err)
			require.EqualValues(t, 2, result.Appends[0].LastVersion)
			requireLog(t, pool, 4)
		})
	}
}

func TestNothingHappensWhereTheFirstTripIsLost(t *testing.T) {
	t.Parallel()
	pool := devstack.MigratedDatabase(t)
	proxy, through, _ := proxied(t, pool)
	store := start(t, pool, eventstore.Config{DatabaseURL: through, TripTimeout: 2 * time.Second, ResolveWithin: 3 * time.Second}, io.Discard)
	_, err := store.Append(ctx, marked("before", true))
	require.NoError(t, err)
	proxy.Blackhole()
	_, err = store.Append(ctx, marked("a", true))
	require.ErrorIs(t, err, eventstore.ErrUnavailable)
	require.NotErrorIs(t, err, eventstore.ErrOutcomeUnknown)
	proxy.Cut()
	proxy.Heal()
	_, err = store.Append(ctx, request(to("b", eventstore.None, 1)))
	require.NoError(t, err)
	requireLog(t, pool, 3)
}

// A writer that stands still with locks in its hands and half of its second trip
// sent, without the Sync, is held by no time-out of the server's.
func TestWriterStoppedInTheMiddleOfATrip(t *testing.T) {
	t.Parallel()
	pool := devstack.MigratedDatabase(t)
	var log lockedLog
	store := start(t, pool, eventstore.Config{DatabaseURL: pool.Config().ConnString()}, &log)
	stopped, err := postgres.Connect(ctx, postgres.Config{URL: pool.Config().ConnString(), AppName: "refold-append", IdleInTransactionTimeout: time.Second})
	require.NoError(t, err)
	defer stopped.Close(ctx)
	_, err = stopped.Exec(ctx, `begin`)
	require.NoError(t, err)
	_, err = stopped.Exec(ctx, `select from refold.slot for no key update`)
	require.NoError(t, err)
	half := stopped.PgConn().Frontend()
	half.SendParse(&pgproto3.Parse{Query: `select 1`})
	half.SendBind(&pgproto3.Bind{})
	half.SendExecute(&pgproto3.Execute{})
	require.NoError(t, half.Flush())

	began := time.Now()
	_, err = store.Append(ctx, request(to("a", eventstore.Any, 1)))
	require.NoError(t, err)
	t.Logf("the way was clear after %v", time.Since(began))
	require.Contains(t, log.String(), "ended the session of a writer that had stopped")
}

func TestForeignSessionInTheWayIsNamedAndLeftAlone(t *testing.T) {
	t.Parallel()
	pool := devstack.MigratedDatabase(t)
	var log lockedLog
	store := start(t, pool, eventstore.Config{DatabaseURL: pool.Config().ConnString()}, &log)
	tx, err := pool.Begin(ctx)
	require.NoError(t, err)
	defer tx.Rollback(ctx)
	_, err = tx.Exec(ctx, `select from refold.slot for update`)
	require.NoError(t, err)
	_, err = store.Append(ctx, request(to("a", eventstore.Any, 1)))
	require.ErrorIs(t, err, eventstore.ErrUnavailable)
	require.Contains(t, log.String(), "a session keeps appends waiting and does nothing")
	require.NoError(t, tx.Commit(ctx), "it is not ours to end")
}

func TestUnexpectedErrorsAreOurs(t *testing.T) {
	t.Parallel()
	pool := devstack.MigratedDatabase(t)
	var log lockedLog
	store := start(t, pool, eventstore.Config{DatabaseURL: pool.Config().ConnString()}, &log)
	_, err := pool.Exec(ctx, `drop function refold.append_one`)
	require.NoError(t, err)
	_, err = store.Append(ctx, request(to("a", eventstore.Any, 1)))
	require.ErrorIs(t, err, eventstore.ErrInternal)
	require.Contains(t, log.String(), "level=ERROR")
	require.Contains(t, log.String(), "refold.append_one", "the cause")
}

// What the server refuses for its contents harms nobody else in its batch.
func TestOneBadRequestDoesNotHarmItsBatch(t *testing.T) {
	t.Parallel()
	pool := devstack.MigratedDatabase(t)
	store := start(t, pool, eventstore.Config{DatabaseURL: pool.Config().ConnString(), Lanes: 1}, io.Discard)
	_, err := pool.Exec(ctx, `alter table refold.event add check (type <> 'Bad')`)
	require.NoError(t, err)
	release := occupy(t, pool, store)
	bad := request(to("bad", eventstore.Any, 1))
	bad.Appends[0].Events[0].Type = "Bad"
	var pending []*eventstore.Pending
	for _, r := range []*eventstore.Request{request(to("a", eventstore.None, 1)), bad, request(to("b", eventstore.None, 1))} {
		p, err := store.Submit(ctx, r)
		require.NoError(t, err)
		pending = append(pending, p)
	}
	release()
	_, err = pending[1].Wait(ctx)
	require.ErrorIs(t, err, eventstore.ErrInternal)
	for _, i := range []int{0, 2} {
		_, err := pending[i].Wait(ctx)
		require.NoError(t, err)
	}
}

func TestQueueIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	pool := devstack.MigratedDatabase(t)
	store := start(t, pool, eventstore.Config{DatabaseURL: pool.Config().ConnString(), MaxQueuedBytes: 100_000, MaxWait: 50 * time.Millisecond}, io.Discard)
	release := occupy(t, pool, store)
	large := func(stream string) *eventstore.Request {
		r := request(to(stream, eventstore.Any, 1))
		r.Appends[0].Events[0].Value = make([]byte, 60_000)
		return r
	}
	waiting, err := store.Submit(ctx, large("a"))
	require.NoError(t, err)
	_, err = store.Append(ctx, large("b"))
	require.ErrorIs(t, err, eventstore.ErrOverloaded)
	require.ErrorIs(t, err, eventstore.ErrUnavailable)
	submitted := make(chan error, 1)
	go func() {
		p, err := store.Submit(ctx, large("c"))
		if err == nil {
			_, err = p.Wait(ctx)
		}
		submitted <- err
	}()
	select {
	case <-submitted:
		t.Fatal("there was no room")
	case <-time.After(20 * time.Millisecond): // it must not happen: more time only makes the test stricter
	}
	release()
	_, err = waiting.Wait(ctx)
	require.NoError(t, err)
	require.NoError(t, <-submitted)
	huge := large("d")
	huge.Appends[0].Events[0].Value = make([]byte, 300_000)
	_, err = store.Append(ctx, huge)
	require.NoError(t, err, "one that is larger than all room has it alone")
}

func TestRefusedRequestsLeaveNothing(t *testing.T) {
	t.Parallel()
	store, pool := setup(t)
	_, err := store.Append(ctx, request(to("a", eventstore.None, 1)))
	require.NoError(t, err)
	refused := func(i int) *eventstore.Request {
		r := request(to("a", eventstore.None, 2))
		r.Key, r.Hash = fmt.Sprint("k", i), []byte("h")
		r.Appends[0].Events[0].ID = event.NewID()
		r.Appends[0].Claims = []eventstore.Claim{{Namespace: "n", Value: fmt.Sprint(i)}}
		if i%2 == 0 { // one trip
			r.Appends[0].Claims = nil
		}
		return r
	}
	release := occupy(t, pool, store)
	var pending []*eventstore.Pending
	for i := range 6 {
		p, err := store.Submit(ctx, refused(i))
		require.NoError(t, err)
		pending = append(pending, p)
	}
	good, err := store.Submit(ctx, request(to("a", eventstore.Exists, 1)))
	require.NoError(t, err)
	release()
	for _, p := range pending {
		_, err := p.Wait(ctx)
		var conflict *eventstore.VersionConflict
		require.ErrorAs(t, err, &conflict)
	}
	_, err = good.Wait(ctx)
	require.NoError(t, err)
	for i := range 2 { // alone, so that nothing is committed
		_, err := store.Append(ctx, refused(i))
		require.Error(t, err)
	}
	for _, table := range []string{"chosen_id", "idempotency_key", "claim"} {
		var n int
		require.NoError(t, pool.QueryRow(ctx, `select count(*) from refold.`+table).Scan(&n))
		require.Zero(t, n, table)
	}
}

func TestOldKeysAreForgotten(t *testing.T) {
	t.Parallel()
	store, pool := setup(t)
	keyed := func(key, stream string) (*eventstore.Result, error) {
		r := request(to(stream, eventstore.Any, 1))
		r.Key, r.Hash = key, []byte(stream)
		return store.Append(ctx, r)
	}
	for _, key := range []string{"old", "new"} {
		_, err := keyed(key, "a")
		require.NoError(t, err)
	}
	_, err := pool.Exec(ctx, `update refold.idempotency_key set recorded = recorded - interval '25 hours' where key = 'old'`)
	require.NoError(t, err)
	swept, err := store.SweepKeys(ctx, pool, eventstore.KeepKeys)
	require.NoError(t, err)
	require.EqualValues(t, 1, swept)
	_, err = keyed("new", "b")
	require.ErrorIs(t, err, eventstore.ErrKeyReused)
	result, err := keyed("old", "b")
	require.NoError(t, err)
	require.False(t, result.Replayed)
}

// A key that is swept while a replay waits for it is either found or free, never
// half of both.
func TestKeysAreSweptBesideReplays(t *testing.T) {
	t.Parallel()
	store, pool := setup(t)
	stop := make(chan struct{})
	var sweeping sync.WaitGroup
	sweeping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := store.SweepKeys(ctx, pool, 0); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for i := range 100 {
				r := request(to(fmt.Sprintf("s%d-%d", w, i), eventstore.Any, 1))
				r.Appends[0].Releases = []eventstore.Claim{{Namespace: "n", Value: "v"}} // in two trips
				r.Key, r.Hash = fmt.Sprint("k", i%3), []byte("h")
				if _, err := store.Append(ctx, r); err != nil && !strings.Contains(err.Error(), "key was used") {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	close(stop)
	sweeping.Wait()
}

type answer struct {
	result *eventstore.Result
	err    error
}

func appending(store *eventstore.Store, r *eventstore.Request) <-chan answer {
	out := make(chan answer, 1)
	go func() {
		result, err := store.Append(ctx, r)
		out <- answer{result, err}
	}()
	return out
}

// occupy keeps every lane waiting for a lock, so that what is submitted before
// release comes into one batch.
func occupy(t testing.TB, pool *pgxpool.Pool, store *eventstore.Store) (release func()) {
	t.Helper()
	tx, err := pool.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `select from refold.slot for update`)
	require.NoError(t, err)
	var pending []*eventstore.Pending
	for i := 0; len(pending) < 2 && i < 64; i++ {
		r := request(to(fmt.Sprintf("occupied-%d", i), eventstore.Exists, 1)) // refused in the end
		p, err := store.Submit(ctx, r)
		require.NoError(t, err)
		pending = append(pending, p)
	}
	require.Eventually(t, func() bool {
		var n int
		err := pool.QueryRow(ctx, `select count(*) from pg_stat_activity where application_name = 'refold-append' and wait_event_type = 'Lock' and datname = current_database()`).Scan(&n)
		return err == nil && n > 0
	}, 30*time.Second, 5*time.Millisecond)
	return func() {
		require.NoError(t, tx.Commit(ctx))
		for _, p := range pending {
			p.Wait(ctx)
		}
	}
}

// requireLog wants a log without a gap that holds so many events.
func requireLog(t testing.TB, pool *pgxpool.Pool, events int64) {
	t.Helper()
	report, err := eventstore.VerifyLog(ctx, pool)
	require.NoError(t, err)
	require.Equal(t, events, report.Events)
}
