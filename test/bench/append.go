package main

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
)

// benchAppend measures appends in process: single events at an expected
// version, each caller with streams of its own.
func benchAppend(ctx context.Context, b *bench) error {
	store, url, stop, err := b.store(ctx, "bench_append")
	if err != nil {
		return err
	}
	defer stop()

	plain, plainAt, err := bestPlainRate(ctx, url, false)
	if err != nil {
		return err
	}
	outbox, outboxAt, err := bestPlainRate(ctx, url, true)
	if err != nil {
		return err
	}
	for _, callers := range []int{64, 256, 1024} {
		perSecond, took, each, err := appendRate(ctx, store, callers, 6*time.Second)
		if err != nil {
			return err
		}
		goal := ""
		if callers == 256 {
			goal = ">= 50k/s, p99 < 15 ms; >= 2.5x plain"
		}
		b.report.line(fmt.Sprintf("append in process, %d callers", callers), fmt.Sprintf("%s, %s, %s", thousands(perSecond), took, each), goal,
			fmt.Sprintf("one-row inserts, best at %d connections: %s", plainAt, thousands(plain)), perSecond/plain)
		if callers == 256 {
			b.report.line("the same", thousands(perSecond), ">= 6x", fmt.Sprintf("event and outbox row, best at %d connections: %s", outboxAt, thousands(outbox)), perSecond/outbox)
		}
	}
	return b.oneCaller(ctx, store, url)
}

// oneCaller compares an append with a plain insert by turns, so that whatever else
// the machine does befalls both.
func (b *bench) oneCaller(ctx context.Context, store *eventstore.Store, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var appends, inserts latencies
	var appending, inserting time.Duration
	for i, end := 0, time.Now().Add(8*time.Second); time.Now().Before(end); i++ {
		began := time.Now()
		if err := appendOne(ctx, store, fmt.Sprintf("one-%d", i/10), int64(i%10)); err != nil {
			return err
		}
		middle := time.Now()
		if _, err := conn.Exec(ctx, plainInsert, i%64, fmt.Sprintf("one-%d", i), samplePayload); err != nil {
			return err
		}
		end := time.Now()
		appends, inserts = append(appends, middle.Sub(began)), append(inserts, end.Sub(middle))
		appending, inserting = appending+middle.Sub(began), inserting+end.Sub(middle)
	}
	one, plain := rate(len(appends), appending), rate(len(inserts), inserting)
	b.report.line("append, one caller, by turns with plain inserts", fmt.Sprintf("%s, %s", thousands(one), appends), ">= 80 % of plain", fmt.Sprintf("one-row inserts, one connection: %s, %s", thousands(plain), inserts), one/plain)
	return nil
}

// store opens an event store on a fresh database with the category User.
func (b *bench) store(ctx context.Context, database string) (store *eventstore.Store, url string, stop func(), err error) {
	pool, url, err := b.database(ctx, database)
	if err != nil {
		return nil, "", nil, err
	}
	store, stop, err = b.openStore(ctx, pool, url)
	return store, url, stop, err
}

// openStore migrates a database and runs a store on it.
func (b *bench) openStore(ctx context.Context, pool *pgxpool.Pool, url string) (*eventstore.Store, func(), error) {
	if err := postgres.Migrate(ctx, pool); err != nil {
		return nil, nil, err
	}
	store := eventstore.New(eventstore.Config{DatabaseURL: url}, b.log, prometheus.NewRegistry())
	if err := store.EnsureCategories(ctx, pool, []eventstore.CategorySpec{{Name: "User", Slots: 64, Partitions: 8, Topic: "bench.user"}}); err != nil {
		return nil, nil, err
	}
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		store.Run(running)
		close(done)
	}()
	return store, func() {
		cancel()
		<-done
		pool.Close()
	}, nil
}

// cost is what one operation takes of this process.
type cost struct{ cpu, allocations, bytes float64 }

func (c cost) String() string {
	return fmt.Sprintf("%.1f us CPU, %.0f allocations, %.0f bytes each", c.cpu, c.allocations, c.bytes)
}

// appendRate appends from n callers for a while.
func appendRate(ctx context.Context, store *eventstore.Store, n int, during time.Duration) (perSecond float64, all latencies, each cost, err error) {
	var made atomic.Int64
	var failure atomic.Pointer[error]
	lists := make([]latencies, n)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpuBefore, start := cpu(), time.Now()
	end := start.Add(during)
	run := start.UnixNano()
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() {
			for i := 0; time.Now().Before(end); i++ {
				began := time.Now()
				if err := appendOne(ctx, store, fmt.Sprintf("a%d-%d-%d", run, w, i/10), int64(i%10)); err != nil {
					failure.Store(&err)
					return
				}
				lists[w] = append(lists[w], time.Since(began))
				made.Add(1)
			}
		})
	}
	wg.Wait()
	if err := failure.Load(); err != nil {
		return 0, nil, cost{}, fmt.Errorf("appending: %w", *err)
	}
	for _, l := range lists {
		all = append(all, l...)
	}
	count := int(made.Load())
	runtime.ReadMemStats(&after)
	each = cost{float64((cpu() - cpuBefore).Microseconds()) / float64(count), float64(after.Mallocs-before.Mallocs) / float64(count), float64(after.TotalAlloc-before.TotalAlloc) / float64(count)}
	return rate(count, time.Since(start)), all, each, nil
}

func appendOne(ctx context.Context, store *eventstore.Store, stream string, version int64) error {
	_, err := store.Append(ctx, &eventstore.Request{Appends: []eventstore.Append{{
		Category: "User", Stream: stream, Expected: eventstore.Exactly(version),
		Events: []eventstore.NewEvent{{Type: "UserCreated", Value: samplePayload}},
	}}})
	return err
}

// database makes an empty, migrated database and a pool on it.
func (b *bench) database(ctx context.Context, name string) (*pgxpool.Pool, string, error) {
	return freshDatabase(ctx, b.postgres, name)
}
