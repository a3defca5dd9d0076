package eventstore_test

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
)

var ctx = context.Background()

var categories = []eventstore.CategorySpec{{Name: "User", Slots: 64, Partitions: 8, Topic: "refold.user"}, {Name: "Order", Slots: 16, Partitions: 4, Topic: "refold.order"}}

// open starts a store on a pool's database.
func open(t testing.TB, pool *pgxpool.Pool) *eventstore.Store {
	t.Helper()
	return start(t, pool, eventstore.Config{DatabaseURL: pool.Config().ConnString()}, io.Discard)
}

func setup(t testing.TB) (*eventstore.Store, *pgxpool.Pool) {
	t.Helper()
	pool := devstack.MigratedDatabase(t)
	return open(t, pool), pool
}

func to(stream string, expected eventstore.Expected, n int) eventstore.Append {
	a := eventstore.Append{Category: "User", Stream: stream, Expected: expected}
	for i := range n {
		a.Events = append(a.Events, eventstore.NewEvent{Type: "UserCreated", Value: []byte(fmt.Sprintf("value %d", i))})
	}
	return a
}

func request(appends ...eventstore.Append) *eventstore.Request {
	return &eventstore.Request{Appends: appends}
}

func TestExpectedVersions(t *testing.T) {
	t.Parallel()
	store, _ := setup(t)
	for _, step := range []struct {
		expected eventstore.Expected
		ok       bool
		actual   int64
	}{
		{eventstore.Exists, false, 0}, {eventstore.Exactly(1), false, 0}, {eventstore.None, true, 0}, {eventstore.None, false, 2},
		{eventstore.Exactly(2), true, 0}, {eventstore.Exactly(2), false, 4}, {eventstore.Exists, true, 0}, {eventstore.Any, true, 0},
	} {
		result, err := store.Append(ctx, request(to("a", step.expected, 2)))
		if step.ok {
			require.NoError(t, err)
			require.Len(t, result.Appends[0].Events, 2)
			continue
		}
		var conflict *eventstore.VersionConflict
		require.ErrorAs(t, err, &conflict)
		require.Equal(t, step.actual, conflict.Actual)
	}
	nowhere := to("a", eventstore.Any, 1)
	nowhere.Category = "Nope"
	_, err := store.Append(ctx, request(nowhere))
	require.ErrorIs(t, err, eventstore.ErrUnknownCategory)
}

func TestAppendsOfSeveralStreamsAreAllOrNothing(t *testing.T) {
	t.Parallel()
	store, pool := setup(t)
	_, err := store.Append(ctx, request(to("a", eventstore.None, 1), to("b", eventstore.Exists, 1)))
	require.Error(t, err)
	reader := eventstore.NewReader(pool)
	user, _ := store.Category("User")
	_, err = reader.Stream(ctx, user, "a")
	require.ErrorIs(t, err, eventstore.ErrNoStream)
	result, err := store.Append(ctx, request(to("a", eventstore.None, 1), to("b", eventstore.None, 3)))
	require.NoError(t, err)
	require.EqualValues(t, 3, result.Appends[1].LastVersion)
	require.Len(t, result.Token(), 2)
}

func TestIdempotencyKeyReplaysTheFirstAnswer(t *testing.T) {
	t.Parallel()
	store, _ := setup(t)
	keyed := func(hash string, expected eventstore.Expected) *eventstore.Request {
		r := request(to("a", expected, 2))
		r.Key, r.Hash = "k", []byte(hash)
		return r
	}
	_, err := store.Append(ctx, keyed("h", eventstore.Exists))
	require.Error(t, err, "a refused request frees its key")
	first, err := store.Append(ctx, keyed("h", eventstore.None))
	require.NoError(t, err)
	again, err := store.Append(ctx, keyed("h", eventstore.None))
	require.NoError(t, err)
	require.True(t, again.Replayed)
	require.Equal(t, first.Appends, again.Appends)
	_, err = store.Append(ctx, keyed("other", eventstore.None))
	require.ErrorIs(t, err, eventstore.ErrKeyReused)
}

// A key stands for its request also where that was found by the ids of its events,
// and nothing else was there to commit.
func TestAKeyIsKeptOfARequestThatIsFoundByItsEvents(t *testing.T) {
	t.Parallel()
	store, _ := setup(t)
	id := event.NewID()
	with := func(key, hash string) *eventstore.Request {
		r := request(to("a", eventstore.Any, 1))
		r.Appends[0].Events[0].ID = id
		r.Key, r.Hash = key, []byte(hash)
		return r
	}
	first, err := store.Append(ctx, with("", ""))
	require.NoError(t, err)
	again, err := store.Append(ctx, with("k", "h"))
	require.NoError(t, err)
	require.True(t, again.Replayed)
	again, err = store.Append(ctx, with("k", "h"))
	require.NoError(t, err)
	require.Equal(t, first.Appends, again.Appends)
	other := request(to("b", eventstore.Any, 1))
	other.Key, other.Hash = "k", []byte("other")
	_, err = store.Append(ctx, other)
	require.ErrorIs(t, err, eventstore.ErrKeyReused)
}

func TestEventIDsReplayForEver(t *testing.T) {
	t.Parallel()
	store, _ := setup(t)
	a, b, c := event.NewID(), event.NewID(), event.NewID()
	with := func(stream string, ids ...event.ID) *eventstore.Request {
		r := request(to(stream, eventstore.Any, len(ids)))
		for i, id := range ids {
			r.Appends[0].Events[i].ID = id
		}
		return r
	}
	first, err := store.Append(ctx, with("s", a, b))
	require.NoError(t, err)
	again, err := store.Append(ctx, with("s", a, b))
	require.NoError(t, err)
	require.True(t, again.Replayed)
	require.Equal(t, first.Appends, again.Appends)
	for _, bad := range []*eventstore.Request{with("other", a), with("s", a, c), with("s", c, c), with("s", b, a)} {
		_, err := store.Append(ctx, bad)
		var taken *eventstore.EventIDTaken
		require.ErrorAs(t, err, &taken)
	}
	made, err := store.Append(ctx, request(to("made", eventstore.Any, 1)))
	require.NoError(t, err)
	_, err = store.Append(ctx, with("s", made.Appends[0].Events[0].ID))
	var taken *eventstore.EventIDTaken
	require.ErrorAs(t, err, &taken, "an id that the writer made is taken too")
	_, err = store.Append(ctx, with("s", c))
	require.NoError(t, err)
}

func TestClaimsHaveOneHolder(t *testing.T) {
	t.Parallel()
	store, pool := setup(t)
	email := func(v string) []eventstore.Claim { return []eventstore.Claim{{Namespace: "user.email", Value: v}} }
	claim := func(stream string, claims, releases []eventstore.Claim) error {
		r := request(to(stream, eventstore.Any, 1))
		r.Appends[0].Claims, r.Appends[0].Releases = claims, releases
		_, err := store.Append(ctx, r)
		return err
	}
	require.NoError(t, claim("a", email("x"), nil))
	require.NoError(t, claim("a", email("x"), nil), "what one holds")
	var taken *eventstore.ClaimTaken
	require.ErrorAs(t, claim("b", email("x"), nil), &taken)
	require.Equal(t, "a", taken.Stream)
	require.Equal(t, "User", taken.Category)
	require.NoError(t, claim("b", nil, email("x")), "releasing what one does not hold is ignored")
	require.ErrorAs(t, claim("b", email("x"), nil), &taken)
	require.NoError(t, claim("a", email("x"), email("x")), "releases take effect first")
	require.NoError(t, claim("a", email("y"), email("x")))
	require.NoError(t, claim("b", email("x"), nil))
	var held, locks int
	require.NoError(t, pool.QueryRow(ctx, `select count(*), count(*) filter (where stream is null) from refold.claim`).Scan(&held, &locks))
	require.Equal(t, 2, held)
	require.Zero(t, locks, "no lock row is committed")
}

func TestTwoWritersRaceForOneKeyAndTwoSlots(t *testing.T) {
	t.Parallel()
	one, pool := setup(t)
	two := open(t, pool)
	for round := range 50 {
		var won, reused atomic.Int64
		var all sync.WaitGroup
		for i, store := range []*eventstore.Store{one, two} {
			all.Go(func() {
				r := request(to(fmt.Sprintf("race-%d-%d", round, i), eventstore.None, 1))
				r.Key, r.Hash = fmt.Sprintf("key-%d", round), []byte{byte(i)}
				switch _, err := store.Append(ctx, r); {
				case err == nil:
					won.Add(1)
				default:
					require.ErrorIs(t, err, eventstore.ErrKeyReused)
					reused.Add(1)
				}
			})
		}
		all.Wait()
		require.EqualValues(t, 1, won.Load())
		require.EqualValues(t, 1, reused.Load())
	}
}

// Many callers on few streams through two stores: every slot and every stream is
// dense, and of those that expected one version exactly one got it.
func TestSequencesAreDenseUnderContention(t *testing.T) {
	t.Parallel()
	one, pool := setup(t)
	two := open(t, pool)
	var accepted atomic.Int64
	var all sync.WaitGroup
	for w := range 32 {
		all.Go(func() {
			store := []*eventstore.Store{one, two}[w%2]
			for i := range 40 {
				expected := eventstore.Any
				if i%2 == 0 {
					expected = eventstore.Exactly(int64(i))
				}
				_, err := store.Append(ctx, request(to(fmt.Sprintf("s%d", (w+i)%9), expected, 1+i%3), to(fmt.Sprintf("t%d", i%5), eventstore.Any, 1)))
				var conflict *eventstore.VersionConflict
				if err != nil {
					require.ErrorAs(t, err, &conflict)
					continue
				}
				accepted.Add(int64(1 + i%3 + 1))
			}
		})
	}
	all.Wait()
	report, err := eventstore.VerifyLog(ctx, pool)
	require.NoError(t, err)
	require.Equal(t, accepted.Load(), report.Events)
}

func TestVerifyLogNamesTheFirstBreak(t *testing.T) {
	t.Parallel()
	store, pool := setup(t)
	for range 5 {
		_, err := store.Append(ctx, request(to("a", eventstore.Any, 1)))
		require.NoError(t, err)
	}
	_, err := pool.Exec(ctx, `delete from refold.event where version = 3`)
	require.NoError(t, err)
	_, err = eventstore.VerifyLog(ctx, pool)
	require.ErrorContains(t, err, "User/")
}

func TestReadingBothWaysAndBySlot(t *testing.T) {
	t.Parallel()
	store, pool := setup(t)
	at := event.TimeOf(time.Date(2020, 1, 2, 3, 4, 5, 6000, time.UTC))
	r := request(to("a", eventstore.None, 5))
	r.Metadata = event.Metadata{Actor: "me", CorrelationID: "c"}
	r.Appends[0].Events[2].Time = &at
	result, err := store.Append(ctx, r)
	require.NoError(t, err)
	reader := eventstore.NewReader(pool)
	user, _ := store.Category("User")

	forward, err := reader.StreamEvents(ctx, user, "a", 1, 3, false)
	require.NoError(t, err)
	require.Equal(t, []int64{2, 3, 4}, versions(forward))
	backward, err := reader.StreamEvents(ctx, user, "a", 0, 2, true)
	require.NoError(t, err)
	require.Equal(t, []int64{5, 4}, versions(backward))
	require.Equal(t, at, forward[1].Time)
	require.Equal(t, "me", forward[0].Metadata.Actor)

	slot := result.Appends[0].Events[0].Position.Slot
	list, err := reader.SlotEvents(ctx, user, slot, 2, 10)
	require.NoError(t, err)
	require.Len(t, list, 3)
	require.Equal(t, result.Appends[0].Events[1].ID, list[0].PrevID)
	heads, err := reader.Heads(ctx, user)
	require.NoError(t, err)
	require.EqualValues(t, 5, heads[slot])
	found, err := reader.EventByID(ctx, result.Appends[0].Events[3].ID)
	require.NoError(t, err)
	require.EqualValues(t, 4, found.Version)
	_, err = reader.EventByID(ctx, event.NewID())
	require.ErrorIs(t, err, eventstore.ErrNoEvent)
}

func versions(list []event.Event) (out []int64) {
	for _, e := range list {
		out = append(out, e.Version)
	}
	return out
}

func TestTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	store, pool := setup(t)
	r := request(to("a", eventstore.Any, 1))
	r.Appends[0].Events[0].Value = make([]byte, 900_000)
	_, err := store.Append(ctx, r)
	var large *eventstore.TooLarge
	require.ErrorAs(t, err, &large)
	fits := 900_000 - (large.Bytes - large.Limit)
	r.Appends[0].Events[0].Value = make([]byte, fits+1)
	_, err = store.Append(ctx, r)
	require.ErrorAs(t, err, &large)
	require.Equal(t, large.Limit+1, large.Bytes, "one byte too many")
	requireLog(t, pool, 0)
	r.Appends[0].Events[0].Value = make([]byte, fits)
	_, err = store.Append(ctx, r)
	require.NoError(t, err)
	requireLog(t, pool, 1)
}

func BenchmarkAppend(b *testing.B) {
	for _, callers := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			store, _ := setup(b)
			var n atomic.Int64
			var all sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for w := range callers {
				all.Go(func() {
					for i := 0; n.Add(1) <= int64(b.N); i++ {
						if _, err := store.Append(ctx, request(to(fmt.Sprintf("w%d-%d", w, i), eventstore.None, 1))); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func TestStreamsAreListedInOrder(t *testing.T) {
	t.Parallel()
	store, pool := setup(t)
	for _, stream := range []string{"b", "a", "c", "a", "B"} {
		_, err := store.Append(ctx, request(to(stream, eventstore.Any, 2)))
		require.NoError(t, err)
	}
	reader := eventstore.NewReader(pool)
	user, _ := store.Category("User")
	var names []string
	for after := ""; ; {
		page, err := reader.Streams(ctx, user, after, 2)
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		for _, s := range page {
			names = append(names, fmt.Sprint(s.ID, s.Version))
			after = s.ID
		}
	}
	require.Equal(t, []string{"B2", "a4", "b2", "c2"}, names)
}

// Ids of categories are few: starting again takes none.
func TestCategoriesThatAreThereTakeNoIDs(t *testing.T) {
	t.Parallel()
	store, pool := setup(t)
	for range 5 {
		require.NoError(t, store.EnsureCategories(ctx, pool, categories))
	}
	require.NoError(t, store.EnsureCategories(ctx, pool, []eventstore.CategorySpec{{Name: "Invoice", Slots: 4, Partitions: 2, Topic: "refold.invoice"}}))
	order, _ := store.Category("Order")
	invoice, _ := store.Category("Invoice")
	require.Equal(t, order.ID+1, invoice.ID)
}
