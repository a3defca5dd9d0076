package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/schemas"
	"github.com/refoldhq/refold/schemas/user"
)

// benchAggregate measures commands on warm aggregates beside raw appends, loading
// with and without a snapshot, and reading events of older versions.
func benchAggregate(ctx context.Context, b *bench) error {
	pool, url, err := b.database(ctx, "bench_aggregate")
	if err != nil {
		return err
	}
	store, stop, err := b.openStore(ctx, pool, url)
	if err != nil {
		return err
	}
	defer stop()
	rt, accounts, err := openAccounts(ctx, b, aggregate.Config{}, store, pool)
	if err != nil {
		return err
	}
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	go rt.Run(running)
	const callers = 256
	// Each of the two is measured twice, in turn, so that neither has the better of it.
	var raw, executed float64
	var rawCPU, cpuEach float64
	var took latencies
	for range 2 {
		r, _, c, err := appendRate(ctx, store, callers, 6*time.Second)
		if err != nil {
			return err
		}
		e, latency, ce, err := executeRate(ctx, accounts, callers, 6*time.Second)
		if err != nil {
			return err
		}
		raw, executed, rawCPU, cpuEach, took = raw+r/2, executed+e/2, rawCPU+c.cpu/2, cpuEach+ce/2, append(took, latency...)
	}
	b.report.line(fmt.Sprintf("Execute on warm aggregates, %d callers", callers), fmt.Sprintf("%s, %s, %.1f us CPU each", thousands(executed), took, cpuEach), ">= 70 %",
		fmt.Sprintf("appends in process, %d callers: %s, %.1f us CPU each", callers, thousands(raw), rawCPU), executed/raw)
	// Here snapshots are written when they are asked for.
	_, accounts, err = openAccounts(ctx, b, aggregate.Config{Snapshots: aggregate.NoSnapshots}, store, pool)
	if err != nil {
		return err
	}
	if err := benchLoad(ctx, b, accounts); err != nil {
		return err
	}
	return benchUpcast(b)
}

func openAccounts(ctx context.Context, b *bench, cfg aggregate.Config, store *eventstore.Store, pool *pgxpool.Pool) (*aggregate.Runtime, *aggregate.Repository[user.Account], error) {
	contracts, err := avro.LoadContracts(schemas.FS)
	if err != nil {
		return nil, nil, err
	}
	known := registry.New(pool)
	ids, err := known.RegisterContracts(ctx, contracts, func(string) string { return "bench.user" })
	if err != nil {
		return nil, nil, err
	}
	rt, err := aggregate.NewRuntime(cfg, aggregate.Deps{Store: store, Pool: pool, Schemas: known, Contracts: contracts, SchemaIDs: ids, Logger: b.log})
	if err != nil {
		return nil, nil, err
	}
	accounts, err := aggregate.Open(rt, user.Define())
	return rt, accounts, err
}

// executeRate runs commands of one event each from n callers for a while, each
// on an account of its own.
func executeRate(ctx context.Context, accounts *aggregate.Repository[user.Account], n int, during time.Duration) (perSecond float64, all latencies, cpuEach float64, err error) {
	run := time.Now().UnixNano()
	name := func(w int) string { return fmt.Sprintf("e%d-%d", run, w) }
	var failure atomic.Pointer[error]
	each := func(f func(w int) error) {
		var wg sync.WaitGroup
		for w := range n {
			wg.Go(func() {
				if err := f(w); err != nil {
					failure.Store(&err)
				}
			})
		}
		wg.Wait()
	}
	each(func(w int) error {
		_, err := accounts.Create(ctx, name(w), func(a *user.Account) error {
			if err := a.Create(user.Create{Email: name(w) + "@example.com"}); err != nil {
				return err
			}
			return a.Activate()
		})
		return err
	})
	var made atomic.Int64
	lists := make([]latencies, n)
	cpuBefore, start := cpu(), time.Now()
	end := start.Add(during)
	each(func(w int) error {
		for time.Now().Before(end) {
			began := time.Now()
			if _, err := accounts.Execute(ctx, name(w), logIn); err != nil {
				return err
			}
			lists[w] = append(lists[w], time.Since(began))
			made.Add(1)
		}
		return nil
	})
	if err := failure.Load(); err != nil {
		return 0, nil, 0, fmt.Errorf("running commands: %w", *err)
	}
	for _, l := range lists {
		all = append(all, l...)
	}
	count := int(made.Load())
	return rate(count, time.Since(start)), all, float64((cpu() - cpuBefore).Microseconds()) / float64(count), nil
}

func logIn(a *user.Account) error { return a.LogIn(user.LogIn{Succeeded: true}) }

// benchLoad loads an account of 10,000 events with and without its snapshot, and
// one of 100 events.
func benchLoad(ctx context.Context, b *bench, accounts *aggregate.Repository[user.Account]) error {
	long, short := fmt.Sprintf("long-%d", time.Now().UnixNano()), fmt.Sprintf("short-%d", time.Now().UnixNano())
	if err := history(ctx, accounts, short, 100); err != nil {
		return err
	}
	if err := history(ctx, accounts, long, 9950); err != nil {
		return err
	}
	if err := accounts.Snapshot(ctx, long); err != nil {
		return err
	}
	if err := add(ctx, accounts, long, 50); err != nil { // what comes behind a snapshot on average
		return err
	}
	hundred, err := loadTime(ctx, accounts, short)
	if err != nil {
		return err
	}
	snapshot, err := loadTime(ctx, accounts, long)
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := accounts.At(ctx, long, aggregate.Moment{Version: 9949}); err != nil { // older than the snapshot: from the beginning
		return err
	}
	full := time.Since(began)
	b.report.line("load 10,000 events with a snapshot", snapshot.String(), "as 100 events", fmt.Sprintf("load 100 events: %s; fold all 10,000: %s", hundred, full.Round(time.Millisecond)), float64(snapshot)/float64(hundred))
	return nil
}

func history(ctx context.Context, accounts *aggregate.Repository[user.Account], id string, events int) error {
	_, err := accounts.Create(ctx, id, func(a *user.Account) error {
		if err := a.Create(user.Create{Email: id + "@example.com"}); err != nil {
			return err
		}
		return a.Activate()
	})
	if err != nil {
		return err
	}
	return add(ctx, accounts, id, events-2)
}

// add stores events, up to 1,000 at a time.
func add(ctx context.Context, accounts *aggregate.Repository[user.Account], id string, events int) error {
	for ; events > 0; events -= 1000 {
		_, err := accounts.Execute(ctx, id, func(a *user.Account) error {
			for range min(events, 1000) {
				if err := logIn(a); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// loadTime returns the time of one load, the mean of many.
func loadTime(ctx context.Context, accounts *aggregate.Repository[user.Account], id string) (time.Duration, error) {
	const loads = 200
	began := time.Now()
	for range loads {
		if _, err := accounts.Load(ctx, id); err != nil {
			return 0, err
		}
	}
	return (time.Since(began) / loads).Round(time.Microsecond), nil
}
