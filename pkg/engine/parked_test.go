package engine_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/event"
)

// refuse has the server refuse the rows of streams whose names begin so and that
// have so many events, allow takes them again.
func (w *world) refuse(prefix string, events int) {
	w.t.Helper()
	_, err := w.pool.Exec(ctx, fmt.Sprintf(`alter table %s add constraint refused check (key not like '%s%%' or (data->>'events')::int < %d)`, w.feed.Version.Table(), prefix, events))
	require.NoError(w.t, err)
}

func (w *world) allow() {
	w.t.Helper()
	_, err := w.pool.Exec(ctx, `alter table `+w.feed.Version.Table()+` drop constraint refused`)
	require.NoError(w.t, err)
}

const parkedEvents = `select count(*) from refold.parked_event`

func TestEventThatTheServerRefusesIsFoundAndParkedAlone(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.refuse("c", 26)
	var all []*event.Event
	for range 40 {
		for _, stream := range []string{"a", "b", "c", "d"} {
			all = append(all, w.event(stream, "x"))
		}
	}
	w.produce(all...)
	w.start()
	w.await("all are applied or parked", applied, 160)
	w.await("the stream of the refused one waits behind it", parkedEvents, 15)
	w.await("rows", counted, 145)
	w.await("one event has failed", `select count(*) from refold.parked_event where error like '%refused%' and stream_version = (select min(stream_version) from refold.parked_event)`, 1)
	w.await("counts add up", unaccounted, 0)
	w.awaitMetric("refold_projection_parked_streams", 1)
	report, err := engine.Verify(ctx, w.pool, w.registry, w.feed)
	require.NoError(t, err, "what is parked is not in the rows")
	require.EqualValues(t, 15, report.Parked)
}

func TestDamagedRecordIsTakenFromTheEventTable(t *testing.T) {
	t.Parallel()
	w := setup(t)
	a, b, c := w.event("a", "1"), w.event("a", "2"), w.event("a", "3")
	damaged := *b
	damaged.Value = append([]byte{0, 0, 0, 0, 1}, "\xff\xff\xff"...)
	w.produce(a, &damaged, c)
	w.start()
	w.check(3)
	w.await("nothing is parked", parkedEvents, 0)
}

func TestBreakerStopsThePartitionInsteadOfParkingEverything(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.refuse("", 1)
	bad, other := inPartition(0), inPartition(1)
	var all []*event.Event
	for i := range 12 {
		if name := bad + strings.Repeat("x", i); event.SlotOf(name, 4)%2 == 0 {
			all = append(all, w.event(name, "1"))
		}
	}
	require.Greater(t, len(all), 3)
	w.produce(all...)
	w.start(func(c *engine.Config) { c.MaxParked = 2 })
	w.await("the partition says why it stands", `select count(*) from refold.progress where partition = 0 and alarm like '%more than 2 streams%'`, 1)
	w.await("no more are parked", `select count(*) from refold.parked_stream`, 2)
	w.allow()
	w.produce(w.event(other, "1"))
	w.await("what is mended flows", applied, int64(len(all))+1)
	w.await("what was parked waits to be retried", counted, int64(len(all))-1)
}

// ask puts a request about a parked stream.
func (w *world) ask(stream, action string) (id int64) {
	w.t.Helper()
	r, err := engine.NewParked(w.pool).Request(ctx, "logins", "User", stream, action, "because")
	require.NoError(w.t, err)
	return r.ID
}

func (w *world) outcome(id int64) string {
	w.t.Helper()
	r, err := engine.NewParked(w.pool).Await(ctx, "logins", id, patience)
	require.NoError(w.t, err)
	require.NotNil(w.t, r.Done)
	return r.Outcomes["1"]
}

func TestRetryAppliesWhatIsParkedInOrderWhileTheOwnerGoesOn(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.refuse("a", 2)
	w.produce(w.event("a", "1"), w.event("a", "2"))
	w.start(func(c *engine.Config) { c.MaxBatch = 7 })
	w.await("parked", parkedEvents, 1)
	require.Contains(t, w.outcome(w.ask("a", "retry")), "0 applied; then User/")
	w.allow()
	n := int64(2)
	id := int64(0)
	for i := range 30 {
		w.produce(w.event("a", "x"), w.event(w.other("a"), "x"), w.event("a", "newest"))
		n += 3
		if i == 15 {
			id = w.ask("a", "retry")
		}
	}
	require.Regexp(t, `^\d+ applied$`, w.outcome(id))
	w.check(n)
	w.await("nothing is parked", parkedEvents, 0)
	w.await("the newest event has written last", `select count(*) from refold.projections where key = 'a' and data->>'email' = 'newest' and (data->>'events')::int = 62`, 1)
	_, err := engine.NewParked(w.pool).Request(ctx, "logins", "User", "a", "retry", "again")
	require.ErrorIs(t, err, engine.ErrNotParked)
}

func TestSkipLeavesTheFailedEventOutAndIsRemembered(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.produce(w.event("a", "1"), w.event("a", poison), w.event("a", "3"), w.event("a", poison), w.event("a", "5"))
	stop := w.start()
	w.await("parked", parkedEvents, 4)
	require.Contains(t, w.outcome(w.ask("a", "skip")), "1 skipped, 1 applied; then User/")
	w.await("the second one stands", parkedEvents, 2)
	require.Equal(t, "1 skipped, 1 applied", w.outcome(w.ask("a", "skip")))
	w.await("what is left is applied", counted, 3)
	w.await("decisions are kept", `select count(*) from refold.decision where reason = 'because'`, 2)
	w.await("counts add up", unaccounted, 0)
	w.produce(w.event("a", "6"))
	w.await("the stream flows", counted, 4)
	stop()
	report, err := engine.Verify(ctx, w.pool, w.registry, w.feed)
	require.NoError(t, err)
	require.EqualValues(t, 2, report.Skipped)
	// Another version that is fed from the beginning leaves them out by itself.
	_, err = w.pool.Exec(ctx, `truncate refold.projections; update refold.progress set next_offset = 0, seqs = '{0,0}', last_ids = array_fill('00000000-0000-0000-0000-000000000000'::uuid, '{2}'),
		applied = 0, skipped = 0, parked = 0`)
	require.NoError(t, err)
	w.start()
	w.await("rows", counted, 4)
	w.await("nothing is parked", parkedEvents, 0)
}

// A long list of parked events is applied in several transactions; whatever the
// owner loses in between, none is applied twice.
func TestRetryThatIsInterruptedGoesOn(t *testing.T) {
	t.Parallel()
	w := setup(t)
	all := []*event.Event{w.event("a", poison)}
	for range 300 {
		all = append(all, w.event("a", "x"))
	}
	w.produce(all...)
	w.start(func(c *engine.Config) { c.MaxBatch = 5 })
	w.await("parked", parkedEvents, 301)
	id := w.ask("a", "skip")
	for range 4 {
		_, err := w.pool.Exec(ctx, `select pg_terminate_backend(owner_pid) from refold.progress where owner_pid is not null`)
		require.NoError(t, err)
	}
	require.Contains(t, w.outcome(id), "1 skipped")
	w.await("each is applied once", counted, 300)
	w.await("one is skipped", `select count(*) from refold.decision`, 1)
	w.await("counts add up", unaccounted, 0)
}

// A decision is about an event and not about its place: what comes to stand there
// after the log has lost its tail is applied.
func TestADecisionHoldsForItsEventOnly(t *testing.T) {
	t.Parallel()
	w := setup(t)
	e := w.event("a", "1")
	_, err := w.pool.Exec(ctx, `insert into refold.decision (projection, category, slot, seq, id, reason) values ('logins', 'User', $1, $2, gen_random_uuid(), 'because')`, e.Slot, e.Seq)
	require.NoError(t, err)
	w.produce(e)
	stop := w.start()
	w.await("applied", counted, 1)
	stop()
	report, err := engine.Verify(ctx, w.pool, w.registry, w.feed)
	require.NoError(t, err)
	require.Zero(t, report.Skipped)
}
