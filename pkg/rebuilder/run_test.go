package rebuilder

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Rebuilt rows equal the live ones byte for byte, at any parallelism, from either
// source, for rows of one stream and of many.
func TestRebuiltRowsAreTheLiveOnes(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML, sharedYAML)
	w.history(60, 6)
	w.live()
	for _, name := range []string{"own", "shared"} {
		w.settle(name, 1)
		live := w.rows(name, 1)
		require.NotEmpty(t, live)
		for i, c := range []struct {
			parallel int
			source   Source
		}{{1, FromTopic}, {2, FromEventStore}, {8, FromEither}} {
			done, err := w.rebuilder().Run(w.ctx, name, Options{Parallel: c.parallel, Source: c.source, Verify: VerifyDeterministic}, nil)
			require.NoError(t, err)
			require.Equal(t, Done, done.State)
			require.Equal(t, i+2, done.Version)
			require.True(t, done.Report.OK, "%+v", done.Report)
			require.Equal(t, live, w.rows(name, done.Version))
			require.Equal(t, done.Version, w.active(name))
		}
	}
}

// A shared row has the same state whether its events came in one batch or in
// several, also where a field has no value yet.
func TestSharedRowsDoNotTellHowManyBatchesMadeThem(t *testing.T) {
	t.Parallel()
	w := setup(t, sharedYAML)
	w.versions["user-1"] = 1 // so that the hour has no UserCreated
	w.live()
	for n := range 3 {
		w.append(w.event("user-1", fmt.Sprintf("%d@example.com", n)))
		w.settle("shared", 1)
	}
	done, err := w.rebuilder().Run(w.ctx, "shared", Options{Verify: VerifyFull}, nil)
	require.NoError(t, err)
	require.Equal(t, w.rows("shared", 1), w.rows("shared", done.Version))
}

// A job that is killed anywhere is resumed by the next one, with the same rows.
func TestKillAtEveryPointAndResume(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"own", "shared"} {
		w := setup(t, ownYAML, sharedYAML)
		w.history(20, 3)
		stop := w.live()
		w.settle(name, 1)
		stop()
		live := w.rows(name, 1)
		passed := make(map[string]bool)
		kills := 0
		for run := 0; ; run++ {
			require.Less(t, run, 200)
			r := w.rebuilder()
			r.cfg.LeaseTime = 300 * time.Millisecond
			r.stopAt = func(point string) error {
				if passed[point] || point == "after promote" { // then it is done
					return nil
				}
				passed[point] = true
				kills++
				return fmt.Errorf("%w at %s", errStopped, point)
			}
			done, err := r.Run(w.ctx, name, Options{Parallel: 1}, nil)
			if errors.Is(err, errStopped) {
				require.Eventually(t, func() bool { // the server notices that the session has ended
					latest, err := r.Latest(w.ctx, name)
					return errors.Is(err, ErrNoRebuild) || err == nil && (latest.State != Running || strings.Contains(latest.Progress.Why, "has died"))
				}, 10*time.Second, time.Millisecond, "status tells why nothing moves")
				require.LessOrEqual(t, w.number(`select count(*) from refold.projection_version where projection = $1 and state <> 'retired'`, name), int64(2))
				continue
			}
			require.NoError(t, err)
			require.Equal(t, 2, done.Version, "a resumed job makes no new version")
			break
		}
		require.Greater(t, kills, 30)
		require.Equal(t, live, w.rows(name, 2))
		require.Equal(t, 2, w.active(name))
	}
}
