package eventstore_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
)

// call is one append as its client saw it. Times are those of the machine, which
// all processes of a test share.
type call struct {
	Stream      string
	Expected    int64 // -1 any, -2 exists, else the version
	Events      int64
	Began, End  int64
	OK          bool
	First, Last int64 // where it is OK
	Actual      int64 // of a conflict
	Failure     string
}

const historyURL = "REFOLD_TEST_HISTORY_DATABASE"

// TestHistoryOfAnotherProcess is the second process of the tests below.
func TestHistoryOfAnotherProcess(t *testing.T) {
	url := os.Getenv(historyURL)
	if url == "" {
		t.Skip("it is run by TestAppendsAreLinearizable")
	}
	pool, err := postgres.Open(ctx, postgres.Config{URL: url})
	require.NoError(t, err)
	defer pool.Close()
	history := clients(open(t, pool), 8, 60, 2)
	require.NoError(t, json.NewEncoder(os.NewFile(3, "history")).Encode(history))
}

// clients append to few streams from several goroutines and write down what they see.
func clients(store *eventstore.Store, n, each int, seed uint64) (history []call) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for w := range n {
		all.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(w)))
			seen := make(map[string]int64)
			for range each {
				stream := fmt.Sprint("s", random.IntN(4))
				c := call{Stream: stream, Events: 1 + random.Int64N(2), Expected: seen[stream]}
				expected := eventstore.Exactly(seen[stream])
				switch random.IntN(5) {
				case 0:
					c.Expected, expected = -1, eventstore.Any
				case 1:
					c.Expected, expected = -2, eventstore.Exists
				}
				c.Began = time.Now().UnixNano()
				result, err := store.Append(ctx, request(to(stream, expected, int(c.Events))))
				c.End = time.Now().UnixNano()
				var conflict *eventstore.VersionConflict
				switch {
				case err == nil:
					c.OK, c.First, c.Last = true, result.Appends[0].FirstVersion, result.Appends[0].LastVersion
					seen[stream] = c.Last
				case errors.As(err, &conflict):
					c.Actual = conflict.Actual
					seen[stream] = c.Actual
				default:
					c.Failure = err.Error()
				}
				mu.Lock()
				history = append(history, c)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return history
}

// check returns the first thing in a history that no order of its calls explains.
// As versions say in which order the appends to a stream took effect, an order is
// not searched for: the one that there is must be dense, keep to real time, and
// have met what each call expected.
func check(history []call) error {
	byStream := make(map[string][]call)
	for _, c := range history {
		if c.Failure != "" {
			return fmt.Errorf("an append failed: %s", c.Failure)
		}
		byStream[c.Stream] = append(byStream[c.Stream], c)
	}
	for _, calls := range byStream {
		if err := checkStream(calls); err != nil {
			return err
		}
	}
	return nil
}

func checkStream(calls []call) error {
	var order []call
	for _, c := range calls {
		if c.OK {
			order = append(order, c)
		}
	}
	slices.SortFunc(order, func(a, b call) int { return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Began, b.Began)) })
	version, began := int64(0), int64(0)
	for _, c := range order {
		before := c.First - 1
		switch {
		case before != version || c.Last != before+c.Events:
			return fmt.Errorf("version %d is followed by an append with versions %d to %d: %+v", version, c.First, c.Last, c)
		case c.Expected >= 0 && c.Expected != before, c.Expected == -2 && before == 0:
			return fmt.Errorf("an append took effect at version %d, which it did not expect: %+v", before, c)
		case c.End < began:
			return fmt.Errorf("an append took effect after one that began when it was over: %+v", c)
		}
		version, began = c.Last, max(began, c.Began)
	}
	for _, c := range calls {
		if c.OK {
			continue
		}
		if c.Expected == c.Actual || c.Expected == -1 || c.Expected == -2 && c.Actual != 0 {
			return fmt.Errorf("a conflict names what was expected: %+v", c)
		}
		// The version that it names must have been there at a moment of the call: begun
		// by its end, and no later one over when it began.
		known := c.Actual == 0
		for _, o := range order {
			if o.Last == c.Actual && o.Began <= c.End {
				known = true
			}
			if o.First > c.Actual && o.End < c.Began {
				return fmt.Errorf("a conflict names version %d, when %d was answered before: %+v", c.Actual, o.Last, c)
			}
		}
		if !known {
			return fmt.Errorf("a conflict names a version that was not there: %+v", c)
		}
	}
	return nil
}

// twoProcesses returns the history of clients of this process and of another one.
func twoProcesses(t *testing.T, pool *pgxpool.Pool) []call {
	t.Helper()
	store := open(t, pool)
	out, in, err := os.Pipe()
	require.NoError(t, err)
	defer out.Close()
	child := exec.Command(os.Args[0], "-test.run=^TestHistoryOfAnotherProcess$")
	child.Env = append(os.Environ(), historyURL+"="+pool.Config().ConnString())
	child.ExtraFiles = []*os.File{in}
	var said strings.Builder
	child.Stdout, child.Stderr = &said, &said
	require.NoError(t, child.Start())
	in.Close()
	history := clients(store, 8, 60, 1)
	var theirs []call
	require.NoError(t, json.NewDecoder(out).Decode(&theirs))
	require.NoError(t, child.Wait(), said.String())
	return append(history, theirs...)
}

func TestAppendsAreLinearizable(t *testing.T) {
	t.Parallel()
	pool := devstack.MigratedDatabase(t)
	history := twoProcesses(t, pool)
	require.NoError(t, check(history))
	accepted, refused := int64(0), 0
	for _, c := range history {
		if c.OK {
			accepted += c.Events
		} else {
			refused++
		}
	}
	require.Positive(t, refused, "else nothing was contended")
	requireLog(t, pool, accepted)
}

// The planted bug: versions and heads are read before the locks are had. The
// indexes that would catch it too are away.
func TestVersionsReadOutsideTheLockAreCaught(t *testing.T) {
	t.Parallel()
	pool := devstack.MigratedDatabase(t)
	for _, sql := range []string{`drop index refold.event_stream_version`, `alter table refold.event drop constraint event_pkey`, `create index on refold.event (category, slot, seq)`, `create index on refold.event (category, stream, version)`} {
		_, err := pool.Exec(ctx, sql)
		require.NoError(t, err)
	}
	plant(t, pool, "append_one", func(body string) string {
		return replaceOnce(t, replaceOnce(t, body, " for no key update;", ";"), "    if cardinality(ids) = 1 then", `    perform pg_sleep(0.002);
    perform from refold.slot l where l.category = in_category and l.slot = in_slot for no key update;
    if cardinality(ids) = 1 then`)
	})
	plant(t, pool, "append_prepare", func(body string) string {
		at := strings.Index(body, "    perform from (select u.c, u.s")
		end := at + strings.Index(body[at:], "    -- A key that is there")
		locks := body[at:end]
		body = body[:at] + body[end:]
		return replaceOnce(t, body, "    if taken_keys is not null then", "    perform pg_sleep(0.002);\n"+locks+"    if taken_keys is not null then")
	})
	require.Error(t, check(twoProcesses(t, pool)))
}

// plant changes a function of refold's in the test's database.
func plant(t *testing.T, pool *pgxpool.Pool, function string, change func(string) string) {
	t.Helper()
	var text string
	require.NoError(t, pool.QueryRow(ctx, `select pg_get_functiondef(p.oid) from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'refold' and p.proname = $1`, function).Scan(&text))
	_, err := pool.Exec(ctx, change(text))
	require.NoError(t, err)
}

func replaceOnce(t *testing.T, text, old, with string) string {
	t.Helper()
	require.Equal(t, 1, strings.Count(text, old), old)
	return strings.Replace(text, old, with, 1)
}

// What the checker must not let pass.
func TestCheckerOfHistories(t *testing.T) {
	t.Parallel()
	ok := func(first, last, expected, began, end int64) call {
		return call{OK: true, First: first, Last: last, Events: last - first + 1, Expected: expected, Began: began, End: end}
	}
	conflict := func(actual, expected, began, end int64) call {
		return call{Actual: actual, Expected: expected, Began: began, End: end}
	}
	require.NoError(t, check([]call{ok(1, 2, 0, 0, 10), ok(3, 3, 2, 5, 20), conflict(2, 0, 8, 9), conflict(3, 1, 15, 30)}))
	for name, history := range map[string][]call{
		"two with one version":     {ok(1, 1, 0, 0, 10), ok(1, 1, 0, 0, 10)},
		"a gap":                    {ok(1, 1, 0, 0, 10), ok(3, 3, -1, 0, 10)},
		"another than expected":    {ok(1, 1, 0, 0, 10), ok(2, 2, 5, 0, 10)},
		"exists before anything":   {ok(1, 1, -2, 0, 10)},
		"against real time":        {ok(1, 1, -1, 20, 30), ok(2, 2, -1, 0, 10)},
		"a conflict with itself":   {ok(1, 1, 0, 0, 10), conflict(1, 1, 0, 20)},
		"a stale conflict":         {ok(1, 1, 0, 0, 10), ok(2, 2, 1, 20, 30), conflict(1, 0, 40, 50)},
		"a conflict ahead of time": {ok(1, 1, 0, 20, 30), conflict(1, 0, 0, 10)},
		"a version in a batch":     {ok(1, 2, 0, 0, 10), conflict(1, 0, 5, 20)},
		"a failure":                {{Failure: "x"}},
	} {
		require.Error(t, check(history), name)
	}
}
