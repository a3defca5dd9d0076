package main

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/rebuilder"
)

// benchBeside measures what live traffic notices of rebuilds: the lag of rows
// beside a rebuild with a rate, and reads while versions are promoted and rolled
// back.
func benchBeside(ctx context.Context, b *bench) error {
	n := b.events(600_000)
	schemas, err := contracts(ownedYAML)
	if err != nil {
		return err
	}
	defer os.RemoveAll(schemas)
	p, err := b.platform(ctx, "bench_beside")
	if err != nil {
		return err
	}
	defer p.close()
	p.schemas = schemas
	if err := p.start(ctx, "writer", "projector", "queries"); err != nil {
		return err
	}
	if _, err := importEvents(ctx, p.writerURL, "h", n, 10); err != nil {
		return err
	}
	if err := p.awaitApplied(ctx, "bench_users", n); err != nil {
		return err
	}
	l, err := p.newLive(ctx, n)
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.besideRebuild(ctx); err != nil {
		return err
	}
	return l.besideFlips(ctx, n/10)
}

// live appends events at a rate, within this process, each to a stream of its own.
type live struct {
	p        *platform
	pool     *pgxpool.Pool
	store    *eventstore.Store
	payload  []byte
	appended atomic.Int64 // with what was imported
	close    func()
	rebuilds *rebuilder.Rebuilder
}

func (p *platform) newLive(ctx context.Context, appended int) (*live, error) {
	pool, err := pgxpool.New(ctx, p.url)
	if err != nil {
		return nil, err
	}
	users, err := p.users(ctx, pool)
	if err != nil {
		return nil, err
	}
	definitions, err := projection.LoadDefinitions(os.DirFS(p.schemas))
	if err != nil {
		return nil, err
	}
	l := &live{p: p, pool: pool, store: eventstore.New(eventstore.Config{DatabaseURL: p.url}, p.bench.log, prometheus.NewRegistry())}
	l.appended.Store(int64(appended))
	if l.payload, err = users.encode("UserCreated", `{"id":"x","email":"x@example.com","isActive":true}`); err != nil {
		return nil, err
	}
	if err := l.store.EnsureCategories(ctx, pool, []eventstore.CategorySpec{{Name: "User", Slots: users.contract.Slots, Partitions: users.contract.Partitions, Topic: kafka.TopicName(p.prefix, "User")}}); err != nil {
		return nil, err
	}
	l.rebuilds = rebuilder.New(rebuilder.Config{DatabaseURL: p.url, Kafka: kafka.Config{Brokers: p.bench.kafka.Brokers()}, Prefix: p.prefix},
		rebuilder.Deps{Pool: pool, Schemas: users.registry, Contracts: users.contracts, Definitions: definitions, Logger: p.bench.log})
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.store.Run(running)
	}()
	l.close = func() { cancel(); <-done; pool.Close() }
	return l, nil
}

// load appends perSecond events a second until ctx ends, to streams that begin
// with name.
func (l *live) load(ctx context.Context, name string, perSecond int) error {
	const callers = 50
	start := time.Now()
	var all errgroup.Group
	for w := range callers {
		all.Go(func() error {
			for i := w; ; i += callers {
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(perSecond)))):
				}
				_, err := l.store.Append(context.WithoutCancel(ctx), &eventstore.Request{Appends: []eventstore.Append{{Category: "User", Stream: fmt.Sprintf("%s-%d", name, i),
					Expected: eventstore.Exactly(0), Events: []eventstore.NewEvent{{Type: "UserCreated", Value: l.payload}}}}})
				if err != nil {
					return fmt.Errorf("appending: %w", err)
				}
				l.appended.Add(1)
			}
		})
	}
	return all.Wait()
}

// during runs do beside a load, and waits until the rows of both are there.
func (l *live) during(ctx context.Context, name string, perSecond int, do func(context.Context) error) error {
	loading, stop := context.WithCancel(ctx)
	defer stop()
	var all errgroup.Group
	all.Go(func() error { return l.load(loading, name, perSecond) })
	err := do(ctx)
	stop()
	if failed := all.Wait(); failed != nil {
		return failed
	}
	if err != nil {
		return err
	}
	return await(ctx, time.Minute, "applying what came live", func() bool {
		var rows int64
		err := l.pool.QueryRow(ctx, `select count(*) from refold.event e where e.stream like $1 and not exists (select from refold.rows_bench_users_v1 r where r.key = e.stream)`, name+"-%").Scan(&rows)
		return err == nil && rows == 0
	})
}

// lag returns how long rows of live events were behind their appends, and how many
// came in a second.
func (l *live) lag(ctx context.Context, name string) (p50, p99 time.Duration, perSecond float64, err error) {
	var quantiles []float64
	err = l.pool.QueryRow(ctx, `select percentile_cont(array[0.5, 0.99]) within group (order by extract(epoch from r.updated_at - e.recorded)),
		count(*) / extract(epoch from max(e.recorded) - min(e.recorded))::float8 from refold.event e join refold.rows_bench_users_v1 r on r.key = e.stream where e.stream like $1`, name+"-%").Scan(&quantiles, &perSecond)
	if err != nil {
		return 0, 0, 0, fmt.Errorf("reading lags: %w", err)
	}
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	return seconds(quantiles[0]), seconds(quantiles[1]), perSecond, nil
}

// liveRate is what comes live, rebuildRate the bound of the rebuild beside it.
const (
	liveRate    = 5000
	rebuildRate = 20_000
)

func (l *live) besideRebuild(ctx context.Context) error {
	if err := l.during(ctx, "warm", liveRate, func(context.Context) error { time.Sleep(25 * time.Second); return nil }); err != nil { // as [benchVisible]
		return err
	}
	if err := l.during(ctx, "alone", liveRate, func(context.Context) error { time.Sleep(20 * time.Second); return nil }); err != nil {
		return err
	}
	var took time.Duration
	if err := l.during(ctx, "beside", liveRate, func(ctx context.Context) (err error) {
		took, _, err = l.p.rebuild(ctx, "bench_users", "--rate", fmt.Sprint(rebuildRate), "--parallel", "1")
		return err
	}); err != nil {
		return err
	}
	a50, a99, alone, err := l.lag(ctx, "alone")
	if err != nil {
		return err
	}
	b50, b99, beside, err := l.lag(ctx, "beside")
	if err != nil {
		return err
	}
	l.p.bench.report.line(fmt.Sprintf("append to row at %s, beside a rebuild of %.0f s with --rate=%d", thousands(beside), took.Seconds(), rebuildRate), fmt.Sprintf("p50 %s, p99 %s", short(b50), short(b99)),
		"p99 within 2x", fmt.Sprintf("without, at %s: p50 %s, p99 %s", thousands(alone), short(a50), short(a99)), float64(b99)/float64(a99))
	return nil
}

// besideFlips reads by key while the serving version changes twice a second.
func (l *live) besideFlips(ctx context.Context, streams int) error {
	const during, readers = 8 * time.Second, 4
	path := func(i int64) string {
		return fmt.Sprintf("/v1/read-models/bench_users/h-%d", i*7919%int64(streams))
	}
	var quiet, flipped, flips latencies
	if err := l.during(ctx, "quiet", liveRate/5, func(context.Context) (err error) {
		_, quiet, err = load(l.p.queryURL, readers, during, path)
		return err
	}); err != nil {
		return err
	}
	if err := l.during(ctx, "flipping", liveRate/5, func(ctx context.Context) error {
		var all errgroup.Group
		end := time.Now().Add(during)
		all.Go(func() (err error) {
			_, flipped, err = load(l.p.queryURL, readers, during, path)
			return err
		})
		all.Go(func() error {
			for time.Now().Before(end) {
				began := time.Now()
				if _, err := l.rebuilds.RollBack(ctx, "bench_users"); err != nil {
					return err
				}
				flips = append(flips, time.Since(began))
				time.Sleep(500 * time.Millisecond)
			}
			return nil
		})
		return all.Wait()
	}); err != nil {
		return err
	}
	l.p.bench.report.line("promote or roll back, the transaction, beside 1,000 appends/s", fmt.Sprintf("%s (%d times)", flips, len(flips)), "< 50 ms", "", 0)
	l.p.bench.report.line("read by key, the serving version changing twice a second", flipped.String(), "p99 unaffected", "without: "+quiet.String(), float64(flipped.at(0.99))/float64(quiet.at(0.99)))
	return nil
}
