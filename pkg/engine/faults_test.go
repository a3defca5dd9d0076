package engine_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/engine"
)

// broken says what is wrong with rows and progress: nothing in a sound engine,
// whatever happens to it. The tests below plant a bug each and see that it says so.
func (w *world) broken(events int64) string {
	w.t.Helper()
	var inRows, seqs, accounted int64
	require.NoError(w.t, w.pool.QueryRow(ctx, counted).Scan(&inRows))
	require.NoError(w.t, w.pool.QueryRow(ctx, applied).Scan(&seqs))
	require.NoError(w.t, w.pool.QueryRow(ctx, unaccounted).Scan(&accounted))
	switch {
	case seqs != events:
		return fmt.Sprintf("%d events are applied of %d", seqs, events)
	case inRows != events:
		return fmt.Sprintf("the rows hold %d events of %d", inRows, events)
	case accounted != 0:
		return "the counts do not add up"
	}
	return ""
}

// interrupted feeds with a session that is cut in the middle of a commit.
func interrupted(t *testing.T, f engine.Faults) (*world, int64) {
	w := setup(t)
	var armed atomic.Bool
	f.Between = func() {
		if armed.CompareAndSwap(true, false) {
			_, err := w.pool.Exec(ctx, `select pg_terminate_backend(owner_pid) from refold.progress where owner_pid is not null`)
			require.NoError(t, err)
		}
	}
	e := w.newEngine()
	e.Plant(f)
	w.startEngine(e)
	w.produce(w.event("a", "1")) // begins the row, whatever is there
	w.await("applied", applied, 1)
	armed.Store(f.SplitTransaction)
	w.produce(w.event("a", "2"))
	w.await("applied", applied, 2)
	return w, 2
}

func TestProgressInATransactionOfItsOwnIsCaught(t *testing.T) {
	t.Parallel()
	w, n := interrupted(t, engine.Faults{})
	require.Empty(t, w.broken(n))
	w, n = interrupted(t, engine.Faults{SplitTransaction: true})
	require.Contains(t, w.broken(n), "the rows hold 3 events")
}

// repeated feeds records of which some come twice.
func repeated(t *testing.T, f engine.Faults) (*world, int64) {
	w := setup(t)
	a, b := w.event("a", "1"), w.event("a", "2")
	w.produce(a, b, a, b)
	e := w.newEngine()
	e.Plant(f)
	w.startEngine(e)
	w.await("all records are read", `select sum(next_offset)::bigint from refold.progress`, 4)
	return w, 2
}

func TestMissingSequenceCheckIsCaught(t *testing.T) {
	t.Parallel()
	w, n := repeated(t, engine.Faults{})
	require.Empty(t, w.broken(n))
	w, n = repeated(t, engine.Faults{NoSequenceCheck: true})
	require.Contains(t, w.broken(n), "the rows hold 4 events")
}

// overtaken feeds while another owner claims the partition, applies what comes
// next, and the first one goes on with rows that are not those of the table.
func overtaken(t *testing.T, f engine.Faults) (*world, int64) {
	w := setup(t)
	w.produce(w.event("a", "1"))
	e := w.newEngine()
	e.Plant(f)
	w.startEngine(e)
	w.await("applied", applied, 1)
	b := w.event("a", "2")
	partition := b.Slot % 2
	_, err := w.pool.Exec(ctx, fmt.Sprintf(`do $$ declare c record; begin
		select * into c from refold.progress_claim('logins', 1, 'User', 1, %d, 'other', null, 0);
		c.seq_list[array_position(c.slot_list, %d::smallint)] := 2;
		c.id_list[array_position(c.slot_list, %d::smallint)] := '%s';
		perform refold.progress_move('logins', 1, 'User', 1, %d, c.epoch, c.next, c.next + 1, c.seq_list, c.id_list, 1, 0, 0, 0, 0, 0, 0, 0, null, now());
		update %s set data = jsonb_set(data, '{events}', '2') where key = 'a';
		end $$`, partition, b.Slot, b.Slot, b.ID, partition, w.feed.Version.Table()))
	require.NoError(t, err)
	w.produce(b, w.event("a", "3"))
	w.await("all records are read", `select sum(next_offset)::bigint from refold.progress`, 3)
	return w, 3
}

func TestMissingFenceIsCaught(t *testing.T) {
	t.Parallel()
	w, n := overtaken(t, engine.Faults{})
	require.Empty(t, w.broken(n))
	w, n = overtaken(t, engine.Faults{NoFence: true})
	require.NotEmpty(t, w.broken(n))
}

// A process that was paused wakes up behind a new owner; two engines here, the
// first of which is held in its commit.
func TestZombieOwnerChangesNothing(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.produce(w.event("a", "1"))
	stop := w.start(func(c *engine.Config) { c.Owner = "first" })
	w.await("applied", applied, 1)
	// Whatever the group thinks of it, the second engine claims when the first is
	// gone from it; both run for a while.
	w.start(func(c *engine.Config) { c.Owner = "second" })
	for range 20 {
		w.produce(w.event("a", "x"), w.event("b", "x"), w.event("c", "x"), w.event("d", "x"))
		_, err := w.pool.Exec(ctx, `update refold.progress set owner_epoch = owner_epoch + 1`)
		require.NoError(t, err)
	}
	stop()
	w.check(81)
}
