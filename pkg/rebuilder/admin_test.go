package rebuilder

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/readmodel"
)

func TestIndexesAreChangedInPlace(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(10, 2)
	stop := w.live()
	w.settle("own", 1)
	stop()
	before := w.rows("own", 1)
	w.define(strings.Replace(ownYAML, "[email]}", "[id, email]}", 1))
	plan, err := w.rebuilder().Plan(w.ctx, "own", Options{}, false)
	require.NoError(t, err)
	require.Equal(t, "index", plan.Change)
	done, err := w.run("own", Options{})
	require.NoError(t, err)
	require.Equal(t, 1, done.Version)
	require.Equal(t, Done, done.State)
	require.Equal(t, before, w.rows("own", 1))
	require.EqualValues(t, 1, w.number(`select count(*) from pg_indexes where tablename = 'rows_own_v1' and indexdef like '%''id''%''email''%'`))
	require.EqualValues(t, 2, w.number(`select count(*) from pg_indexes where tablename = 'rows_own_v1'`), "the primary key and the new one")
	plan, err = w.rebuilder().Plan(w.ctx, "own", Options{}, false)
	require.NoError(t, err)
	require.Equal(t, "none", plan.Change)
}

func TestPauseHoldsTheLoadUpAndResumeLetsItGo(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(10, 2)
	r := w.rebuilder()
	id, err := r.Request(w.ctx, "own", Options{})
	require.NoError(t, err)
	require.NoError(t, r.Pause(w.ctx, id))
	ended := make(chan error, 1)
	go func() {
		_, err := r.Run(w.ctx, "own", Options{}, nil)
		ended <- err
	}()
	require.Eventually(t, func() bool {
		now, err := r.Get(w.ctx, id)
		return err == nil && strings.Contains(now.Progress.Why, "paused")
	}, 30*time.Second, 20*time.Millisecond)
	require.NoError(t, r.Resume(w.ctx, id))
	require.NoError(t, <-ended)
	now, err := r.Get(w.ctx, id)
	require.NoError(t, err)
	require.Equal(t, Done, now.State)
	require.ErrorIs(t, r.Pause(w.ctx, id), ErrState)
}

// Who serves requests takes up the rebuild that it has seen, and begins no other
// when that has ended meanwhile.
func TestServingBeginsNothingThatNobodyAskedFor(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(10, 2)
	done, err := w.run("own", Options{})
	require.NoError(t, err)
	w.rebuilder().serveOne(w.ctx, done)
	require.EqualValues(t, 1, w.number(`select count(*) from refold.rebuild`))
	require.EqualValues(t, 1, w.number(`select count(*) from refold.projection_version`))
}

// A deep plan counts what a build makes, and finds what is missing in the middle.
func TestDeepPlanReadsEverything(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(20, 3)
	plan, err := w.rebuilder().Plan(w.ctx, "own", Options{}, true)
	require.NoError(t, err)
	require.True(t, plan.Deep && plan.Complete, "%+v", plan)
	require.EqualValues(t, w.number(`select count(*) from refold.event`), plan.Events)
	require.EqualValues(t, 20, plan.Rows)
	lost := w.event("user-1", "never produced")
	w.insert(lost)
	w.append(w.event("user-1", "behind it"))
	plan, err = w.rebuilder().Plan(w.ctx, "own", Options{}, false)
	require.NoError(t, err)
	require.True(t, plan.Complete, "the ends look well")
	plan, err = w.rebuilder().Plan(w.ctx, "own", Options{}, true)
	require.NoError(t, err)
	require.False(t, plan.Complete)
	require.Contains(t, plan.Why, lost.Position().String())
	require.EqualValues(t, 0, w.number(`select count(*) from refold.rebuild`))
}

// Progress never falls, across a kill too.
func TestProgressNeverRunsBackwards(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(40, 3)
	var last, bytes int64
	watch := func(now Rebuild) {
		if now.Progress.Done < last || now.Progress.Bytes < bytes {
			t.Errorf("progress fell from %d events of %d bytes to %d of %d", last, bytes, now.Progress.Done, now.Progress.Bytes)
		}
		last, bytes = now.Progress.Done, now.Progress.Bytes
	}
	for _, point := range []string{"within load User/2", "after load User/3", ""} {
		r := w.rebuilder()
		r.cfg.LeaseTime = 300 * time.Millisecond
		r.stopAt = func(p string) error {
			if p == point {
				return errStopped
			}
			return nil
		}
		_, err := r.Run(w.ctx, "own", Options{Parallel: 1}, watch)
		if point != "" {
			require.ErrorIs(t, err, errStopped)
		} else {
			require.NoError(t, err)
		}
	}
	require.EqualValues(t, w.number(`select count(*) from refold.event`), last)
}

func TestManualPromotionWaitsAndKeptVersionsAreSwept(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(10, 2)
	stop := w.live()
	w.settle("own", 1)
	stop()
	r := w.rebuilder()
	waiting, err := r.Run(w.ctx, "own", Options{Promote: "manual", Keep: 1}, nil)
	require.NoError(t, err)
	require.Equal(t, Waiting, waiting.State)
	require.Equal(t, 1, w.active("own"))
	done, err := r.Promote(w.ctx, waiting.ID)
	require.NoError(t, err)
	require.Equal(t, Done, done.State)
	require.Equal(t, 2, w.active("own"))
	n, err := r.sweep(w.ctx)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.EqualValues(t, 0, w.number(`select count(*) from pg_class where relname = 'rows_own_v1'`))
	_, err = r.RollBack(w.ctx, "own")
	require.ErrorIs(t, err, ErrNoFormer)
	groups, err := kadm.NewClient(w.client).ListGroups(w.ctx)
	require.NoError(t, err)
	require.NotContains(t, groups, engine.GroupName(w.topic(), readmodel.Version{Projection: "own", Number: 1}))
}

// A load whose job has lost its lease is refused at its commit, and one that was
// committed already is not committed again: both are what a zombie does.
func TestZombiesLoadIsRefused(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(20, 2)
	zombie := w.rebuilder()
	zombie.cfg.LeaseTime = 200 * time.Millisecond
	taken := false
	zombie.stopAt = func(point string) error {
		if point == "within load User/1" && !taken { // the rows are copied, the commit is to come
			taken = true
			w.exec(`update refold.lease set fence = fence + 1, nonce = gen_random_uuid(), owner = 'the next job', expires = clock_timestamp()`)
		}
		return nil
	}
	_, err := zombie.Run(w.ctx, "own", Options{Parallel: 1}, nil)
	require.True(t, postgres.LeaseLost(err), "%v", err)
	require.EqualValues(t, 0, w.number(`select count(*) from refold.rebuild_partition where partition = 1 and loaded is not null`))
	done, err := w.run("own", Options{})
	require.NoError(t, err)
	require.Len(t, w.rows("own", done.Version), 20)

	conn, err := w.pool.Acquire(w.ctx)
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(w.ctx, `select refold.rebuild_loaded($1, 'User', 1, 1, 0, 0, 0)`, done.ID)
	require.True(t, postgres.IsCode(err, codeLoaded), "%v", err)
}

// While events are appended the rebuilt version catches up, and has what the
// serving one has.
func TestRebuildUnderLiveLoad(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"own", "shared"} {
		w := setup(t, ownYAML, sharedYAML)
		w.history(30, 3)
		w.live()
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
					w.append(w.event("user-"+string(rune('0'+i%10)), "live"))
				}
			}
		}()
		for _, parallel := range []int{1, 2, 8} {
			done, err := w.run(name, Options{Parallel: parallel})
			require.NoError(t, err)
			require.True(t, done.Report.OK)
			stopLive := w.live()
			require.Eventually(t, func() bool { return w.active(name) == done.Version }, 10*time.Second, 10*time.Millisecond)
			defer stopLive()
		}
		close(stop)
		<-stopped
		w.settle(name, 1)
		w.settle(name, 4)
		require.Equal(t, w.rows(name, 1), w.rows(name, 4))
	}
}

// Who was told that a rebuild is cancelled, or pauses, was told the truth, in the
// last moment before the promotion too.
func TestAWishIsHeededUpToThePromotion(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(10, 2)
	stop := w.live()
	w.settle("own", 1)
	stop()
	wish := func(want string) (Rebuild, error) {
		r, asked := w.rebuilder(), false
		r.stopAt = func(point string) error {
			if point == "before promote" && !asked {
				asked = true
				_, err := w.pool.Exec(w.ctx, `update refold.rebuild set wish = $1 where state = 'running'`, want)
				return err
			}
			return nil
		}
		return r.Run(w.ctx, "own", Options{Fresh: true}, func(now Rebuild) {
			if now.Progress.Why != "" && want == "pause" { // it is held
				require.Equal(t, 1, w.active("own"))
				_, err := w.pool.Exec(w.ctx, `update refold.rebuild set wish = null`)
				require.NoError(t, err)
			}
		})
	}
	_, err := wish("cancel")
	require.ErrorIs(t, err, ErrCancelled)
	require.Equal(t, 1, w.active("own"))
	done, err := wish("pause")
	require.NoError(t, err)
	require.Equal(t, Done, done.State)
	require.NotEqual(t, 1, w.active("own"))
}

// A rate holds at every moment: between any two looks at the progress no more was
// read than it allows, from either source, and a check keeps to it too.
func TestRateHoldsAtEveryMoment(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(300, 6)
	const rate, slack = 800, 400 // what is told was read a little before
	total := w.number(`select count(*) from refold.event`)
	for _, source := range []Source{FromTopic, FromEventStore} {
		type look struct {
			at   time.Time
			done int64
		}
		var looks []look
		began := time.Now()
		done, err := w.rebuilder().Run(w.ctx, "own", Options{Source: source, Rate: rate, Parallel: 2, Verify: VerifyFull}, func(r Rebuild) {
			looks = append(looks, look{time.Now(), r.Progress.Done})
		})
		require.NoError(t, err)
		require.Equal(t, total, done.Progress.Done)
		require.Greater(t, time.Since(began).Seconds(), 1.8*float64(total)/rate, "the load and the full verification")
		for i, a := range looks {
			for _, b := range looks[i+1:] {
				require.LessOrEqual(t, float64(b.done-a.done), rate*b.at.Sub(a.at).Seconds()+slack, "%s", source)
			}
		}
	}
}
