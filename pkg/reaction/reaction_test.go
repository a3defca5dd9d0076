package reaction_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/reaction"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/schemas"
	"github.com/refoldhq/refold/schemas/user"
)

// child is the database of a process that only reacts, to be killed.
const child = "REACTION_TEST_CHILD"

func TestMain(m *testing.M) {
	if url := os.Getenv(child); url != "" {
		fmt.Fprintln(os.Stderr, reactUntilKilled(url))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func reactUntilKilled(url string) error {
	pool, err := pgxpool.New(context.Background(), url)
	if err != nil {
		return err
	}
	w, err := start(context.Background(), pool)
	if err != nil {
		return err
	}
	return w.activator(reaction.Config{}, nil).Run(context.Background())
}

type writer struct {
	pool     *pgxpool.Pool
	runtime  *aggregate.Runtime
	accounts *aggregate.Repository[user.Account]
	reader   *eventstore.Reader
	category eventstore.Category
	log      *logBuffer
}

// logBuffer keeps what is logged.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) contains(s string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Contains(b.text.String(), s)
}

// start runs an event store until ctx ends.
func start(ctx context.Context, pool *pgxpool.Pool) (*writer, error) {
	contracts, err := avro.LoadContracts(schemas.FS)
	if err != nil {
		return nil, err
	}
	schemaRegistry := registry.New(pool)
	ids, err := schemaRegistry.RegisterContracts(ctx, contracts, func(category string) string { return "refold." + strings.ToLower(category) })
	if err != nil {
		return nil, err
	}
	logged := &logBuffer{}
	log := slog.New(slog.NewTextHandler(logged, nil))
	store := eventstore.New(eventstore.Config{DatabaseURL: pool.Config().ConnString()}, log, prometheus.NewRegistry())
	if err := store.EnsureCategories(ctx, pool, []eventstore.CategorySpec{{Name: "User", Slots: 8, Partitions: 8, Topic: "refold.user"}}); err != nil {
		return nil, err
	}
	w := &writer{pool: pool, reader: eventstore.NewReader(pool), log: logged}
	w.category, _ = store.Category("User")
	w.runtime, err = aggregate.NewRuntime(aggregate.Config{}, aggregate.Deps{Store: store, Pool: pool, Schemas: schemaRegistry, Contracts: contracts, SchemaIDs: ids, Logger: log}, user.Define())
	if err != nil {
		return nil, err
	}
	w.accounts, err = aggregate.Open(w.runtime, user.Define())
	go store.Run(ctx)
	return w, err
}

func setup(t testing.TB) *writer {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	w, err := start(ctx, devstack.MigratedDatabase(t))
	require.NoError(t, err)
	return w
}

// activator activates every new account, and logs it in once its address is
// verified. before is called first.
func (w *writer) activator(cfg reaction.Config, before func(typ, stream string) error) *reaction.Consumer {
	cfg.Name, cfg.Category, cfg.Poll, cfg.Lease, cfg.Backoff = "activator", "User", 50*time.Millisecond, 2*time.Second, time.Millisecond
	if before == nil {
		before = func(string, string) error { return nil }
	}
	c := reaction.New(w.runtime, cfg)
	reaction.On(c, func(ctx context.Context, e reaction.Event[user.UserCreated]) error {
		if err := before(e.Type, e.Stream); err != nil {
			return err
		}
		_, err := w.accounts.Execute(ctx, e.Stream, (*user.Account).Activate)
		return err
	})
	reaction.On(c, func(ctx context.Context, e reaction.Event[user.UserEmailVerified]) error {
		if err := before(e.Type, e.Stream); err != nil {
			return err
		}
		_, err := w.accounts.Execute(ctx, e.Stream, func(a *user.Account) error { return a.LogIn(user.LogIn{Succeeded: true}) })
		return err
	})
	return c
}

// run runs a consumer and returns what stops it and waits for its end.
func run(t testing.TB, c *reaction.Consumer) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); require.NoError(t, <-done) }) }
	t.Cleanup(stop)
	return stop
}

func (w *writer) create(t testing.TB, id string) {
	t.Helper()
	_, err := w.accounts.Create(context.Background(), id, func(a *user.Account) error { return a.Create(user.Create{Email: id + "@example.com"}) })
	require.NoError(t, err)
}

func (w *writer) verify(t testing.TB, id string) {
	t.Helper()
	_, err := w.accounts.Execute(context.Background(), id, func(a *user.Account) error { return a.VerifyEmail(user.VerifyEmail{Email: id + "@example.com"}) })
	require.NoError(t, err)
}

// types returns the types of a stream's events.
func (w *writer) types(t testing.TB, id string) (types []string) {
	t.Helper()
	list, err := w.reader.StreamEvents(context.Background(), w.category, id, 0, 1000, false)
	require.NoError(t, err)
	for _, e := range list {
		types = append(types, e.Type)
	}
	return types
}

func (w *writer) await(t testing.TB, id string, types ...string) {
	t.Helper()
	require.Eventually(t, func() bool { return fmt.Sprint(w.types(t, id)) == fmt.Sprint(types) }, 60*time.Second, 20*time.Millisecond,
		"%s should have %v", id, types)
}

func (w *writer) awaitParked(t testing.TB, n int) []reaction.Parked {
	t.Helper()
	var list []reaction.Parked
	require.Eventually(t, func() bool {
		var err error
		list, err = reaction.ParkedStreams(context.Background(), w.pool, "activator")
		return err == nil && len(list) == n
	}, 60*time.Second, 20*time.Millisecond)
	return list
}

// ask calls the API of reactions.
func (w *writer) ask(t testing.TB, method, path, body string, status int) string {
	t.Helper()
	mux := http.NewServeMux()
	reaction.Register(mux, w.pool)
	answer := httptest.NewRecorder()
	mux.ServeHTTP(answer, httptest.NewRequest(method, "/v1/reactions"+path, strings.NewReader(body)))
	require.Equal(t, status, answer.Code, answer.Body)
	return answer.Body.String()
}

func TestAReactionActsOnNewEventsAndSkipsHistory(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.create(t, "old")
	stop := run(t, w.activator(reaction.Config{}, nil))
	require.Eventually(t, func() bool {
		var n int
		err := w.pool.QueryRow(context.Background(), `select count(*) from refold.reaction_progress`).Scan(&n)
		return err == nil && n == 8
	}, 60*time.Second, 20*time.Millisecond)
	w.create(t, "new")
	w.await(t, "new", "UserCreated", "UserActivated")
	stop()
	w.create(t, "meanwhile") // while nobody runs
	run(t, w.activator(reaction.Config{}, nil))
	w.await(t, "meanwhile", "UserCreated", "UserActivated")
	require.Equal(t, []string{"UserCreated"}, w.types(t, "old"))

	list, err := w.reader.StreamEvents(context.Background(), w.category, "new", 0, 10, false)
	require.NoError(t, err)
	require.Equal(t, event.Metadata{Actor: "reaction/activator", CorrelationID: list[0].ID.String(), CausationID: list[0].ID.String()}, list[1].Metadata)
}

func TestAReactionHandlesAllOfTheLogWhenAsked(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.create(t, "old")
	w.verify(t, "old")
	run(t, w.activator(reaction.Config{FromStart: true}, nil))
	w.await(t, "old", "UserCreated", "UserEmailVerified", "UserActivated", "UserLoggedIn")
}

func TestAnEventThatCannotBeHandledParksItsStreamAlone(t *testing.T) {
	t.Parallel()
	w := setup(t)
	var mu sync.Mutex
	broken, calls := true, make(map[string]int)
	run(t, w.activator(reaction.Config{FromStart: true, Attempts: 3}, func(typ, stream string) error {
		mu.Lock()
		defer mu.Unlock()
		calls[typ+" "+stream]++
		switch {
		case stream == "flaky" && typ == "UserCreated" && calls[typ+" "+stream] < 3:
			panic("not yet")
		case stream == "broken" && broken:
			return errors.New("no")
		case stream == "refused" && typ == "UserCreated":
			return user.ErrLocked
		}
		return nil
	}))
	for _, id := range []string{"flaky", "broken", "refused", "fine"} {
		w.create(t, id)
		w.verify(t, id)
	}
	parked := w.awaitParked(t, 2)
	w.await(t, "flaky", "UserCreated", "UserEmailVerified", "UserActivated", "UserLoggedIn")
	w.await(t, "fine", "UserCreated", "UserEmailVerified", "UserActivated", "UserLoggedIn")
	require.Equal(t, "broken", parked[0].Stream)
	require.Equal(t, 3, parked[0].Attempts)
	require.Equal(t, 1, parked[1].Attempts, "a refusal is not tried again")
	require.Len(t, w.types(t, "broken"), 2, "what comes behind waits")
	mu.Lock()
	require.Zero(t, calls["UserEmailVerified broken"])
	mu.Unlock()

	require.ErrorIs(t, reaction.Retry(context.Background(), w.pool, "activator", "User", "fine", 0, "why not"), reaction.ErrNotParked)
	mu.Lock()
	broken = false
	mu.Unlock()
	ask := func(method, path, body string, status int) string { return w.ask(t, method, path, body, status) }
	require.Contains(t, ask("GET", "", "", 200), `"parked":2`)
	require.Contains(t, ask("GET", "/activator/parked", "", 200), `"stream":"refused"`)
	ask("POST", "/activator/parked/User%2Fbroken/explode", `{"reason":"mended"}`, 404)
	ask("POST", "/activator/parked/User%2Fbroken/retry", `{"reason":""}`, 400)
	ask("POST", "/activator/parked/User%2Fbroken/retry", `{"cause":"x"}`, 400)
	ask("POST", "/activator/parked/broken/retry", `{"reason":"mended"}`, 400)
	ask("POST", "/activator/parked/User%2Ffine/retry", `{"reason":"mended"}`, 404)
	ask("POST", "/activator/parked/User%2Fbro%00ken/retry", `{"reason":"mended"}`, 400)
	require.Contains(t, ask("POST", "/activator/parked/User%2Fbroken/retry", `{"reason":"mended","version":2}`, 409), `"actual":1`)
	ask("POST", "/activator/parked/User%2Fbroken/retry", `{"reason":"mended","version":1}`, 202)
	w.await(t, "broken", "UserCreated", "UserEmailVerified", "UserActivated", "UserLoggedIn")
	w.awaitParked(t, 1)
	// Behind the skipped event the account is not active, so the next one is refused too.
	require.NoError(t, reaction.Skip(context.Background(), w.pool, "activator", "User", "refused", 0, "not wanted"))
	require.Eventually(t, func() bool {
		list := w.awaitParked(t, 1)
		return list[0].Version == 2 && list[0].Request == ""
	}, 60*time.Second, 20*time.Millisecond)
	require.NoError(t, reaction.Skip(context.Background(), w.pool, "activator", "User", "refused", 0, "not wanted"))
	w.awaitParked(t, 0)
	require.Len(t, w.types(t, "refused"), 2)
}

// Servers that a function talks to are not refold's database: while they are away
// attempts are counted, and other streams, of the same slot too, go on.
func TestANetworkErrorOfTheFunctionIsNotTakenForTheDatabasesAbsence(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]error{
		"refused":          fmt.Errorf("sending the mail: %w", &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}),
		"EOF":              io.EOF,
		"another database": &pgconn.PgError{Code: "57P01"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setup(t)
			neighbour := "b"
			for w.category.SlotOf(neighbour) != w.category.SlotOf("a") {
				neighbour += "b"
			}
			run(t, w.activator(reaction.Config{FromStart: true, Attempts: 3}, func(_, stream string) error {
				if stream == "a" {
					return away
				}
				return nil
			}))
			w.create(t, "a")
			w.create(t, neighbour)
			parked := w.awaitParked(t, 1)
			require.Equal(t, "a", parked[0].Stream)
			require.Equal(t, 3, parked[0].Attempts)
			w.await(t, neighbour, "UserCreated", "UserActivated")
		})
	}
}

// What refold's own calls say of its database is waited for, however often.
func TestTheDatabasesAbsenceIsWaitedFor(t *testing.T) {
	t.Parallel()
	w := setup(t)
	var mu sync.Mutex
	calls := 0
	run(t, w.activator(reaction.Config{FromStart: true, Attempts: 2}, func(string, string) error {
		mu.Lock()
		defer mu.Unlock()
		if calls++; calls <= 5 {
			return fmt.Errorf("reading: %w", eventstore.AsUnavailable(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}))
		}
		return nil
	}))
	w.create(t, "a")
	w.await(t, "a", "UserCreated", "UserActivated")
	w.awaitParked(t, 0)
}

// After a failover that has lost handled events, other events stand under their
// numbers. Their slot stops and the others go on.
func TestASlotThatHasLostEventsStopsAlone(t *testing.T) {
	t.Parallel()
	w := setup(t)
	stop := run(t, w.activator(reaction.Config{FromStart: true}, nil))
	w.create(t, "a")
	w.await(t, "a", "UserCreated", "UserActivated")
	require.Eventually(t, func() bool {
		var behind int64
		err := w.pool.QueryRow(context.Background(), `select (select count(*) from refold.event) - (select sum(seq) from refold.reaction_progress)`).Scan(&behind)
		return err == nil && behind == 0
	}, 60*time.Second, 5*time.Millisecond)
	stop()
	slot := w.category.SlotOf("a")
	_, err := w.pool.Exec(context.Background(), `update refold.reaction_progress set event = gen_random_uuid() where slot = $1`, slot)
	require.NoError(t, err)
	other := "b"
	for w.category.SlotOf(other) == slot {
		other += "b"
	}
	w.verify(t, "a")
	w.create(t, other)
	stop = run(t, w.activator(reaction.Config{}, nil))
	w.await(t, other, "UserCreated", "UserActivated")
	require.Eventually(t, func() bool { return w.log.contains("a slot is stopped") }, 60*time.Second, 5*time.Millisecond)
	require.Len(t, w.types(t, "a"), 3)
	stop() // it stays stopped, whoever runs the reaction
	run(t, w.activator(reaction.Config{}, nil))
	var stopped []reaction.Stopped
	require.Eventually(t, func() bool {
		var err error
		stopped, err = reaction.StoppedSlots(context.Background(), w.pool, "activator")
		return err == nil && len(stopped) == 1
	}, 60*time.Second, 5*time.Millisecond)
	require.EqualValues(t, slot, stopped[0].Slot)
	require.Equal(t, []int64{2, 3}, []int64{stopped[0].Seq, stopped[0].Head})

	path := fmt.Sprintf("/activator/stopped/User/%d/resume", slot)
	require.Contains(t, w.ask(t, "GET", "", "", 200), `"stopped":1`)
	require.Contains(t, w.ask(t, "GET", "/activator/stopped", "", 200), `"head":3`)
	w.ask(t, "POST", path, `{"after":2}`, 400)
	w.ask(t, "POST", path, `{"after":9,"reason":"looked at the mails"}`, 422)
	w.ask(t, "POST", fmt.Sprintf("/activator/stopped/User/%d/resume", (slot+1)%8), `{"after":0,"reason":"looked at the mails"}`, 404)
	w.ask(t, "POST", "/activator/stopped/User/x/resume", `{"after":0,"reason":"looked at the mails"}`, 404)
	w.ask(t, "POST", path, `{"after":2,"reason":"looked at the mails"}`, 202)
	w.await(t, "a", "UserCreated", "UserActivated", "UserEmailVerified", "UserLoggedIn")
	w.ask(t, "POST", path, `{"after":2,"reason":"looked at the mails"}`, 404)
}

// A function that fails behind its commands is repeated from the beginning, and
// so is one whose process has died there.
func TestCommandsOfAFunctionThatIsRepeatedTakeEffectOnce(t *testing.T) {
	t.Parallel()
	w := setup(t)
	c := reaction.New(w.runtime, reaction.Config{Name: "activator", Category: "User", FromStart: true, Backoff: time.Millisecond, Poll: 50 * time.Millisecond})
	var mu sync.Mutex
	runs := 0
	reaction.On(c, func(ctx context.Context, e reaction.Event[user.UserCreated]) error {
		if _, err := w.accounts.Execute(ctx, e.Stream, (*user.Account).Activate); err != nil {
			return err
		}
		for range 2 {
			if _, err := w.accounts.Execute(ctx, e.Stream, func(a *user.Account) error { return a.LogIn(user.LogIn{Succeeded: true}) }); err != nil {
				return err
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if runs++; runs < 3 {
			return errors.New("the mail server is away")
		}
		return nil
	})
	run(t, c)
	w.create(t, "a")
	require.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return runs == 3 }, 60*time.Second, 5*time.Millisecond)
	require.Equal(t, []string{"UserCreated", "UserActivated", "UserLoggedIn", "UserLoggedIn"}, w.types(t, "a"))
}

// A consumer that stands in a function when its lease ends must not move the
// progress of the one that has taken over.
func TestAZombieMovesNothing(t *testing.T) {
	t.Parallel()
	w := setup(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	run(t, w.activator(reaction.Config{FromStart: true}, func(string, string) error {
		once.Do(func() { close(entered); <-leave })
		return nil
	}))
	w.create(t, "a")
	<-entered
	take := func(expires string) {
		_, err := w.pool.Exec(context.Background(), `update refold.lease set fence = fence + 1, nonce = gen_random_uuid(), expires = clock_timestamp() + $1::interval where name = 'reaction/activator'`, expires)
		require.NoError(t, err)
	}
	take("1 hour") // by somebody else
	close(leave)
	require.Eventually(t, func() bool { return w.log.contains("the reaction begins anew") }, 60*time.Second, 5*time.Millisecond)
	var moved int64
	require.NoError(t, w.pool.QueryRow(context.Background(), `select sum(seq) from refold.reaction_progress`).Scan(&moved))
	require.Zero(t, moved)
	take("-1 hour") // that one has died
	w.create(t, "b")
	w.await(t, "a", "UserCreated", "UserActivated")
	w.await(t, "b", "UserCreated", "UserActivated")
}

// Processes that react are killed again and again while events arrive; every
// event has its effect once.
func TestKilledReactionsActOnceOnEveryEvent(t *testing.T) {
	t.Parallel()
	w := setup(t)
	exe, err := os.Executable()
	require.NoError(t, err)
	launch := func() *exec.Cmd {
		cmd := exec.Command(exe, "-test.run=^$")
		cmd.Env = append(os.Environ(), child+"="+w.pool.Config().ConnString())
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		require.NoError(t, cmd.Start())
		return cmd
	}
	// The first start decides that all events below are news.
	cmd := launch()
	require.Eventually(t, func() bool {
		var n int
		err := w.pool.QueryRow(context.Background(), `select count(*) from refold.reaction_progress`).Scan(&n)
		return err == nil && n == 8
	}, 60*time.Second, 20*time.Millisecond)
	const rounds, each = 4, 25
	for round := range rounds {
		for i := range each {
			id := fmt.Sprintf("u%d-%d", round, i)
			w.create(t, id)
			w.verify(t, id)
			if i == each/2 { // wherever it stands: before the command, behind it, before the move
				require.NoError(t, cmd.Process.Kill())
				cmd.Wait()
				cmd = launch()
			}
		}
	}
	for round := range rounds {
		for i := range each {
			id := fmt.Sprintf("u%d-%d", round, i)
			require.Eventually(t, func() bool {
				types := fmt.Sprint(w.types(t, id))
				return strings.Contains(types, "UserActivated") && strings.Contains(types, "UserLoggedIn")
			}, 90*time.Second, 20*time.Millisecond, id)
			require.Len(t, w.types(t, id), 4, id)
		}
	}
	require.NoError(t, cmd.Process.Kill())
	cmd.Wait()
}

func TestWhatIsWrongWithAReactionIsSaidAtTheStart(t *testing.T) {
	t.Parallel()
	w := setup(t)
	require.ErrorContains(t, reaction.New(w.runtime, reaction.Config{Name: "x", Category: "Nope"}).Check(), "no category Nope")
	require.ErrorContains(t, reaction.New(w.runtime, reaction.Config{Name: "X Y", Category: "User"}).Check(), "cannot name a reaction")
	require.ErrorContains(t, reaction.New(w.runtime, reaction.Config{Name: "x", Category: "User"}).Check(), "no event has a function")
	type Unknown struct{}
	c := reaction.New(w.runtime, reaction.Config{Name: "x", Category: "User"})
	reaction.On(c, func(context.Context, reaction.Event[Unknown]) error { return nil })
	require.ErrorContains(t, c.Run(context.Background()), "the category User has no event Unknown")
}
