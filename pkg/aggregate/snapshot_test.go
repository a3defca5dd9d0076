package aggregate_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/schemas/user"
)

// state returns an account's state as the log has it.
func (w *writer) state(t testing.TB, id string) string {
	t.Helper()
	view, err := w.accounts.At(ctx, id, aggregate.Moment{})
	require.NoError(t, err)
	return string(view.State)
}

func (w *writer) codec(t testing.TB) *aggregate.Codec[user.Account] {
	t.Helper()
	codec, err := aggregate.NewCodec(user.Define(), w.deps.Contracts, w.deps.SchemaIDs)
	require.NoError(t, err)
	return codec
}

// read returns the snapshot of an account that loads would use, and how many
// events they would fold behind it.
func (w *writer) read(t testing.TB, id string) (eventstore.Snapshot, int) {
	t.Helper()
	loaded, err := w.snapshots.Load(ctx, w.category(t), id, w.codec(t).Fingerprint(), 1000, false)
	require.NoError(t, err)
	return loaded.Snapshot, len(loaded.Events)
}

func TestSnapshotsAreWrittenByPolicyAndEqualTheFullReplay(t *testing.T) {
	t.Parallel()
	plain := setup(t)
	w := open(t, plain.pool, aggregate.Config{Snapshots: aggregate.Policy{Events: 10}})
	_, err := w.accounts.Create(ctx, "a", create("0@example.com"))
	require.NoError(t, err)
	for i := range 34 {
		_, err := w.accounts.Execute(ctx, "a", changeEmail(fmt.Sprintf("%d@example.com", i+1)))
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { snap, _ := w.read(t, "a"); return snap.Version >= 30 }, 60*time.Second, 10*time.Millisecond)
	snap, behind := w.read(t, "a")
	require.LessOrEqual(t, behind, 9)
	require.Contains(t, string(snap.State), `"email":`)
	verified, err := w.accounts.VerifySnapshots(ctx)
	require.NoError(t, err)
	require.Equal(t, 1, verified)
	for version := int64(1); version <= 35; version++ { // from the snapshot and from the beginning
		view, err := w.accounts.At(ctx, "a", aggregate.Moment{Version: version})
		require.NoError(t, err)
		require.Contains(t, string(view.State), fmt.Sprintf(`"%d@example.com"`, version-1))
	}
	result, err := plain.accounts.Execute(ctx, "a", changeEmail("z@example.com"))
	require.NoError(t, err)
	require.EqualValues(t, 36, result.Version)
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		policy aggregate.Policy
		many   bool
	}{{aggregate.Policy{Bytes: 60}, true}, {aggregate.Policy{Age: time.Nanosecond}, true}, {aggregate.Policy{Bytes: 1 << 20, Age: time.Hour, Events: 100}, false}} {
		w := open(t, setup(t).pool, aggregate.Config{Snapshots: c.policy})
		_, err := w.accounts.Create(ctx, "a", create("a@example.com"))
		require.NoError(t, err)
		for i := range 5 {
			_, err := w.accounts.Execute(ctx, "a", changeEmail(fmt.Sprintf("a-longer-address-%d@example.com", i)))
			require.NoError(t, err)
		}
		if c.many {
			require.Eventually(t, func() bool { snap, _ := w.read(t, "a"); return snap.Version > 0 }, 60*time.Second, 10*time.Millisecond, "%+v", c.policy)
			continue
		}
		snap, _ := w.read(t, "a")
		require.Zero(t, snap.Version)
	}
}

func TestATypeMayHaveAPolicyOfItsOwn(t *testing.T) {
	t.Parallel()
	w := setup(t) // its runtime writes none
	deps := w.forAnother()
	rt, err := aggregate.NewRuntime(aggregate.Config{Snapshots: aggregate.NoSnapshots}, deps)
	require.NoError(t, err)
	d := user.Define()
	d.SnapshotBy(aggregate.Policy{Events: 1})
	accounts, err := aggregate.Open(rt, d)
	require.NoError(t, err)
	running, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); rt.Run(running) }()
	t.Cleanup(func() { stop(); <-done })
	_, err = accounts.Create(ctx, "a", create("a@example.com"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { snap, _ := w.read(t, "a"); return snap.Version == 1 }, 60*time.Second, 10*time.Millisecond)
}

func TestPlantedStalenessIsCaught(t *testing.T) {
	t.Parallel()
	w := setup(t)
	for _, id := range []string{"good", "stale", "lost", "broken"} {
		_, err := w.accounts.Create(ctx, id, create(id+"@example.com"))
		require.NoError(t, err)
		for i := range 3 {
			_, err = w.accounts.Execute(ctx, id, changeEmail(fmt.Sprintf("%s%d@example.com", id, i)))
			require.NoError(t, err)
		}
		require.NoError(t, w.accounts.Snapshot(ctx, id))
	}
	// A state of an older version under the present one, with the right event.
	stale, _ := w.read(t, "stale")
	stale.State = []byte(`{"email":"stale@example.com","verified":false,"active":false,"locked":false,"deleted":false,"failures":0}`)
	require.NoError(t, w.snapshots.Write(ctx, w.category(t), "stale", w.codec(t).Fingerprint(), stale))
	require.Contains(t, w.state(t, "stale"), `"stale@example.com"`, "loads believe a snapshot whose event is there")
	// One of an event that a failover has taken away.
	lost, _ := w.read(t, "lost")
	lost.Event, lost.State = event.NewID(), []byte(`{"email":"wrong"}`)
	require.NoError(t, w.snapshots.Write(ctx, w.category(t), "lost", w.codec(t).Fingerprint(), lost))
	require.Contains(t, w.state(t, "lost"), `"lost2@example.com"`, "loads ignore it")
	// One beyond the end of the stream.
	lost.Version = 99
	require.NoError(t, w.snapshots.Write(ctx, w.category(t), "lost", w.codec(t).Fingerprint(), lost))
	require.Contains(t, w.state(t, "lost"), `"lost2@example.com"`)
	_, err := w.accounts.Execute(ctx, "lost", changeEmail("lost9@example.com"))
	require.NoError(t, err)
	require.NoError(t, w.accounts.Snapshot(ctx, "lost"), "it gives way to a snapshot of an event that is there")
	snap, _ := w.read(t, "lost")
	require.EqualValues(t, 5, snap.Version)
	// One that cannot be read.
	broken, _ := w.read(t, "broken")
	broken.State = []byte(`{"email":7}`)
	require.NoError(t, w.snapshots.Write(ctx, w.category(t), "broken", w.codec(t).Fingerprint(), broken))
	loaded, err := w.accounts.Load(ctx, "broken")
	require.NoError(t, err)
	require.Equal(t, "broken2@example.com", loaded.Email)

	verified, err := w.accounts.VerifySnapshots(ctx)
	require.Equal(t, 4, verified)
	var wrong *aggregate.StaleSnapshot
	require.ErrorAs(t, err, &wrong)
	require.ErrorContains(t, err, "User stale at version 4")
	require.ErrorContains(t, err, "User broken at version 4")
	require.NotContains(t, err.Error(), "good")
	require.Contains(t, w.state(t, "stale"), `"stale2@example.com"`, "what was wrong is gone")
	verified, err = w.accounts.VerifySnapshots(ctx)
	require.NoError(t, err)
	require.Equal(t, 2, verified)
}

// narrow is an account of another program version, which knows less.
type narrow struct {
	aggregate.Root
	Email string
}

type narrowCreated user.UserCreated
type narrowChanged user.UserEmailChanged

func (e narrowCreated) Apply(a *narrow) { a.Email = e.Email }
func (e narrowChanged) Apply(a *narrow) { a.Email = e.NewEmail }

func defineNarrow(revision int) *aggregate.Definition[narrow] {
	d := aggregate.Define[narrow]("User")
	aggregate.OnNamed[narrowCreated](d, "UserCreated")
	aggregate.OnNamed[narrowChanged](d, "UserEmailChanged")
	d.Ignore("UserActivated", "UserEmailVerified", "UserLoggedIn", "UserLoginFailed", "UserLocked", "UserDeleted")
	d.Revise(revision)
	return d
}

func TestAnotherStateTypeOrRevisionIgnoresSnapshotsAndSweepsThemLater(t *testing.T) {
	t.Parallel()
	w := setup(t)
	_, err := w.accounts.Create(ctx, "a", create("a@example.com"))
	require.NoError(t, err)
	require.NoError(t, w.accounts.Snapshot(ctx, "a"))
	// The snapshot says something that no event does, so whoever uses it is seen.
	_, err = w.pool.Exec(ctx, `update refold.snapshot set state = '{"email":"planted"}'`)
	require.NoError(t, err)
	require.Contains(t, w.state(t, "a"), "planted")
	deps := w.forAnother()
	seen := make(map[string]bool)
	for revision := range 2 {
		rt, err := aggregate.NewRuntime(aggregate.Config{}, deps)
		require.NoError(t, err)
		accounts, err := aggregate.Open(rt, defineNarrow(revision))
		require.NoError(t, err)
		a, err := accounts.Load(ctx, "a")
		require.NoError(t, err)
		require.Equal(t, "a@example.com", a.Email)
		codec, err := aggregate.NewCodec(defineNarrow(revision), deps.Contracts, deps.SchemaIDs)
		require.NoError(t, err)
		require.False(t, seen[string(codec.Fingerprint())])
		seen[string(codec.Fingerprint())] = true
		require.NoError(t, accounts.Snapshot(ctx, "a"))
		require.NoError(t, accounts.Sweep(ctx, time.Hour))
		require.Contains(t, w.state(t, "a"), "planted", "a writer of the other version may still run")
		if revision == 1 {
			require.NoError(t, accounts.Sweep(ctx, 0))
		}
	}
	require.Contains(t, w.state(t, "a"), "a@example.com")
	var n int
	require.NoError(t, w.pool.QueryRow(ctx, `select count(*) from refold.snapshot`).Scan(&n))
	require.Equal(t, 1, n)
}

// An aggregate that is changed together with others only has snapshots too, and
// the call is counted.
func TestSnapshotsAreWrittenOfAggregatesThatChangeTogether(t *testing.T) {
	t.Parallel()
	w := open(t, devstack.MigratedDatabase(t), aggregate.Config{Snapshots: aggregate.Policy{Events: 10}})
	ids := []string{"a", "b"}
	change := func(n int, join func(*aggregate.Unit, string) (*user.Account, error), f func(a *user.Account, email string) error) error {
		_, err := w.runtime.Together(ctx, func(u *aggregate.Unit) error {
			for _, id := range ids {
				a, err := join(u, id)
				if err != nil {
					return err
				}
				if err := f(a, fmt.Sprintf("%s%d@example.com", id, n)); err != nil {
					return err
				}
			}
			return nil
		})
		return err
	}
	changed := func(a *user.Account, email string) error { return a.ChangeEmail(user.ChangeEmail{Email: email}) }
	require.Error(t, change(0, w.accounts.In, changed), "there is none")
	require.NoError(t, change(0, w.accounts.NewIn, func(a *user.Account, email string) error { return a.Create(user.Create{Email: email}) }))
	for n := range 11 {
		require.NoError(t, change(n+1, w.accounts.In, changed))
	}
	for _, id := range ids {
		require.Eventually(t, func() bool { snap, _ := w.read(t, id); return snap.Version >= 10 }, 60*time.Second, 10*time.Millisecond)
	}
	verified, err := w.accounts.VerifySnapshots(ctx)
	require.NoError(t, err)
	require.Equal(t, 2, verified)
	require.Equal(t, map[string]float64{"missing": 1, "ok": 12}, w.commands(t))
}

// commands returns how many calls were counted, by outcome.
func (w *writer) commands(t testing.TB) map[string]float64 {
	t.Helper()
	families, err := w.deps.Metrics.(prometheus.Gatherer).Gather()
	require.NoError(t, err)
	counts := make(map[string]float64)
	for _, f := range families {
		if f.GetName() != "refold_commands_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "outcome" {
					counts[l.GetValue()] += m.GetCounter().GetValue()
				}
			}
		}
	}
	return counts
}
