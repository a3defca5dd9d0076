package rebuilder

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/kafka"
)

// truncate deletes the records below an offset of a partition, as kafka-delete-records does.
func (w *world) truncate(partition int32, before int64) {
	w.t.Helper()
	offsets := kadm.Offsets{}
	offsets.AddOffset(w.topic(), partition, before, -1)
	_, err := kadm.NewClient(w.client).DeleteRecords(w.ctx, offsets)
	require.NoError(w.t, err)
}

// relayed has the relay's cursors stand where version 1 is.
func (w *world) relayed() {
	w.t.Helper()
	w.exec(`insert into refold.relay_partition (category, generation, partition, slots, seqs, ids)
		select c.id, p.generation, p.partition, p.slots, p.seqs, p.last_ids from refold.progress p join refold.category c on c.name = p.category where p.version = 1`)
}

func (w *world) run(name string, options Options) (Rebuild, error) {
	return w.rebuilder().Run(w.ctx, name, options, nil)
}

func TestTruncatedTopicIsRefusedOrReadFromTheEventStore(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(40, 4)
	w.live()
	w.settle("own", 1)
	w.truncate(2, 5)
	_, err := w.run("own", Options{})
	var missing *Incomplete
	require.ErrorAs(t, err, &missing)
	require.Equal(t, 2, missing.Partition)
	require.Equal(t, w.topic(), missing.Topic)
	require.Equal(t, 2, missing.Slot%4)
	require.Positive(t, missing.First)
	require.ErrorContains(t, err, "--source=eventstore")
	require.Equal(t, 1, w.active("own"), "the old version serves on")
	plan, err := w.rebuilder().Plan(w.ctx, "own", Options{}, false)
	require.NoError(t, err)
	require.False(t, plan.Complete)
	done, err := w.run("own", Options{Source: FromEither})
	require.NoError(t, err)
	require.Equal(t, w.rows("own", 1), w.rows("own", done.Version))
	require.EqualValues(t, 1, w.number(`select count(*) from refold.rebuild_partition where source = 'eventstore' and rebuild = $1`, done.ID), "only where it has to")
}

func TestRecreatedTopicIsRefusedOrReadFromTheEventStore(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(40, 3)
	stop := w.live()
	w.settle("own", 1)
	stop()
	admin := kadm.NewClient(w.client)
	w.relayed()
	_, err := admin.DeleteTopic(w.ctx, w.topic())
	require.NoError(t, err)
	_, err = kafka.EnsureTopic(w.ctx, admin, w.topic(), 4)
	require.NoError(t, err)
	require.Eventually(t, func() bool { // brokers hear of a new topic one after the other
		_, err := kafka.ReadTopic(w.ctx, admin, w.topic())
		return err == nil
	}, 30*time.Second, 50*time.Millisecond)
	_, err = w.run("own", Options{})
	var missing *Incomplete
	require.ErrorAs(t, err, &missing)
	require.EqualValues(t, 1, missing.First)
	require.ErrorContains(t, err, "the relay had sent")
	done, err := w.run("own", Options{Source: FromEventStore})
	require.NoError(t, err)
	require.Len(t, w.rows("own", done.Version), 40)
}

// A hole, as compaction leaves it, is found by the dense sequence.
func TestHoleInTheTopicIsRefused(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	a, hole, c := w.event("a", "1"), w.event("a", "2"), w.event("a", "3")
	w.insert(a, hole, c)
	w.produce(a, c)
	_, err := w.run("own", Options{})
	var missing *Incomplete
	require.ErrorAs(t, err, &missing)
	require.EqualValues(t, 2, missing.First)
	require.Equal(t, hole.Slot, missing.Slot)
	done, err := w.run("own", Options{Source: FromEither})
	require.NoError(t, err)
	require.Len(t, w.rows("own", done.Version), 1)
	require.Contains(t, w.rows("own", done.Version)["a"], `"events": 3`)
}

// A topic holds two branches of a slot after `writer repair --keep-log`: it is known
// which one the log has, and the other is passed over.
func TestLostBranchIsPassedOverOnceItIsRepaired(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	first := w.event("a", "1")
	w.insert(first)
	w.produce(first, w.event("a", "lost"), w.event("a", "lost too"))
	w.seqs[first.Slot], w.last[first.Slot], w.versions["a"] = first.Seq, first.ID, 1
	_, err := w.run("own", Options{})
	require.ErrorIs(t, err, ErrDiverged, "nothing is decided, and the topic only goes on where the log ends")
	w.append(w.event("a", "2"))
	_, err = w.run("own", Options{})
	require.ErrorIs(t, err, ErrDiverged)
	topic, err := kafka.ReadTopic(w.ctx, kadm.NewClient(w.client), w.topic())
	require.NoError(t, err)
	w.exec(`insert into refold.relay_repair (category, generation, slot, seq, until_offset, topic_id) select id, generation, $1, 2, 3, $2 from refold.category`, first.Slot, topic.ID)
	for _, source := range []Source{FromTopic, FromEither, FromEventStore} {
		done, err := w.run("own", Options{Source: source})
		require.NoError(t, err, source)
		stop := w.live() // what came after the end that was pinned may be applied later
		w.settle("own", done.Version)
		stop()
		require.Contains(t, w.rows("own", done.Version)["a"], `"email": "2", "events": 2`, source)
	}
}

func TestEventMissingFromTheEventTableIsRefused(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	a, b, c := w.event("a", "1"), w.event("a", "2"), w.event("a", "3")
	w.insert(a, c)
	_, err := w.run("own", Options{Source: FromEventStore})
	var missing *Incomplete
	require.ErrorAs(t, err, &missing)
	require.Equal(t, FromEventStore, missing.Source)
	require.EqualValues(t, b.Seq, missing.First)
}

func TestDuplicatesForeignRecordsAndPoisonAreAsInALiveRun(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML, sharedYAML)
	long := make([]byte, 2001)
	for i := range long {
		long[i] = 'x'
	}
	var events = []string{"a", "b", "a", "c", "a", "b"}
	for i, stream := range events {
		email := stream
		if i == 2 {
			email = string(long) // indexed by own, so poison there; not by shared
		}
		e := w.event(stream, email)
		w.append(e)
		w.produce(e)
	}
	w.live()
	for _, name := range []string{"own", "shared"} {
		w.settle(name, 1)
		done, err := w.run(name, Options{})
		require.NoError(t, err)
		require.Equal(t, w.rows(name, 1), w.rows(name, done.Version))
		for _, column := range []string{"applied", "duplicates", "filtered", "parked", "foreign_records"} {
			sum := `select sum(` + column + `)::bigint from refold.progress where projection = $1 and version = $2`
			require.Equal(t, w.number(sum, name, 1), w.number(sum, name, done.Version), "%s %s", name, column)
		}
		parked := `select count(*) from refold.parked_event where projection = $1 and version = $2`
		require.Equal(t, w.number(parked, name, 1), w.number(parked, name, done.Version))
	}
	require.EqualValues(t, 2, w.number(`select count(*) from refold.parked_event where projection = 'own' and version = 2`))
}

// However small the memory, the rows are the same; a partition is read in passes.
func TestPassesOverHashRangesGiveTheSameRows(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML, sharedYAML)
	w.history(24, 4)
	w.live()
	for _, name := range []string{"own", "shared"} {
		w.settle(name, 1)
		for _, limit := range []int64{900, 12_000} { // of two rows, and of many
			r := w.rebuilder()
			r.rowLimit = limit
			done, err := r.Run(w.ctx, name, Options{Parallel: 2, Verify: VerifyDeterministic}, nil)
			require.NoError(t, err)
			require.Equal(t, w.rows(name, 1), w.rows(name, done.Version))
			passes := 0
			for _, p := range done.Progress.Partitions {
				passes = max(passes, p.Passes)
			}
			if limit == 900 {
				require.Greater(t, passes, 1)
			}
		}
	}
}

// Whoever asks for a rebuild does not know how much memory the process has that
// runs it.
func TestProcessBoundsTheMemoryThatWasAskedFor(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(24, 4)
	w.live()
	w.settle("own", 1)
	r := w.rebuilder()
	r.cfg.MemoryBytes = 4500 // a part of it is for rows, of two here
	done, err := r.Run(w.ctx, "own", Options{Parallel: 2, MemoryBytes: 1 << 30}, nil)
	require.NoError(t, err)
	require.Equal(t, w.rows("own", 1), w.rows("own", done.Version))
	require.True(t, slices.ContainsFunc(done.Progress.Partitions, func(p PartitionProgress) bool { return p.Passes > 1 }))
}

func TestSecondRunFailsAtOnceAndSaysWho(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(10, 2)
	first := w.rebuilder()
	first.cfg.Owner = "the first"
	reached, release := make(chan struct{}), make(chan struct{})
	once := false
	first.stopAt = func(point string) error {
		if !once && point == "before step index" {
			once = true
			close(reached)
			<-release
		}
		return nil
	}
	ended := make(chan error, 1)
	go func() {
		_, err := first.Run(w.ctx, "own", Options{}, nil)
		ended <- err
	}()
	<-reached
	_, err := w.run("own", Options{})
	var busy *Busy
	require.ErrorAs(t, err, &busy)
	require.Contains(t, busy.Owner, "the first")
	require.ErrorAs(t, w.rebuilder().CheckFree(w.ctx, "own"), &busy)
	require.NoError(t, first.CheckFree(w.ctx, "own"), "a run of the same name takes over")
	_, err = w.rebuilder().Request(w.ctx, "own", Options{})
	require.ErrorAs(t, err, &busy)
	close(release)
	require.NoError(t, <-ended)
	require.NoError(t, w.rebuilder().CheckFree(w.ctx, "own"))
}

func TestCancelDropsItsOwnTableOnly(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML, sharedYAML)
	w.history(10, 2)
	w.live()
	w.settle("own", 1)
	for _, name := range []string{"own", "shared"} {
		for _, point := range []string{"after step load", "after step index", "after attach", "after step verify"} {
			r := w.rebuilder()
			r.cfg.LeaseTime = 300 * 1e6
			r.stopAt = func(p string) error {
				if p == point {
					return errStopped
				}
				return nil
			}
			stopped, err := r.Run(w.ctx, name, Options{}, nil)
			require.ErrorIs(t, err, errStopped, point)
			r.stopAt = func(string) error { return nil }
			require.NoError(t, r.Cancel(w.ctx, stopped.ID), point)
			require.EqualValues(t, 0, w.number(`select count(*) from pg_class where relname like $1`, fmt.Sprintf("%%%s_v%d%%", name, stopped.Version)), point)
			require.Equal(t, 1, w.active(name))
			require.ErrorIs(t, r.Cancel(w.ctx, stopped.ID), ErrState)
		}
	}
	done, err := w.run("own", Options{})
	require.NoError(t, err)
	require.Equal(t, 6, done.Version, "numbers are never used twice")
}

func TestAnotherDefinitionDoesNotResume(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(10, 2)
	r := w.rebuilder()
	r.cfg.LeaseTime = 300 * 1e6
	r.stopAt = func(p string) error {
		if p == "after load User/1" {
			return errStopped
		}
		return nil
	}
	_, err := r.Run(w.ctx, "own", Options{}, nil)
	require.ErrorIs(t, err, errStopped)
	w.define(ownYAML + "# and a comment makes no other plan\n")
	changed := `projection: own
category: User
fields:
  email:  {from: [UserCreated]}
`
	w.define(changed)
	_, err = w.run("own", Options{})
	var busy *Busy
	require.True(t, errors.As(err, &busy), "%v", err)
	require.Contains(t, busy.Why, "another definition")
}

// A record whose bytes are damaged is no reason to park its stream, in a load as
// little as in a live run: the event table has the event.
func TestDamagedRecordsAreTakenFromTheEventTable(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML, sharedYAML)
	w.append(w.event("a", "1"), w.event("b", "1"))
	events := []*event.Event{w.event("a", "2"), w.event("b", "2"), w.event("c", "1"), w.event("a", "3")}
	w.insert(events...)
	for i, e := range events {
		damaged := *e
		switch i {
		case 0:
			damaged.Value = e.Value[:len(e.Value)-1] // cut off
		case 1:
			damaged.Value = append([]byte{0, 0, 0, 0x7f}, e.Value[4:]...) // of a schema that nobody knows
		}
		w.produce(&damaged)
	}
	w.live()
	for _, name := range []string{"own", "shared"} {
		w.settle(name, 1)
		live := w.rows(name, 1)
		require.EqualValues(t, 0, w.number(`select count(*) from refold.parked_event where projection = $1`, name))
		for _, limit := range []int64{0, 900} {
			r := w.rebuilder()
			r.rowLimit = limit
			done, err := r.Run(w.ctx, name, Options{Verify: VerifyDeterministic}, nil)
			require.NoError(t, err)
			require.Equal(t, live, w.rows(name, done.Version))
			require.EqualValues(t, 0, w.number(`select count(*) from refold.parked_event where projection = $1`, name))
		}
	}
}
