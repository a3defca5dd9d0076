package rebuilder

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/postgres"
)

// While programs are upgraded one by one, those of the former definition are asked
// for rebuilds too, and ask by themselves. None of that takes a field away.
func TestFormerDefinitionIsNotGoneBackToUnasked(t *testing.T) {
	t.Parallel()
	for _, inPlace := range []bool{true, false} {
		w := setup(t, narrowYAML)
		w.some(100)
		w.follow()
		w.settle("narrow", 1)
		former := w.rebuilder()
		w.define(wideYAML)
		newer := w.rebuilder()

		// The newer one asks. Both serve, and only the newer one takes it up.
		id, err := newer.Request(w.ctx, "narrow", Options{Fresh: !inPlace})
		require.NoError(t, err)
		former.RequestIfDue(w.ctx, "narrow")
		one, err := former.Get(w.ctx, id)
		require.NoError(t, err)
		former.serveOne(w.ctx, one)
		one, err = former.Get(w.ctx, id)
		require.NoError(t, err)
		require.Equal(t, Requested, one.State)
		require.Contains(t, one.Error, "another definition")
		serving, stop := context.WithCancel(w.ctx)
		ended := make(chan struct{})
		go func() { defer close(ended); newer.Serve(serving) }()
		require.Eventually(t, func() bool {
			one, err := former.Get(w.ctx, id)
			return err == nil && one.State == Done
		}, 60*time.Second, 20*time.Millisecond)
		stop()
		<-ended
		has := func() bool {
			return w.number(`select count(*) from `+w.leaf("narrow")+` where not data ? 'failed'`) == 0
		}
		require.True(t, has())

		// Those of the former one are restarted, asked over HTTP, and by a Job.
		former.RequestIfDue(w.ctx, "narrow")
		open, err := former.Open(w.ctx)
		require.NoError(t, err)
		require.Empty(t, open)
		var left *Left
		_, err = former.Request(w.ctx, "narrow", Options{})
		require.ErrorAs(t, err, &left)
		_, err = former.Run(w.ctx, "narrow", Options{Fresh: true}, nil)
		require.ErrorAs(t, err, &left)
		plan, err := former.Plan(w.ctx, "narrow", Options{}, false)
		require.NoError(t, err)
		require.Contains(t, plan.Warnings[0], "--back")
		require.True(t, has())

		// A roll back is not undone by what asks by itself.
		if !inPlace {
			_, err = newer.RollBack(w.ctx, "narrow")
			require.NoError(t, err)
			newer.RequestIfDue(w.ctx, "narrow")
			open, err = newer.Open(w.ctx)
			require.NoError(t, err)
			require.Empty(t, open)
			_, err = newer.RollBack(w.ctx, "narrow")
			require.NoError(t, err)
		}

		// Somebody says so.
		done, err := former.Run(w.ctx, "narrow", Options{Back: true}, nil)
		require.NoError(t, err)
		require.Equal(t, done.Version, w.active("narrow"))
		require.False(t, has())
	}
}

// A request that nobody has taken up gives way to one by another definition: who
// asked for it may be gone, and would block all others.
func TestRequestOfAVanishedDeploymentGivesWay(t *testing.T) {
	t.Parallel()
	w := setup(t, narrowYAML)
	w.some(50)
	w.follow()
	w.settle("narrow", 1)
	w.define(narrowYAML + "# nothing else\n" + "  - {fields: [changes]}\n")
	first, err := w.rebuilder().Request(w.ctx, "narrow", Options{})
	require.NoError(t, err)
	_, err = w.rebuilder().Request(w.ctx, "narrow", Options{})
	var busy *Busy
	require.ErrorAs(t, err, &busy, "the same definition is asked for already")
	w.define(wideYAML)
	second, err := w.rebuilder().Request(w.ctx, "narrow", Options{})
	require.NoError(t, err)
	require.Equal(t, first, second)
	done, err := w.run("narrow", Options{})
	require.NoError(t, err)
	require.Equal(t, second, done.ID)
	require.Equal(t, Fields, done.Kind)
}

// Where Postgres has too few sessions left for another version, nothing is begun,
// and it is said what helps.
func TestRoomIsLookedAtBeforeAnythingIsMade(t *testing.T) {
	t.Parallel()
	require.NoError(t, enoughRoom(postgres.Room{Allowed: 197, Taken: 178}, sessions(8, Options{Parallel: 2}), 8))
	err := enoughRoom(postgres.Room{Allowed: 197, Taken: 179}, sessions(8, Options{Parallel: 2}), 8)
	require.ErrorIs(t, err, ErrNoRoom)
	require.ErrorContains(t, err, "197, of which 179 are taken and a few are left to others, and this takes 10 more")
	require.ErrorContains(t, err, "rebuild retire")
	require.Equal(t, 18, sessions(8, Options{Parallel: 64}), "no more work at a time than there are partitions")
	w := setup(t, ownYAML)
	now, err := postgres.ReadRoom(w.ctx, w.pool)
	require.NoError(t, err)
	require.Greater(t, now.Allowed, now.Taken)
	require.Positive(t, now.Taken)
}
