package aggregate_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/schemas"
	"github.com/refoldhq/refold/schemas/user"
)

// child has a process run changes on the database that it names and print what
// it saw, instead of tests.
const child = "AGGREGATE_TEST_CHILD"

func TestMain(m *testing.M) {
	if url := os.Getenv(child); url != "" {
		if err := changeAsChild(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// change is one call as its caller saw it.
type change struct {
	On, Made   int64 // versions
	Start, End int64 // nanoseconds of the machine's clock
}

const (
	goroutines = 64
	each       = 4
)

func changeAsChild(url string) error {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	contracts, err := avro.LoadContracts(schemas.FS)
	if err != nil {
		return err
	}
	known := registry.New(pool)
	ids, err := known.RegisterContracts(ctx, contracts, func(string) string { return "refold.user" })
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	store := eventstore.New(eventstore.Config{DatabaseURL: url}, log, prometheus.NewRegistry())
	if err := store.EnsureCategories(ctx, pool, []eventstore.CategorySpec{{Name: "User", Slots: 64, Partitions: 8, Topic: "refold.user"}}); err != nil {
		return err
	}
	go store.Run(ctx)
	rt, err := aggregate.NewRuntime(aggregate.Config{Snapshots: aggregate.Policy{Events: 10}}, aggregate.Deps{Store: store, Pool: pool, Schemas: known,
		Contracts: contracts, SchemaIDs: ids, Logger: log})
	if err != nil {
		return err
	}
	go rt.Run(ctx)
	accounts, err := aggregate.Open(rt, user.Define())
	if err != nil {
		return err
	}
	changes, err := changeConcurrently(accounts, fmt.Sprint(os.Getpid()))
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(changes)
}

// changeConcurrently changes the address of the account "a" from many goroutines.
func changeConcurrently(accounts *aggregate.Repository[user.Account], who string) (all []change, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Go(func() {
			for n := range each {
				c := change{Start: time.Now().UnixNano()}
				result, failed := accounts.Execute(ctx, "a", func(a *user.Account) error {
					c.On = a.Version()
					return a.ChangeEmail(user.ChangeEmail{Email: fmt.Sprintf("%s-%d-%d@example.com", who, i, n)})
				}, aggregate.WithAttempts(1000))
				c.End = time.Now().UnixNano()
				mu.Lock()
				if failed != nil {
					err = failed
				} else {
					c.Made = result.Version
					all = append(all, c)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return all, err
}

// 64 goroutines in each of two processes change one account. No update is lost:
// every change was made on the version that the one before it had made. And the
// order of versions is one in which a change that had ended before another began
// comes first, so the account is linearizable.
func TestConcurrentCallsOfTwoProcessesLoseNoUpdate(t *testing.T) {
	t.Parallel()
	w := open(t, devstack.MigratedDatabase(t), aggregate.Config{Snapshots: aggregate.NoSnapshots})
	_, err := w.accounts.Create(ctx, "a", create("0@example.com"))
	require.NoError(t, err)
	exe, err := os.Executable()
	require.NoError(t, err)
	other := exec.Command(exe, "-test.run=^$")
	other.Env = append(os.Environ(), child+"="+w.pool.Config().ConnString())
	other.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	other.Stdout, other.Stderr = &out, os.Stderr
	require.NoError(t, other.Start())
	require.Eventually(t, func() bool { // the two must meet
		a, err := w.accounts.Load(ctx, "a")
		return err == nil && a.Version() > 1
	}, 60*time.Second, time.Millisecond)
	changes, err := changeConcurrently(w.accounts, "here")
	require.NoError(t, err)
	require.NoError(t, other.Wait())
	var there []change
	require.NoError(t, json.Unmarshal(out.Bytes(), &there))
	changes = append(changes, there...)
	require.Len(t, changes, 2*goroutines*each)

	slices.SortFunc(changes, func(a, b change) int { return int(a.Made - b.Made) })
	firstEnd := int64(1 << 62) // of all later versions
	for i := len(changes) - 1; i >= 0; i-- {
		c := changes[i]
		require.EqualValues(t, i+2, c.Made)
		require.Equal(t, c.Made-1, c.On)
		require.Less(t, c.Start, firstEnd, "version %d began when a later one had ended", c.Made)
		firstEnd = min(firstEnd, c.End)
	}
	a, err := w.accounts.Load(ctx, "a")
	require.NoError(t, err)
	require.EqualValues(t, 1+len(changes), a.Version())
	claims, err := eventstore.NewReader(w.pool).ClaimsOf(ctx, w.category(t), "a")
	require.NoError(t, err)
	require.Equal(t, a.Claims(), claims)
}
