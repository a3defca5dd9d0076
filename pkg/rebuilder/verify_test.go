package rebuilder

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/readmodel"
)

// built has one version that serves and one rebuilt, both fed up, nothing running.
func built(t *testing.T, name string) *world {
	t.Helper()
	w := setup(t, ownYAML, sharedYAML)
	w.history(30, 3)
	stop := w.live()
	w.settle(name, 1)
	stop()
	_, err := w.run(name, Options{})
	require.NoError(t, err)
	return w
}

func failedChecks(r *Report) map[string]Check {
	failed := make(map[string]Check)
	for _, c := range r.Failed() {
		failed[c.Name] = c
	}
	return failed
}

func TestVerifyNamesTamperedLostAndExtraRows(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"own", "shared"} {
		w := built(t, name)
		report, err := w.rebuilder().Verify(w.ctx, name, 2, VerifyFull)
		require.NoError(t, err)
		require.True(t, report.OK, "%+v", report)
		table := "refold.rows_" + name + "_v2"
		for _, c := range []struct{ what, sql string }{
			{"differs", `update ` + table + ` set data = jsonb_set(data, '{events}', '99') where key = (select min(key) from ` + table + `)`},
			{"differs", `update ` + table + ` set state = '{"x": "y"}' where key = (select min(key) from ` + table + `)`},
			{"lost", `delete from ` + table + ` where key = (select min(key) from ` + table + `)`},
			{"extra", `insert into ` + table + ` (key, data) values ('0', '{}')`},
		} {
			w.exec(`create table public.saved as table ` + table)
			var key string
			require.NoError(t, w.pool.QueryRow(w.ctx, `select min(key) from `+table).Scan(&key))
			if c.what == "extra" {
				key = "0"
			}
			w.exec(c.sql)
			for _, how := range []Verification{VerifyFull, VerifySample} { // the sample sees it by the other version, if not by itself
				report, err = w.rebuilder().Verify(w.ctx, name, 2, how)
				require.NoError(t, err)
				require.False(t, report.OK, "%s %s %s", name, c.what, how)
				if how == VerifyFull {
					require.Equal(t, []string{key, c.what}, []string{failedChecks(report)["full"].Samples[0].Key, failedChecks(report)["full"].Samples[0].What})
				}
			}
			w.exec(`delete from ` + table)
			w.exec(`insert into ` + table + ` select * from public.saved`)
			w.exec(`drop table public.saved`)
		}
	}
}

// An event that was dropped on the way to the rows shows in coverage when it
// never counted, and in the rows when it did.
func TestVerifyNamesADroppedEvent(t *testing.T) {
	t.Parallel()
	w := built(t, "own")
	w.exec(`delete from refold.event where seq = 1 and slot = (select min(slot) from refold.event where seq = 2)`)
	report, err := w.rebuilder().Verify(w.ctx, "own", 2, VerifySample)
	require.NoError(t, err)
	require.Contains(t, failedChecks(report)["coverage"].Detail, "are applied, the log holds")
}

func TestVerifyNamesAnOlderDefinition(t *testing.T) {
	t.Parallel()
	w := built(t, "own")
	w.define(ownYAML[:len(ownYAML)-len("indexes:\n  - {fields: [email]}\n")]+"  more: {count: UserEmailChanged}\n", sharedYAML)
	report, err := w.rebuilder().Verify(w.ctx, "own", 0, VerifySample)
	require.NoError(t, err)
	require.Contains(t, failedChecks(report)["definition"].Detail, "a rebuild is due")
	done, err := w.run("own", Options{})
	require.NoError(t, err)
	for _, c := range done.Report.Checks {
		if c.Name == "difference" {
			require.Contains(t, c.Detail, "1 fields are new [more]")
			require.Empty(t, c.Fields)
		}
	}
}

// tampered changes a row behind the back of a rebuild that has just written it,
// deletes one for an empty change, and returns what the rebuild says.
func tampered(t *testing.T, name, change string, f faults) error {
	w := setup(t, ownYAML, sharedYAML)
	if f.blindDigest {
		w.exec(`create or replace function refold.row_hash(key text, data jsonb, state jsonb) returns bigint language sql immutable
			return pg_catalog.hashtextextended((key || E'\x01' || data::text || E'\x01') collate "C", 0)`)
	}
	w.history(10, 2)
	r := w.rebuilder()
	r.faults = f
	done := false
	r.stopAt = func(point string) error {
		if done || point != "before unique index" && name == "own" || name == "shared" && point != "after load User/3" {
			return nil
		}
		done = true
		table := "refold.rows_own_v1"
		if name == "shared" {
			table = "refold.parts_shared_v1"
		}
		row := ` where ctid = (select ctid from ` + table + ` limit 1)`
		if change == "" {
			_, err := w.pool.Exec(w.ctx, `delete from `+table+row)
			return err
		}
		_, err := w.pool.Exec(w.ctx, `update `+table+` set `+change+row)
		return err
	}
	_, err := r.Run(w.ctx, name, Options{Parallel: 1}, nil)
	return err
}

// Each column of a row is covered by the digest, and the check comes before
// anything else changes rows.
func TestStorageCheckSeesEveryColumn(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"own", "shared"} {
		for _, change := range []string{`key = key || 'x'`, `data = data || '{"events": 98}'`, `state = '{"q": 1}'`, ""} {
			var damaged *Damaged
			require.ErrorAs(t, tampered(t, name, change, faults{}), &damaged, "%s %s", name, change)
		}
	}
}

// A failed verification blocks promotion, unless somebody gives a reason.
func TestFailedVerificationBlocksPromotionUnlessForced(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(20, 2)
	stop := w.live()
	w.settle("own", 1)
	stop()
	w.exec(`update refold.rows_own_v1 set data = data || '{"events": 77}' where key = 'user-3'`)
	failed, err := w.run("own", Options{})
	require.ErrorIs(t, err, ErrNotVerified)
	require.Equal(t, Failed, failed.State)
	require.Equal(t, "user-3", failedChecks(failed.Report)["difference"].Samples[0].Key)
	require.Equal(t, 1, w.active("own"))
	kept, err := w.rebuilder().Get(w.ctx, failed.ID)
	require.NoError(t, err)
	require.False(t, kept.Report.OK)
	done, err := w.run("own", Options{Force: "version 1 was tampered with"})
	require.NoError(t, err)
	require.Equal(t, failed.ID, done.ID)
	kept, err = w.rebuilder().Get(w.ctx, done.ID)
	require.NoError(t, err)
	require.Equal(t, "version 1 was tampered with", kept.Report.Forced)
	require.Equal(t, 2, w.active("own"))
}

// Readers that walk while versions are promoted, rolled back and retired see
// every row, and never go back.
func TestReadersWalkThroughPromotionAndRollBack(t *testing.T) {
	t.Parallel()
	w := setup(t, ownYAML)
	w.history(50, 2)
	w.live()
	w.settle("own", 1)
	stopReading := w.reading(w.reader(), 50)
	stopWriting := w.writing(50)
	r := w.rebuilder()
	for range 2 {
		done, err := r.Run(w.ctx, "own", Options{}, nil)
		require.NoError(t, err)
		stop := w.live() // feeds both from here on
		former, err := r.RollBack(w.ctx, "own")
		require.NoError(t, err)
		require.NotEqual(t, done.Version, former)
		again, err := r.RollBack(w.ctx, "own")
		require.NoError(t, err)
		require.Equal(t, done.Version, again)
		stop()
		retired, err := r.Retire(w.ctx, "own", former)
		require.NoError(t, err)
		require.Equal(t, []int{former}, retired)
		_, err = r.Retire(w.ctx, "own", done.Version)
		require.ErrorIs(t, err, readmodel.ErrServing)
	}
	stopWriting()
	n, err := stopReading()
	require.NoError(t, err)
	require.Greater(t, n, 100)
}

// reader returns one that hears of changes.
func (w *world) reader() *readmodel.Reader {
	w.t.Helper()
	watcher := readmodel.NewWatcher(w.url(), slog.New(slog.DiscardHandler))
	watching, stop := context.WithCancel(w.ctx)
	watched := make(chan struct{})
	go func() { defer close(watched); watcher.Run(watching) }()
	reader, err := readmodel.NewReader(w.ctx, readmodel.Config{}, w.pool, readmodel.NewPlans(w.contracts), watcher)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { reader.Close(); stop(); <-watched })
	return reader
}

// reading reads the rows of own over and over, without tokens, until stop is
// called or one goes back. It returns how many it has read.
func (w *world) reading(reader *readmodel.Reader, streams int) (stop func() (n int, err error)) {
	stopping, done := make(chan struct{}), make(chan struct{})
	var n int
	var failure error
	go func() {
		defer close(done)
		for last := make(map[string]int64); failure == nil; n++ {
			select {
			case <-stopping:
				return
			default:
			}
			key := fmt.Sprintf("user-%d", n%streams)
			failure = readOn(w.ctx, reader, key, last)
		}
	}()
	return func() (int, error) { close(stopping); <-done; return n, failure }
}

// readOn reads a row, which must not have fewer events than it had before.
func readOn(ctx context.Context, reader *readmodel.Reader, key string, last map[string]int64) error {
	row, _, err := reader.Get(ctx, "own", key, readmodel.Fresh{})
	if err != nil {
		return fmt.Errorf("reading %s: %w", key, err)
	}
	events, err := countOf(row)
	if err == nil && events < last[key] {
		err = fmt.Errorf("%s went back from %d to %d events", key, last[key], events)
	}
	last[key] = events
	return err
}

// writing appends to streams in turn until stop is called.
func (w *world) writing(streams int) (stop func()) {
	stopping, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stopping:
				return
			case <-time.After(2 * time.Millisecond):
				w.append(w.event(fmt.Sprintf("user-%d", i%streams), fmt.Sprint(i)))
			}
		}
	}()
	return func() { close(stopping); <-done }
}

// A version that lacks an event which the serving one has shown is not promoted.
func TestFlipWaitsForDominance(t *testing.T) {
	t.Parallel()
	w := built(t, "own")
	w.exec(`update refold.progress set seqs[1] = seqs[1] + 1 where projection = 'own' and version = 2 and partition = 1`)
	tx, err := w.pool.Begin(w.ctx)
	require.NoError(t, err)
	defer tx.Rollback(w.ctx)
	_, err = readmodel.Flip{Projection: "own", To: 1, Wait: 20 * time.Millisecond}.Do(w.ctx, tx)
	require.ErrorIs(t, err, readmodel.ErrBehind)
	require.ErrorContains(t, err, "User/1/")
	require.NoError(t, tx.Rollback(w.ctx))
	require.Equal(t, 2, w.active("own"))
}

// A topic whose events are not those of the event table makes other parts, and
// that shows before they are merged.
func TestPartsAreComparedWithTheEventTable(t *testing.T) {
	t.Parallel()
	w := setup(t, sharedYAML)
	w.history(20, 2)
	w.exec(`update refold.event set time = time + interval '3 days'`)
	_, err := w.run("shared", Options{})
	require.ErrorIs(t, err, ErrNotVerified)
	require.ErrorContains(t, err, "the event table")
}
