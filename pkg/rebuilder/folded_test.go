package rebuilder

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/event"
)

// checking verifies version 1 in full beside what the test does. It is held up
// once it folds, until goOn is called, which returns the report.
func (w *world) checking(name string) (goOn func() *Report) {
	w.t.Helper()
	r := w.rebuilder()
	j := r.newJob(name, 0)
	var err error
	j.plan, err = r.compile(name)
	require.NoError(w.t, err)
	j.categories, err = r.categories(w.ctx, j.plan)
	require.NoError(w.t, err)
	j.version, err = r.findVersion(w.ctx, name, 1)
	require.NoError(w.t, err)
	j.rebuild.Options, err = Options{}.withDefaults()
	require.NoError(w.t, err)
	j.limiter.pause()
	var report *Report
	var failure error
	done := make(chan struct{})
	go func() {
		defer close(done)
		report, failure = j.verifyVersion(w.ctx, j.version, VerifyFull)
	}()
	require.Eventually(w.t, func() bool { return strings.HasPrefix(j.meter.read(time.Now()).Why, "paused") }, time.Minute, 5*time.Millisecond)
	return func() *Report {
		w.t.Helper()
		j.limiter.resume()
		<-done
		require.NoError(w.t, failure)
		return report
	}
}

// poison appends an event that nobody can apply.
func (w *world) poison(stream string) {
	w.t.Helper()
	e := w.event(stream, "never read")
	e.Value = e.Value[:6]
	w.append(e)
}

// More events come while the log is folded than are brought forward within a
// snapshot. Nothing that keeps the server from vacuuming is held meanwhile.
func TestVerifyFoldsTheLogWithoutASnapshot(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"own", "shared"} {
		w := setup(t, ownYAML, sharedYAML)
		w.history(30, 3)
		w.live()
		w.settle(name, 1)
		goOn := w.checking(name)
		require.Zero(t, w.number(`select count(*) from pg_stat_activity where datname = current_database() and application_name like 'refold-rebuild-%' and (xact_start is not null or backend_xmin is not null or backend_xid is not null)`))
		w.history(40, 2*enough/40)
		w.settle(name, 1)
		report := goOn()
		require.True(t, report.OK, "%+v", report)
		require.Contains(t, report.Checks[3].Detail, "a fold of "+w.text(`select count(*)::text from refold.event`)+" events")

		goOn = w.checking(name)
		w.history(40, 2*enough/40)
		w.settle(name, 1)
		table := "refold.rows_" + name + "_v1"
		key := w.text(`update ` + table + ` set data = data || '{"events": 77}' where key = (select max(key) from ` + table + `) returning key`)
		failed := failedChecks(goOn())["full"]
		require.Len(t, failed.Samples, 1)
		require.Equal(t, key, failed.Samples[0].Key)
	}
}

// A stream that the log has parked stays parked in the fold, whatever the version
// has made of its later events.
func TestVerifySeesAnEventThatWasLeftOut(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"own", "shared"} {
		w := setup(t, ownYAML, sharedYAML)
		w.history(10, 2)
		w.poison("user-3")
		stop := w.live()
		w.settle(name, 1)
		stop()
		w.exec(`delete from refold.parked_event`)
		w.exec(`delete from refold.parked_stream`)
		goOn := w.checking(name)
		stop = w.live()
		w.append(w.event("user-3", "later@example.com"))
		w.settle(name, 1)
		stop()
		require.NotEmpty(t, failedChecks(goOn())["full"].Samples, name)
	}
}

// What somebody decides while the log is folded holds for the fold too.
func TestVerifyFoldsAnewWhenAnEventIsSkipped(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"own", "shared"} {
		w := setup(t, ownYAML, sharedYAML)
		w.history(10, 2)
		const stream = "user-1"
		require.Zero(t, event.SlotOf(stream, 16)%4, "it is to be folded first")
		w.poison(stream)
		w.append(w.event(stream, "behind@example.com"))
		w.live()
		w.settle(name, 1)
		goOn := w.checking(name)
		_, err := engine.NewParked(w.pool).Request(w.ctx, name, "User", stream, "skip", "it cannot be read")
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			return w.number(`select count(*) from refold.parked_stream where projection = $1`, name) == 0
		}, time.Minute, 10*time.Millisecond)
		report := goOn()
		require.True(t, report.OK, "%+v", report)
	}
}
