package rebuilder

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/readmodel"
)

const narrowYAML = `projection: narrow
category: User
fields:
  email:   {from: [UserCreated, UserEmailChanged.newEmail]}
  changes: {count: UserEmailChanged}
remove: UserDeleted
indexes:
  - {fields: [email]}
`

// wideYAML has fields more, one of them fed by a type that narrowYAML does not use.
var wideYAML = strings.Replace(narrowYAML, "remove:", `  failed:  {count: UserLoginFailed}
  first:   {first: UserCreated.email}
  seen:    {max: "*.$time"}
  kind:    {set: {UserEmailChanged: changed}, initial: fresh}
remove:`, 1) + "  - {fields: [failed]}\n"

var sharedWideYAML = sharedYAML + `  changes:  {count: UserEmailChanged}
  earliest: {min: "*.$time"}
  oldest:   {first: UserCreated.email}
  kind:     {set: {UserEmailChanged: changed}, initial: fresh}
`

// some appends events of all kinds to some streams, a few of which nobody created.
func (w *world) some(n int) {
	w.t.Helper()
	var events []*event.Event
	for range n {
		stream := fmt.Sprintf("user-%d", rand.IntN(60))
		switch i := rand.IntN(12); {
		case strings.HasSuffix(stream, "7") || i < 3: // never created: only a new type makes the row
			events = append(events, w.make(stream, "UserLoginFailed", `{}`))
		case i == 3:
			events = append(events, w.make(stream, "UserDeleted", `{}`))
		case i < 6 || w.versions[stream] == 0:
			events = append(events, w.make(stream, "UserCreated", fmt.Sprintf(`{"id": %q, "email": "c%d@example.com", "isActive": true}`, stream, w.now)))
		default:
			events = append(events, w.event(stream, fmt.Sprintf("c%d@example.com", w.now)))
		}
	}
	w.append(events...)
}

// appending appends events until stop is called.
func (w *world) appending() (stop func()) {
	ending, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-ending:
				return
			case <-time.After(3 * time.Millisecond):
				w.some(3)
			}
		}
	}()
	return func() { close(ending); <-ended }
}

// asBuilt requires that the rows of version 1 are what a fresh build makes.
func (w *world) asBuilt(name string) {
	w.t.Helper()
	w.settle(name, 1)
	rows := w.rows(name, 1)
	require.NotEmpty(w.t, rows)
	done, err := w.rebuilder().Run(w.ctx, name, Options{Fresh: true, Verify: VerifyFull}, nil)
	require.NoError(w.t, err)
	w.settle(name, done.Version)
	require.Equal(w.t, w.rows(name, done.Version), rows)
}

// New fields are filled into the version that serves, while events come in, and
// its rows are then those of a fresh build, byte for byte.
func TestNewFieldsAreFilledInPlace(t *testing.T) {
	t.Parallel()
	for name, wide := range map[string]string{"narrow": wideYAML, "shared": sharedWideYAML} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setup(t, narrowYAML, sharedYAML)
			w.some(600)
			w.follow()
			w.settle(name, 1)
			w.define(wide)
			plan, err := w.rebuilder().Plan(w.ctx, name, Options{}, false)
			require.NoError(t, err)
			require.Equal(t, "backfill", plan.Change)
			stop := w.appending()
			done, err := w.rebuilder().Run(w.ctx, name, Options{}, nil)
			stop()
			require.NoError(t, err)
			require.Equal(t, Fields, done.Kind)
			require.Equal(t, 1, done.Version)
			require.True(t, done.Report.OK)
			require.Equal(t, 1, w.active(name))
			plan, err = w.rebuilder().Plan(w.ctx, name, Options{}, false)
			require.NoError(t, err)
			require.Equal(t, "none", plan.Change)
			w.asBuilt(name)
		})
	}
}

// A job that fills fields is killed between any two of its writes, while events
// come in, and the next one goes on: the rows are those of a fresh build.
func TestFillingIsKilledEverywhereAndGoesOn(t *testing.T) {
	t.Parallel()
	for name, wide := range map[string]string{"narrow": wideYAML, "shared": sharedWideYAML} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setup(t, narrowYAML, sharedYAML)
			w.some(300)
			w.follow()
			w.settle(name, 1)
			w.define(wide)
			passed := make(map[string]bool)
			for run := 0; ; run++ {
				require.Less(t, run, 200)
				r := w.rebuilder()
				r.cfg.LeaseTime = 300 * time.Millisecond
				r.stopAt = func(point string) error {
					if point, _, _ = strings.Cut(point, " from "); passed[point] || point == "after promote" {
						return nil
					}
					passed[point] = true
					return fmt.Errorf("%w at %s", errStopped, point)
				}
				done, err := r.Run(w.ctx, name, Options{Parallel: 1}, nil)
				if errors.Is(err, errStopped) {
					w.some(5)
					continue
				}
				require.NoError(t, err)
				require.Equal(t, 1, done.Version)
				break
			}
			require.Greater(t, len(passed), 20)
			w.asBuilt(name)
		})
	}
}

// Cancelled in the middle, the rows are those of the former definition again.
func TestCancelledFillingLeavesTheFormerRows(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ wide, narrow, point string }{"narrow": {wideYAML, narrowYAML, "after fill User/2"}, "shared": {sharedWideYAML, sharedYAML, "after fill User/1"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setup(t, narrowYAML, sharedYAML)
			w.some(600)
			w.follow()
			w.settle(name, 1)
			w.define(c.wide)
			r := w.rebuilder()
			r.cfg.LeaseTime = 300 * time.Millisecond
			r.stopAt = func(point string) error {
				if strings.HasPrefix(point, c.point) {
					return errStopped
				}
				return nil
			}
			stopped, err := r.Run(w.ctx, name, Options{Parallel: 1}, nil)
			require.ErrorIs(t, err, errStopped)
			w.some(100)
			w.settle(name, 1)
			stop := w.appending()
			err = w.rebuilder().Cancel(w.ctx, stopped.ID)
			stop()
			require.NoError(t, err)
			now, err := r.Get(w.ctx, stopped.ID)
			require.NoError(t, err)
			require.Equal(t, Cancelled, now.State)
			w.define(c.narrow)
			w.asBuilt(name)
		})
	}
}

// Queries go by the former definition until the fields are offered.
func TestFilledFieldsWaitToBePromoted(t *testing.T) {
	t.Parallel()
	w := setup(t, narrowYAML)
	w.some(100)
	w.follow()
	w.settle("narrow", 1)
	w.define(wideYAML)
	r := w.rebuilder()
	waiting, err := r.Run(w.ctx, "narrow", Options{Promote: "manual"}, nil)
	require.NoError(t, err)
	require.Equal(t, Waiting, waiting.State)
	v, err := r.catalogue.Active(w.ctx, "narrow")
	require.NoError(t, err)
	require.True(t, v.Completing)
	plan, err := r.plans.Plan(v)
	require.NoError(t, err)
	require.Len(t, plan.Fields(), 2)
	require.EqualValues(t, 0, w.number(`select count(*) from refold.rows_narrow_v1 where not data ? 'failed'`))
	reader := w.reader()
	shown := func() (one, listed string) {
		page, _, err := reader.List(w.ctx, "narrow", readmodel.ListQuery{Limit: 1, Order: []readmodel.Order{{Field: "email"}}}, readmodel.Fresh{})
		require.NoError(t, err)
		row, _, err := reader.Get(w.ctx, "narrow", page.Keys[0], readmodel.Fresh{})
		require.NoError(t, err)
		return string(row), string(page.Rows[0])
	}
	one, listed := shown()
	require.NotContains(t, one, "failed")
	require.Contains(t, one, "changes")
	require.Equal(t, one, listed)
	done, err := r.Promote(w.ctx, waiting.ID)
	require.NoError(t, err)
	require.Equal(t, Done, done.State)
	v, err = r.catalogue.Active(w.ctx, "narrow")
	require.NoError(t, err)
	require.False(t, v.Completing)
	plan, err = r.plans.Plan(v)
	require.NoError(t, err)
	require.Len(t, plan.Fields(), 6)
	require.Eventually(t, func() bool {
		one, listed := shown()
		return strings.Contains(one, "failed") && one == listed
	}, 60*time.Second, 10*time.Millisecond)
	require.EqualValues(t, 1, w.number(`select count(*) from pg_indexes where tablename = 'rows_narrow_v1' and indexdef like '%''failed''%'`))
}

// While fields are filled, some rows have them and others have not, and rows are
// there that only they make: what queries show is what the log makes all the time,
// and a row that is tampered with is named all the same.
func TestVerifyWhileFieldsAreFilled(t *testing.T) {
	t.Parallel()
	for name, texts := range map[string][2]string{"narrow": {narrowYAML, wideYAML}, "shared": {sharedYAML, sharedWideYAML}} {
		w := setup(t, texts[0])
		w.some(300)
		w.follow()
		w.settle(name, 1)
		stop := w.appending()
		w.define(texts[1])
		r := w.rebuilder()
		verified := func() (live, rebuilt error) {
			feeds, err := engine.Setup(w.ctx, w.pool, w.contracts, w.definitions, nil)
			require.NoError(t, err)
			require.Len(t, feeds, 1)
			report, live := engine.Verify(w.ctx, w.pool, w.registry, feeds[0])
			require.True(t, report.Filling)
			for _, how := range []Verification{VerifyFull, VerifySample} {
				report, err := r.Verify(w.ctx, name, 0, how)
				require.NoError(t, err)
				if !report.OK {
					rebuilt = fmt.Errorf("%+v", report.Failed())
				}
			}
			return live, rebuilt
		}
		looks := 0
		r.stopAt = func(point string) error {
			if !strings.HasPrefix(point, "before fill") && point != "before step verify" || looks > 3 {
				return nil
			}
			looks++
			live, rebuilt := verified()
			require.NoError(t, live, point)
			require.NoError(t, rebuilt, point)
			return nil
		}
		waiting, err := r.Run(w.ctx, name, Options{Promote: "manual", Parallel: 1}, nil)
		require.NoError(t, err)
		require.Greater(t, looks, 1)
		stop()
		w.settle(name, 1)
		w.exec(`update refold.rows_` + name + `_v1 set data = data || '{"` + map[string]string{"narrow": "changes", "shared": "events"}[name] + `": 777}' where key = (select min(key) from refold.rows_` + name + `_v1 where data ? 'last' or data->>'email' is not null)`)
		live, rebuilt := verified()
		require.ErrorIs(t, live, engine.ErrDiffers)
		require.ErrorContains(t, rebuilt, "777")
		_, err = r.Promote(w.ctx, waiting.ID)
		require.NoError(t, err)
	}
}

// An event that only the new fields cannot take: nothing is changed, and the
// stream is named.
func TestFieldsThatWouldParkAreNotFilled(t *testing.T) {
	t.Parallel()
	w := setup(t, narrowYAML[:strings.Index(narrowYAML, "indexes:")])
	w.some(50)
	w.append(w.event("user-long", "a"), w.event("user-long", strings.Repeat("x", 2100)))
	w.follow()
	w.settle("narrow", 1)
	before := w.rows("narrow", 1)
	w.define(strings.Replace(strings.Replace(narrowYAML, "  changes:", "  mail:    {from: [UserCreated.email, UserEmailChanged.newEmail]}\n  changes:", 1), "[email]}", "[mail]}", 1))
	_, err := w.rebuilder().Run(w.ctx, "narrow", Options{}, nil)
	var unfit *Unfit
	require.ErrorAs(t, err, &unfit)
	require.Equal(t, "user-long", unfit.Stream)
	require.Equal(t, before, w.rows("narrow", 1))
	latest, err := w.rebuilder().Latest(w.ctx, "narrow")
	require.NoError(t, err)
	require.Equal(t, Cancelled, latest.State)
	require.Contains(t, latest.Error, "--fresh")
}

// Whoever feeds by the former plan is refused from the change of plan on.
func TestFormerPlanFeedsNothingAfterTheChange(t *testing.T) {
	t.Parallel()
	w := setup(t, narrowYAML)
	w.some(200)
	stop := w.live() // by the plan that it has begun with, for ever
	w.settle("narrow", 1)
	w.define(wideYAML)
	_, err := w.rebuilder().Run(w.ctx, "narrow", Options{}, nil)
	require.NoError(t, err)
	at := w.number(`select sum(s) from refold.progress, unnest(seqs) s`)
	w.some(50)
	require.Never(t, func() bool {
		var now int64
		err := w.pool.QueryRow(w.ctx, `select sum(s) from refold.progress, unnest(seqs) s`).Scan(&now)
		return err == nil && now != at
	}, 2*time.Second, 50*time.Millisecond)
	stop()
	w.follow()
	w.asBuilt("narrow")
}
