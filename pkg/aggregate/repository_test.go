package aggregate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/schemas/user"
)

func TestAnAccountLivesAndDies(t *testing.T) {
	t.Parallel()
	w := setup(t)
	created, err := w.accounts.Create(ctx, "42", create("ada@example.com"), aggregate.WithMetadata(event.Metadata{Actor: "ada"}))
	require.NoError(t, err)
	require.EqualValues(t, 1, created.Version)
	require.Len(t, created.Events, 1)
	require.Len(t, created.Token(), 1)
	for range user.MaxFailures {
		_, err = w.accounts.Execute(ctx, "42", logIn(false))
		require.ErrorIs(t, err, user.ErrInactive)
	}
	_, err = w.accounts.Execute(ctx, "42", (*user.Account).Activate)
	require.NoError(t, err)
	var last *aggregate.Result
	for range user.MaxFailures {
		last, err = w.accounts.Execute(ctx, "42", logIn(false))
		require.NoError(t, err)
	}
	require.Len(t, last.Events, 2, "the last failure locks the account too")
	_, err = w.accounts.Execute(ctx, "42", logIn(true))
	var broken *aggregate.Broken
	require.ErrorAs(t, err, &broken)
	require.Equal(t, "account-locked", broken.Code)
	_, err = w.accounts.Execute(ctx, "42", (*user.Account).Delete)
	require.NoError(t, err)
	again, err := w.accounts.Execute(ctx, "42", (*user.Account).Delete)
	require.NoError(t, err)
	require.Empty(t, again.Events)
	require.EqualValues(t, 9, again.Version)
	loaded, err := w.accounts.Load(ctx, "42")
	require.NoError(t, err)
	require.True(t, loaded.Deleted)
	require.EqualValues(t, 9, loaded.Version())
	require.Equal(t, user.MaxFailures, loaded.Failures)
}

func TestErrorsAreToldApartByType(t *testing.T) {
	t.Parallel()
	w := setup(t)
	_, err := w.accounts.Load(ctx, "nobody")
	var missing *aggregate.Missing
	require.ErrorAs(t, err, &missing)
	_, err = w.accounts.Execute(ctx, "nobody", (*user.Account).Delete)
	require.ErrorAs(t, err, &missing)
	_, err = w.accounts.Create(ctx, "a", create("a@example.com"))
	require.NoError(t, err)
	_, err = w.accounts.Create(ctx, "a", create("b@example.com"))
	var exists *aggregate.Exists
	require.ErrorAs(t, err, &exists)
	require.EqualValues(t, 1, exists.Version)
	_, err = w.accounts.Create(ctx, "b", create("A@example.com"))
	var taken *aggregate.ClaimTaken
	require.ErrorAs(t, err, &taken)
	require.Equal(t, "a", taken.Stream)
	_, err = w.accounts.Execute(ctx, "a", changeEmail("c@example.com"), aggregate.WithVersion(7))
	var conflict *aggregate.Conflict
	require.ErrorAs(t, err, &conflict)
	require.EqualValues(t, 1, conflict.Actual)
	_, err = w.accounts.Execute(ctx, "a/b", (*user.Account).Delete)
	require.Error(t, err)
}

// The function of a call meets an append of somebody else each time.
func TestALostRaceRunsTheFunctionAgainOnFreshStateAndEndsSomeTime(t *testing.T) {
	t.Parallel()
	w := setup(t)
	other := open(t, w.pool, aggregate.Config{Snapshots: aggregate.NoSnapshots})
	_, err := w.accounts.Create(ctx, "a", create("a@example.com"))
	require.NoError(t, err)
	_, err = w.accounts.Execute(ctx, "a", (*user.Account).Activate)
	require.NoError(t, err)
	runs := 0
	meddle := func(times int) func(*user.Account) error {
		return func(a *user.Account) error {
			if runs++; runs <= times {
				_, err := other.accounts.Execute(ctx, "a", logIn(false))
				require.NoError(t, err)
			}
			return a.LogIn(user.LogIn{})
		}
	}
	result, err := w.accounts.Execute(ctx, "a", meddle(2))
	require.NoError(t, err)
	require.Equal(t, 3, runs)
	require.EqualValues(t, 5, result.Version)
	runs = 0
	_, err = w.accounts.Execute(ctx, "a", func(a *user.Account) error {
		_, err := other.accounts.Execute(ctx, "a", changeEmail(fmt.Sprintf("%d@example.com", a.Version())))
		require.NoError(t, err)
		return a.LogIn(user.LogIn{})
	}, aggregate.WithAttempts(3))
	var conflict *aggregate.Conflict
	require.ErrorAs(t, err, &conflict)
	require.Equal(t, 3, conflict.Attempts)
}

// A cached aggregate that another process has changed must not make a refusal.
func TestARefusalComesFromFreshState(t *testing.T) {
	t.Parallel()
	w := setup(t)
	other := open(t, w.pool, aggregate.Config{Snapshots: aggregate.NoSnapshots})
	_, err := w.accounts.Create(ctx, "a", create("a@example.com"))
	require.NoError(t, err)
	_, err = w.accounts.Execute(ctx, "a", logIn(true))
	require.ErrorIs(t, err, user.ErrInactive)
	_, err = other.accounts.Execute(ctx, "a", (*user.Account).Activate)
	require.NoError(t, err)
	result, err := w.accounts.Execute(ctx, "a", logIn(true))
	require.NoError(t, err)
	require.EqualValues(t, 3, result.Version)
	_, err = other.accounts.Execute(ctx, "a", (*user.Account).Delete)
	require.NoError(t, err)
	done, err := w.accounts.Execute(ctx, "a", (*user.Account).Delete) // raises nothing
	require.NoError(t, err)
	require.Empty(t, done.Events)
	require.EqualValues(t, 4, done.Version)
}

func TestAFunctionThatFailsOrPanicsLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	w := setup(t)
	_, err := w.accounts.Create(ctx, "a", create("a@example.com"))
	require.NoError(t, err)
	boom := errors.New("boom")
	_, err = w.accounts.Execute(ctx, "a", func(a *user.Account) error {
		require.NoError(t, a.Activate())
		return boom
	})
	require.ErrorIs(t, err, boom)
	require.Panics(t, func() {
		w.accounts.Execute(ctx, "a", func(a *user.Account) error {
			require.NoError(t, a.Activate())
			panic("at the disco")
		})
	})
	_, err = w.accounts.Execute(ctx, "a", logIn(true))
	require.ErrorIs(t, err, user.ErrInactive)
}

func TestACommandIDIsDoneOnce(t *testing.T) {
	t.Parallel()
	w := setup(t)
	first, err := w.accounts.Create(ctx, "a", create("a@example.com"), aggregate.WithCommandID("c1", "create"))
	require.NoError(t, err)
	// The state has moved on, so that running the function again would fail or do something else.
	_, err = w.accounts.Execute(ctx, "a", changeEmail("b@example.com"), aggregate.WithCommandID("c2", "change"))
	require.NoError(t, err)
	again, err := w.accounts.Create(ctx, "a", create("a@example.com"), aggregate.WithCommandID("c1", "create"))
	require.NoError(t, err)
	require.True(t, again.Replayed)
	require.Equal(t, first.Events, again.Events)
	require.Equal(t, first.Token(), again.Token())
	_, err = w.accounts.Execute(ctx, "a", changeEmail("c@example.com"), aggregate.WithCommandID("c1", "change"))
	require.ErrorIs(t, err, eventstore.ErrKeyReused)
	_, err = w.accounts.Create(ctx, "b", create("x@example.com"), aggregate.WithCommandID("c1", "create"))
	require.ErrorIs(t, err, eventstore.ErrKeyReused)

	var wg sync.WaitGroup
	var replayed atomic.Int32
	other := open(t, w.pool, aggregate.Config{Snapshots: aggregate.NoSnapshots})
	for i := range 16 {
		wg.Go(func() {
			accounts := []*aggregate.Repository[user.Account]{w.accounts, other.accounts}[i%2]
			result, err := accounts.Execute(ctx, "a", func(a *user.Account) error {
				return a.ChangeEmail(user.ChangeEmail{Email: fmt.Sprintf("%d@example.com", a.Version())})
			}, aggregate.WithCommandID("c3", "change"))
			if err != nil {
				t.Error(err)
				return
			}
			if result.Replayed {
				replayed.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 15, replayed.Load())
	a, err := w.accounts.Load(ctx, "a")
	require.NoError(t, err)
	require.EqualValues(t, 3, a.Version())
}

// Another process may do the same command meanwhile and, on another state, raise
// more events than this one would.
func TestACommandIDThatWasDoneMeanwhileWithOtherEventsIsReplayed(t *testing.T) {
	t.Parallel()
	w := setup(t)
	other := open(t, w.pool, aggregate.Config{Snapshots: aggregate.NoSnapshots})
	_, err := w.accounts.Create(ctx, "a", create("a@example.com"))
	require.NoError(t, err)
	id := aggregate.WithCommandID("c", "change")
	var meanwhile *aggregate.Result
	result, err := w.accounts.Execute(ctx, "a", func(a *user.Account) error {
		var err error
		meanwhile, err = other.accounts.Execute(ctx, "a", func(a *user.Account) error {
			require.NoError(t, a.ChangeEmail(user.ChangeEmail{Email: "b@example.com"}))
			return a.ChangeEmail(user.ChangeEmail{Email: "c@example.com"})
		}, id)
		require.NoError(t, err)
		return a.ChangeEmail(user.ChangeEmail{Email: "d@example.com"})
	}, id)
	require.NoError(t, err)
	require.True(t, result.Replayed)
	require.Equal(t, meanwhile.Events, result.Events)
	a, err := w.accounts.Load(ctx, "a")
	require.NoError(t, err)
	require.Equal(t, "c@example.com", a.Email)
}

func TestUnderACauseEachCallIsDoneOnceHoweverOftenItIsRepeated(t *testing.T) {
	t.Parallel()
	w := setup(t)
	act := func() {
		ctx := aggregate.WithCause(ctx, aggregate.Cause{Key: "event-1", Metadata: event.Metadata{Actor: "robot", CausationID: "event-1"}})
		for _, id := range []string{"a", "b"} {
			_, err := w.accounts.Create(ctx, id, create(id+"@example.com"))
			require.NoError(t, err)
		}
	}
	act()
	act()
	events, err := eventstore.NewReader(w.pool).StreamEvents(ctx, w.category(t), "b", 0, 10, false)
	require.NoError(t, err)
	require.Len(t, events, 1)
	require.Equal(t, "robot", events[0].Metadata.Actor)
	require.Equal(t, "event-1", events[0].Metadata.CausationID)
}

// What a command wrote into the state without an event must not be there for the
// next one, which would be allowed what the log does not allow.
func TestACommandThatWritesIntoTheStateLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	w := setup(t)
	_, err := w.accounts.Create(ctx, "a", create("a@example.com"))
	require.NoError(t, err)
	refusal := errors.New("no")
	for name, answer := range map[string]error{"refused": refusal, "without events": nil} {
		_, err = w.accounts.Execute(ctx, "a", func(a *user.Account) error { a.Active = true; return answer })
		require.Equal(t, answer, err, name)
		_, err = w.accounts.Execute(ctx, "a", logIn(true))
		require.ErrorIs(t, err, user.ErrInactive, name)
	}
}

func TestSeveralAggregatesChangeTogetherOrNotAtAll(t *testing.T) {
	t.Parallel()
	w := setup(t)
	for _, id := range []string{"a", "b"} {
		_, err := w.accounts.Create(ctx, id, create(id+"@example.com"))
		require.NoError(t, err)
	}
	// The address moves from one account to the other, whichever is named first.
	hand := func(from, to, address, rest string) error {
		_, err := w.runtime.Together(ctx, func(u *aggregate.Unit) error {
			taker, err := w.accounts.In(u, to)
			if err != nil {
				return err
			}
			giver, err := w.accounts.In(u, from)
			if err != nil {
				return err
			}
			if err := giver.ChangeEmail(user.ChangeEmail{Email: rest}); err != nil {
				return err
			}
			return taker.ChangeEmail(user.ChangeEmail{Email: address})
		})
		return err
	}
	var taken *aggregate.ClaimTaken
	err := hand("a", "b", "a@example.com", "b@example.com")
	require.ErrorAs(t, err, &taken, "an exchange is no sequence of releases and claims")
	_, err = w.accounts.Execute(ctx, "a", changeEmail("x@example.com"))
	require.NoError(t, err)
	require.NoError(t, hand("a", "b", "x@example.com", "y@example.com"))
	b, err := w.accounts.Load(ctx, "b")
	require.NoError(t, err)
	require.Equal(t, "x@example.com", b.Email)
	require.EqualValues(t, 2, b.Version())

	_, err = w.runtime.Together(ctx, func(u *aggregate.Unit) error {
		if _, err := w.accounts.NewIn(u, "a"); err == nil {
			return errors.New("a exists")
		}
		c, err := w.accounts.NewIn(u, "c")
		require.NoError(t, err)
		same, err := w.accounts.In(u, "c")
		require.NoError(t, err)
		require.Same(t, c, same)
		return c.Create(user.Create{Email: "x@example.com"})
	})
	require.ErrorAs(t, err, &taken)
	_, err = w.accounts.Load(ctx, "c")
	require.Error(t, err)
}

func TestAUnitThatLosesARaceRunsAgainAndIsDoneOnce(t *testing.T) {
	t.Parallel()
	w := setup(t)
	other := open(t, w.pool, aggregate.Config{Snapshots: aggregate.NoSnapshots})
	for _, id := range []string{"a", "b"} {
		_, err := w.accounts.Create(ctx, id, create(id+"@example.com"))
		require.NoError(t, err)
	}
	runs := 0
	activateBoth := func(u *aggregate.Unit) error {
		runs++
		for _, id := range []string{"a", "b"} {
			a, err := w.accounts.In(u, id)
			if err != nil {
				return err
			}
			if err := a.Activate(); err != nil {
				return err
			}
		}
		if runs == 1 {
			_, err := other.accounts.Execute(ctx, "b", changeEmail("c@example.com"))
			require.NoError(t, err)
		}
		return nil
	}
	for range 2 {
		result, err := w.runtime.Together(ctx, activateBoth, aggregate.WithCommandID("both", "activate"))
		require.NoError(t, err)
		require.Equal(t, 2, runs)
		require.Len(t, result.Appends, 2)
		require.EqualValues(t, 3, result.Appends[1].LastVersion)
	}
	nothing, err := w.runtime.Together(ctx, func(*aggregate.Unit) error { return nil })
	require.NoError(t, err)
	require.Empty(t, nothing.Appends)
}

func TestWaitingForAnAggregateEndsWithTheContext(t *testing.T) {
	t.Parallel()
	w := setup(t)
	_, err := w.accounts.Create(ctx, "a", create("a@example.com"))
	require.NoError(t, err)
	entered, leave := make(chan struct{}), make(chan struct{})
	go w.accounts.Execute(ctx, "a", func(a *user.Account) error { close(entered); <-leave; return nil })
	<-entered
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	_, err = w.accounts.Execute(short, "a", (*user.Account).Activate)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	close(leave)
	_, err = w.accounts.Execute(ctx, "a", (*user.Account).Activate)
	require.NoError(t, err)
}

// Callers that talk to other servers too, such as reactions, must be able to tell
// whose absence an error is.
func TestTheAbsenceOfTheDatabaseIsMarkedAndOtherErrorsAreNot(t *testing.T) {
	t.Parallel()
	w := setup(t)
	_, err := w.accounts.Create(ctx, "a", create("a@example.com"))
	require.NoError(t, err)
	_, err = w.accounts.Execute(ctx, "a", func(*user.Account) error { return io.EOF })
	require.ErrorIs(t, err, io.EOF)
	require.NotErrorIs(t, err, eventstore.ErrUnavailable)

	deps := w.forAnother()
	deps.Pool, err = pgxpool.New(ctx, "postgres://127.0.0.1:1/nowhere")
	require.NoError(t, err)
	t.Cleanup(deps.Pool.Close)
	away, err := aggregate.NewRuntime(aggregate.Config{}, deps)
	require.NoError(t, err)
	accounts, err := aggregate.Open(away, user.Define())
	require.NoError(t, err)
	activate := (*user.Account).Activate
	for name, call := range map[string]func() error{
		"load":    func() error { _, err := accounts.Load(ctx, "a"); return err },
		"at":      func() error { _, err := accounts.At(ctx, "a", aggregate.Moment{Version: 1}); return err },
		"execute": func() error { _, err := accounts.Execute(ctx, "a", activate); return err },
		"with key": func() error {
			_, err := accounts.Execute(ctx, "a", activate, aggregate.WithCommandID("k", ""))
			return err
		},
		"replay": func() error {
			return accounts.Replay(ctx, "a", 0, func(*event.Event, json.RawMessage) error { return nil })
		},
		"together": func() error {
			_, err := away.Together(ctx, func(u *aggregate.Unit) error { _, err := accounts.In(u, "a"); return err })
			return err
		},
	} {
		require.ErrorIs(t, call(), eventstore.ErrUnavailable, name)
	}
}
