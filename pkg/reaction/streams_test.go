package reaction_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/reaction"
	"github.com/refoldhq/refold/schemas/user"
)

// neighbour returns the id of a stream in the same slot as another.
func (w *writer) neighbour(id string) string {
	for n := 0; ; n++ {
		if other := fmt.Sprint(id, n); w.category.SlotOf(other) == w.category.SlotOf(id) {
			return other
		}
	}
}

// passed tells whether the slot of a stream is written down as dealt with to its end.
func (w *writer) passed(id string) bool {
	var passed bool
	err := w.pool.QueryRow(context.Background(), `select p.seq = (select max(seq) from refold.event e where e.slot = p.slot) from refold.reaction_progress p where slot = $1`,
		w.category.SlotOf(id)).Scan(&passed)
	return err == nil && passed
}

// A function that takes long holds up its own stream, and neither the others of the
// slot nor those of other slots, however much of them comes.
func TestASlowStreamHoldsUpNobody(t *testing.T) {
	t.Parallel()
	w := setup(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	run(t, w.activator(reaction.Config{FromStart: true, Workers: 2}, func(_, stream string) error {
		if stream == "slow" {
			close(entered)
			<-leave
		}
		return nil
	}))
	w.create(t, "slow")
	<-entered
	near := w.neighbour("slow")
	ids := []string{near}
	for i := range 20 {
		ids = append(ids, fmt.Sprint("u", i))
	}
	for _, id := range ids {
		w.create(t, id)
		w.verify(t, id)
	}
	for _, id := range ids {
		w.awaitAll(t, id, "UserActivated", "UserLoggedIn")
	}
	require.False(t, w.passed("slow"), "its event is not handled yet")
	close(leave)
	w.await(t, "slow", "UserCreated", "UserActivated")
	require.Eventually(t, func() bool { return w.passed("slow") }, 60*time.Second, 5*time.Millisecond)
}

// awaitAll waits until a stream has events of some types, in whatever order the
// reaction's fall between the others.
func (w *writer) awaitAll(t testing.TB, id string, types ...string) {
	t.Helper()
	require.Eventually(t, func() bool {
		has := make(map[string]bool)
		for _, typ := range w.types(t, id) {
			has[typ] = true
		}
		for _, typ := range types {
			if !has[typ] {
				return false
			}
		}
		return true
	}, 60*time.Second, 10*time.Millisecond, id)
}

// An event that is tried again later takes nobody's turn meanwhile.
func TestAFailingStreamHoldsUpNobody(t *testing.T) {
	t.Parallel()
	w := setup(t)
	run(t, w.activator(reaction.Config{FromStart: true, Workers: 1, Attempts: 1 << 30}, func(_, stream string) error {
		if stream == "failing" {
			return errors.New("again")
		}
		return nil
	}))
	w.create(t, "failing")
	require.Eventually(t, func() bool { return w.log.contains("an event was not handled") }, 60*time.Second, time.Millisecond)
	near := w.neighbour("failing")
	w.create(t, near)
	w.await(t, near, "UserCreated", "UserActivated")
}

// The keys of a reaction's commands outlive all others for as long as their event
// may be handled again: until its slot has passed it, and its stream is not parked.
func TestKeysAreKeptWhileTheirEventMayBeHandledAgain(t *testing.T) {
	t.Parallel()
	w := setup(t)
	store := eventstore.New(eventstore.Config{}, w.runtime.Deps().Logger, prometheus.NewRegistry())
	sweep := func() (left int) {
		_, err := w.pool.Exec(context.Background(), `update refold.idempotency_key set recorded = recorded - interval '1 year'`)
		require.NoError(t, err)
		_, err = store.SweepKeys(context.Background(), w.pool, 24*time.Hour)
		require.NoError(t, err)
		require.NoError(t, w.pool.QueryRow(context.Background(), `select count(*) from refold.idempotency_key`).Scan(&left))
		return left
	}
	done, leave := make(chan struct{}), make(chan error, 1)
	c := reaction.New(w.runtime, reaction.Config{Name: "activator", Category: "User", FromStart: true, Attempts: 1, Poll: 50 * time.Millisecond})
	calls := 0
	reaction.On(c, func(ctx context.Context, e reaction.Event[user.UserCreated]) error {
		_, err := w.accounts.Execute(ctx, e.Stream, (*user.Account).Activate)
		require.NoError(t, err)
		_, err = w.accounts.Execute(ctx, e.Stream, func(a *user.Account) error { return a.LogIn(user.LogIn{Succeeded: true}) })
		require.NoError(t, err)
		if calls++; calls <= 2 {
			done <- struct{}{}
			return <-leave
		}
		return nil
	})
	run(t, c)
	_, err := w.pool.Exec(context.Background(), `insert into refold.idempotency_key select k, '', '' from unnest('{plain,reaction/x,reaction/activator/none/1}'::text[]) k`)
	require.NoError(t, err)
	w.create(t, "a")
	<-done
	require.Equal(t, 2, sweep(), "it was not passed")
	leave <- errors.New("parked behind its commands")
	w.awaitParked(t, 1)
	require.Eventually(t, func() bool { return w.passed("a") }, 60*time.Second, 5*time.Millisecond)
	require.Equal(t, 2, sweep(), "it is parked")
	require.NoError(t, reaction.Retry(context.Background(), w.pool, "activator", "User", "a", 1, "mended"))
	<-done
	// Somebody else asks for another thing while the first is carried out: it is not forgotten.
	require.NoError(t, reaction.Skip(context.Background(), w.pool, "activator", "User", "a", 1, "not needed"))
	leave <- errors.New("not mended")
	w.awaitParked(t, 0)
	require.Equal(t, 2, calls, "it was skipped then")
	require.Equal(t, []string{"UserCreated", "UserActivated", "UserLoggedIn"}, w.types(t, "a"))
	require.Zero(t, sweep())
}

// A failover that loses the tail of the log loses the progress over it too: the
// reaction notices, and goes on where both agree.
func TestALostTailIsGoneOnFromByItself(t *testing.T) {
	t.Parallel()
	w := setup(t)
	run(t, w.activator(reaction.Config{FromStart: true}, nil))
	w.create(t, "a")
	w.await(t, "a", "UserCreated", "UserActivated")
	require.Eventually(t, func() bool { return w.passed("a") }, 60*time.Second, 5*time.Millisecond)
	near := w.neighbour("a")
	tx, err := w.pool.Begin(context.Background())
	require.NoError(t, err)
	for _, sql := range []string{
		`delete from refold.event where stream = 'a'`, `delete from refold.claim`, `delete from refold.idempotency_key`,
		`update refold.reaction_progress set seq = 0, event = null`,
	} {
		_, err := tx.Exec(context.Background(), sql)
		require.NoError(t, err)
	}
	require.NoError(t, tx.Commit(context.Background()))
	w.create(t, near)
	w.verify(t, near)
	w.awaitAll(t, near, "UserActivated", "UserLoggedIn")
	stopped, err := reaction.StoppedSlots(context.Background(), w.pool, "activator")
	require.NoError(t, err)
	require.Empty(t, stopped)
}

// A reaction that has changed its category leaves parked streams behind, whose names
// may be those of streams that it handles now.
func TestParkedStreamsOfAnotherCategoryHoldUpNobody(t *testing.T) {
	t.Parallel()
	w := setup(t)
	_, err := w.pool.Exec(context.Background(), `insert into refold.reaction_parked (reaction, category, stream, version, event, attempts, error)
		select 'activator', 'Order', id, 1, gen_random_uuid(), 1, 'of old' from unnest('{free,parked}'::text[]) id`)
	require.NoError(t, err)
	run(t, w.activator(reaction.Config{FromStart: true}, func(_, stream string) error {
		if stream == "parked" {
			return reaction.Permanent(errors.New("it cannot be"))
		}
		return nil
	}))
	w.create(t, "free")
	w.await(t, "free", "UserCreated", "UserActivated")
	w.create(t, "parked")
	w.awaitParked(t, 3)

	require.NoError(t, reaction.Skip(context.Background(), w.pool, "activator", "Order", "parked", 1, "of old"))
	w.create(t, "later") // it is handled in the session that the request has woken
	w.await(t, "later", "UserCreated", "UserActivated")
	list := w.awaitParked(t, 3)
	require.Equal(t, []string{"Order/free ", "Order/parked skip", "User/parked "}, []string{told(list[0]), told(list[1]), told(list[2])})
}

func told(p reaction.Parked) string { return p.Category + "/" + p.Stream + " " + p.Request }
