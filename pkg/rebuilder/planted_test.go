package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// Each test runs a rebuild as it is and with a bug planted, and the check that
// finds nothing in the one must find the other.

// resumed kills a rebuild at a point and lets another job go on. It returns what
// that says, or what is wrong with the rows.
func resumed(t *testing.T, name, at string, f faults) error {
	w := setup(t, ownYAML, sharedYAML)
	w.history(20, 3)
	stop := w.live()
	w.settle(name, 1)
	stop()
	r := w.rebuilder()
	r.cfg.LeaseTime = 300 * time.Millisecond
	r.faults = f
	r.stopAt = func(point string) error {
		if point == at {
			return fmt.Errorf("%w at %s", errStopped, point)
		}
		return nil
	}
	_, err := r.Run(w.ctx, name, Options{Parallel: 1}, nil)
	require.ErrorIs(t, err, errStopped)
	r.stopAt = func(string) error { return nil }
	done, err := r.Run(w.ctx, name, Options{Parallel: 1}, nil)
	if err == nil {
		require.Equal(t, w.rows(name, 1), w.rows(name, done.Version))
	}
	return err
}

// doubled tells whether rows were found to lie there twice.
func doubled(err error) bool {
	var damaged *Damaged
	return errors.As(err, &damaged) || err != nil && strings.Contains(err.Error(), "could not create unique index")
}

func TestProgressInATransactionOfItsOwnIsCaught(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"own", "shared"} {
		require.NoError(t, resumed(t, name, "within load User/1", faults{}))
		err := resumed(t, name, "within load User/1", faults{splitTransaction: true})
		require.True(t, doubled(err), "%s: %v", name, err)
	}
}

func TestPartitionThatIsReadTwiceIsCaught(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"own", "shared"} {
		require.NoError(t, resumed(t, name, "after load User/1", faults{}))
		err := resumed(t, name, "after load User/1", faults{loadAgain: true})
		require.True(t, doubled(err), "%s: %v", name, err)
	}
}

// wentBack promotes a version that lacks what the serving one has shown, and tells
// whether readers were taken back.
func wentBack(t *testing.T, f faults) (back bool, err error) {
	w := setup(t, ownYAML)
	w.history(10, 2)
	stop := w.live()
	w.settle("own", 1)
	stop()
	_, err = w.run("own", Options{})
	require.NoError(t, err)
	w.append(w.event("user-1", "later"))
	w.live(func(f engine.Feed) bool { return f.Version.Number == 2 })
	w.settle("own", 2)
	shown := make(map[string]int64)
	require.NoError(t, readOn(w.ctx, w.reader(), "user-1", shown))
	r := w.rebuilder()
	r.faults = f
	ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
	defer cancel()
	_, err = r.RollBack(ctx, "own")
	return readOn(w.ctx, w.reader(), "user-1", shown) != nil, err
}

func TestPromotionBeforeDominanceIsCaught(t *testing.T) {
	t.Parallel()
	back, err := wentBack(t, faults{})
	require.Error(t, err)
	require.False(t, back)
	back, err = wentBack(t, faults{flip: func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `update refold.projection_version set state = case version when 1 then 'active' else 'ready' end`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `update refold.projection set active = 1`); err != nil {
			return err
		}
		return readmodel.Announce(ctx, tx)
	}})
	require.NoError(t, err)
	require.True(t, back)
}

func TestDigestThatLeavesAColumnOutIsCaught(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"own", "shared"} {
		var damaged *Damaged
		require.ErrorAs(t, tampered(t, name, `state = '{"q": 1}'`, faults{}), &damaged)
		err := tampered(t, name, `state = '{"q": 1}'`, faults{blindDigest: true})
		require.False(t, errors.As(err, &damaged), "%s: %v", name, err)
	}
}
