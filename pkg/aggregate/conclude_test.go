package aggregate_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/schemas/user"
)

var errNo = errors.New("no")

// A server that was restarted is waited for.
const (
	devstackWait = time.Minute
	tick         = 10 * time.Millisecond
)

// activateUnlessActive raises nothing for an account that is active.
func activateUnlessActive(runs *int) func(*user.Account) error {
	return func(a *user.Account) error {
		*runs++
		return a.Activate()
	}
}

func TestACommandThatRaisedNothingIsDoneOnceToo(t *testing.T) {
	t.Parallel()
	w := setup(t)
	other := open(t, w.pool, aggregate.Config{Snapshots: aggregate.NoSnapshots})
	_, err := w.accounts.Create(ctx, "a", create("a@example.com"))
	require.NoError(t, err)
	_, err = w.accounts.Execute(ctx, "a", (*user.Account).Activate)
	require.NoError(t, err)
	for name, warm := range map[string]bool{"warm": true, "cold": false} {
		first := w
		if !warm {
			first = other
		}
		runs, id := 0, aggregate.WithCommandID(name, "touch")
		done, err := first.accounts.Execute(ctx, "a", activateUnlessActive(&runs), id)
		require.NoError(t, err)
		require.Empty(t, done.Events)
		require.False(t, done.Replayed)
		at := done.Version
		// On the state of later it would raise an event.
		_, err = w.accounts.Execute(ctx, "a", changeEmail(name+"@example.com"))
		require.NoError(t, err)
		for range 2 {
			again, err := w.accounts.Execute(ctx, "a", changeEmail("late@example.com"), id)
			require.NoError(t, err)
			require.Equal(t, &aggregate.Result{Category: "User", ID: "a", Version: at, Replayed: true}, again)
		}
		require.Equal(t, 1, runs)
		_, err = w.accounts.Execute(ctx, "a", activateUnlessActive(&runs), aggregate.WithCommandID(name, "another"))
		require.ErrorIs(t, err, eventstore.ErrKeyReused)
	}
	// What was refused frees its id.
	_, err = w.accounts.Execute(ctx, "a", func(*user.Account) error { return errNo }, aggregate.WithCommandID("refused", ""))
	require.ErrorIs(t, err, errNo)
	done, err := w.accounts.Execute(ctx, "a", changeEmail("free@example.com"), aggregate.WithCommandID("refused", ""))
	require.NoError(t, err)
	require.False(t, done.Replayed)
}

// Callers of one id, some of which would raise an event and some not, all get what
// the first did.
func TestOneIDHasOneOutcomeWhateverEachWouldHaveDone(t *testing.T) {
	t.Parallel()
	w := setup(t)
	other := open(t, w.pool, aggregate.Config{Snapshots: aggregate.NoSnapshots})
	_, err := w.accounts.Create(ctx, "a", create("a@example.com"))
	require.NoError(t, err)
	_, err = w.accounts.Execute(ctx, "a", (*user.Account).Activate)
	require.NoError(t, err)
	for round := range 20 {
		id := aggregate.WithCommandID(fmt.Sprint(round), "x")
		var all sync.WaitGroup
		var fresh, events, calls atomic.Int64
		for i := range 8 {
			all.Go(func() {
				accounts := []*aggregate.Repository[user.Account]{w.accounts, other.accounts}[i%2]
				done, err := accounts.Execute(ctx, "a", func(a *user.Account) error {
					if calls.Add(1)%2 == 0 {
						return nil
					}
					return a.LogIn(user.LogIn{Succeeded: true})
				}, id)
				if err != nil {
					t.Error(err)
					return
				}
				if !done.Replayed {
					fresh.Add(1)
				}
				events.Add(int64(len(done.Events)))
			})
		}
		all.Wait()
		require.EqualValues(t, 1, fresh.Load())
		require.Contains(t, []int64{0, 8}, events.Load())
	}
}

// What was decided on two aggregates holds for both when it is stored.
func TestADecisionOnSeveralAggregatesHoldsForAllOfThem(t *testing.T) {
	t.Parallel()
	w := setup(t)
	other := open(t, w.pool, aggregate.Config{Snapshots: aggregate.NoSnapshots})
	for _, id := range []string{"a", "b"} {
		_, err := w.accounts.Create(ctx, id, create(id+"@example.com"))
		require.NoError(t, err)
	}
	for name, meanwhile := range map[string]func() error{
		"changed": func() error {
			_, err := other.accounts.Execute(ctx, "b", (*user.Account).Activate)
			return err
		},
		"created": func() error {
			_, err := other.accounts.Create(ctx, "c", create("c@example.com"))
			return err
		},
	} {
		runs := 0
		done, err := w.runtime.Together(ctx, func(u *aggregate.Unit) error {
			runs++
			a, err := w.accounts.In(u, "a")
			require.NoError(t, err)
			b, err := w.accounts.In(u, "b")
			require.NoError(t, err)
			_, missing := w.accounts.In(u, "c")
			if runs == 1 {
				require.NoError(t, meanwhile())
			} else if name == "changed" {
				require.True(t, b.Active)
			} else {
				require.NoError(t, missing)
			}
			return a.ChangeEmail(user.ChangeEmail{Email: name + "@example.com"})
		})
		require.NoError(t, err)
		require.Equal(t, 2, runs, name)
		require.Len(t, done.Appends, 1)
	}
}

// An error, and an answer without events, speak of states that were there together.
func TestWhatIsAnsweredWithoutEventsWasTrueAtOneMoment(t *testing.T) {
	t.Parallel()
	w := setup(t)
	other := open(t, w.pool, aggregate.Config{Snapshots: aggregate.NoSnapshots})
	for _, id := range []string{"a", "b"} {
		_, err := w.accounts.Create(ctx, id, create(id+"@example.com"))
		require.NoError(t, err)
		_, err = w.accounts.Execute(ctx, id, (*user.Account).Activate)
		require.NoError(t, err)
	}
	for _, answer := range []error{nil, errNo} {
		runs := 0
		done, err := w.runtime.Together(ctx, func(u *aggregate.Unit) error {
			runs++
			_, err := w.accounts.In(u, "a")
			require.NoError(t, err)
			if runs == 1 {
				_, err := other.runtime.Together(ctx, func(u *aggregate.Unit) error {
					for _, id := range []string{"a", "b"} {
						account, err := other.accounts.In(u, id)
						require.NoError(t, err)
						require.NoError(t, account.LogIn(user.LogIn{Succeeded: true}))
					}
					return nil
				})
				require.NoError(t, err)
			}
			_, err = w.accounts.In(u, "b")
			require.NoError(t, err)
			return answer
		})
		require.ErrorIs(t, err, answer)
		require.Equal(t, 2, runs)
		if answer == nil {
			require.Empty(t, done.Appends)
		}
	}
	// It ends: with a conflict.
	_, err := w.runtime.Together(ctx, func(u *aggregate.Unit) error {
		_, err := w.accounts.In(u, "a")
		require.NoError(t, err)
		_, err = other.accounts.Execute(ctx, "a", logIn(true))
		require.NoError(t, err)
		_, err = w.accounts.In(u, "b")
		require.NoError(t, err)
		return errNo
	}, aggregate.WithAttempts(3))
	var conflict *aggregate.Conflict
	require.ErrorAs(t, err, &conflict)
	require.Equal(t, 3, conflict.Attempts)
	require.Equal(t, conflict.Expected+1, conflict.Actual)
}

func TestAUnitThatRaisedNothingIsDoneOnce(t *testing.T) {
	t.Parallel()
	w := setup(t)
	_, err := w.accounts.Create(ctx, "a", create("a@example.com"))
	require.NoError(t, err)
	runs := 0
	for i := range 2 {
		done, err := w.runtime.Together(ctx, func(u *aggregate.Unit) error {
			runs++
			_, err := w.accounts.In(u, "a")
			return err
		}, aggregate.WithCommandID("look", ""))
		require.NoError(t, err)
		require.Equal(t, i == 1, done.Replayed)
		require.Empty(t, done.Appends)
	}
	require.Equal(t, 1, runs)
}

func TestAUnitIsAskedForNoVersion(t *testing.T) {
	t.Parallel()
	w := setup(t)
	for _, option := range []aggregate.Option{aggregate.WithVersion(0), aggregate.WithVersion(7), aggregate.WithExisting()} {
		_, err := w.runtime.Together(ctx, func(u *aggregate.Unit) error {
			t.Error("it was run")
			return nil
		}, option)
		require.ErrorContains(t, err, "for calls about one")
	}
}

// After a failover that has lost the tail of the log another event may stand under
// the version that is warm: nothing may be stored or answered on its behalf.
func TestAWarmAggregateDoesNotOutliveTheTailOfTheLog(t *testing.T) {
	t.Parallel()
	server, err := devstack.StartPostgres(ctx, devstack.PostgresConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { server.Stop("immediate") })
	pool, err := postgres.Open(ctx, postgres.Config{URL: server.URL("postgres"), MaxConns: 4})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.NoError(t, postgres.Migrate(ctx, pool))
	cfg := aggregate.Config{Snapshots: aggregate.NoSnapshots}
	warm, other := open(t, pool, cfg), open(t, pool, cfg)
	for _, id := range []string{"stored", "refused"} {
		_, err = warm.accounts.Create(ctx, id, create(id+"@example.com"))
		require.NoError(t, err)
		_, err = warm.accounts.Execute(ctx, id, changeEmail("lost-"+id+"@example.com"))
		require.NoError(t, err)
	}
	require.NoError(t, server.Stop("fast"))
	require.NoError(t, server.Start())
	require.Eventually(t, func() bool { return pool.Ping(ctx) == nil }, devstackWait, tick)
	_, err = pool.Exec(ctx, `with lost as (delete from refold.event where version = 2) delete from refold.claim where value like 'lost-%'`)
	require.NoError(t, err)
	for _, id := range []string{"stored", "refused"} {
		untilUp(t, func() error {
			_, err := other.accounts.Execute(ctx, id, func(a *user.Account) error {
				if a.Version() > 1 {
					return aggregate.Invariant("done", "it happened")
				}
				return a.ChangeEmail(user.ChangeEmail{Email: "new-" + id + "@example.com"})
			})
			return err
		})
	}
	var saw string
	look := func(a *user.Account) error {
		saw = a.Email
		return a.ChangeEmail(user.ChangeEmail{Email: "next@example.com"})
	}
	done, err := warm.accounts.Execute(ctx, "stored", look)
	require.NoError(t, err)
	require.Equal(t, "new-stored@example.com", saw)
	require.EqualValues(t, 3, done.Version)
	_, err = warm.accounts.Execute(ctx, "refused", func(a *user.Account) error { saw = a.Email; return errNo })
	require.ErrorIs(t, err, errNo)
	require.Equal(t, "new-refused@example.com", saw)
}

// untilUp repeats what fails while the server comes back.
func untilUp(t *testing.T, f func() error) {
	t.Helper()
	var broken *aggregate.Broken
	require.Eventually(t, func() bool { err := f(); return err == nil || errors.As(err, &broken) }, devstackWait, tick)
}
