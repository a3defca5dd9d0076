package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

const ownedYAML = `projection: bench_users
category: User
fields:
  id:        {from: [UserCreated]}
  email:     {from: [UserCreated, UserEmailChanged.newEmail]}
  logins:    {count: UserLoggedIn}
  lastSeen:  {max: UserLoggedIn.$time}
`

const sharedYAML = `projection: bench_days
category: User
key: {bucket: $time, by: hour}
fields:
  hour:      {key: true}
  events:    {count: "*"}
  logins:    {count: UserLoggedIn}
  lastSeen:  {max: UserLoggedIn.$time}
`

// benchApply measures live applying of a backlog from real Kafka: ten events a
// row, rows of one stream and rows of many; beside a bare loop that consumes the
// same topic and upserts as many rows.
func benchApply(ctx context.Context, b *bench) error {
	n := b.events(1_000_000)
	for _, c := range []struct{ what, yaml, name, goal string }{
		{"rows of one stream, 10 events each", ownedYAML, "bench_users", ">= 150k/s, <= 9 us CPU"},
		{"cross-stream rows", sharedYAML, "bench_days", ">= 60k/s"},
	} {
		if err := b.applyBacklog(ctx, c.what, c.yaml, c.name, c.goal, n); err != nil {
			return fmt.Errorf("applying %s: %w", c.name, err)
		}
	}
	return nil
}

func (b *bench) applyBacklog(ctx context.Context, what, yaml, name, goal string, n int) error {
	schemas, err := contracts(yaml)
	if err != nil {
		return err
	}
	defer os.RemoveAll(schemas)
	p, err := b.platform(ctx, "apply_"+name)
	if err != nil {
		return err
	}
	defer p.close()
	p.schemas = schemas
	if err := p.start(ctx, "writer"); err != nil {
		return err
	}
	if _, err := importEvents(ctx, p.writerURL, "apply", n, 10); err != nil {
		return err
	}
	if err := b.awaitRecords(ctx, p.prefix+".user", int64(n)); err != nil {
		return err
	}
	p.end("writer")
	bare, err := b.bareApply(ctx, p, n)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := p.start(ctx, "projector"); err != nil {
		return err
	}
	if err := p.awaitApplied(ctx, name, n); err != nil {
		return err
	}
	took := time.Since(start)
	u, err := p.usage("projector")
	if err != nil {
		return err
	}
	b.report.line(what+", start of the process included", fmt.Sprintf("%s, %.1f us CPU each, %s", thousands(rate(n, took)), float64(u.cpu.Microseconds())/float64(n), u), goal+", <= 512 MiB",
		"bare consume, count and upsert: "+thousands(rate(n, bare)), bare.Seconds()/took.Seconds())
	return nil
}

// contracts writes the demo's events and one definition to a folder.
func contracts(yaml string) (string, error) {
	dir, err := os.MkdirTemp("", "bench-schemas")
	if err != nil {
		return "", err
	}
	if err := os.CopyFS(filepath.Join(dir, "events"), os.DirFS(filepath.Join("..", "..", "schemas", "events"))); err != nil {
		return "", err
	}
	if err := os.Mkdir(filepath.Join(dir, "projections"), 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "projections", "bench.yaml"), []byte(yaml), 0o644)
}

func (p *platform) awaitApplied(ctx context.Context, name string, n int) error {
	conn, err := pgx.Connect(ctx, p.url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return await(ctx, 10*time.Minute, "waiting for the projection "+name, func() bool {
		var done int64
		err := conn.QueryRow(ctx, `select coalesce(sum(s), 0)::bigint from refold.progress, unnest(seqs) s where projection = $1`, name).Scan(&done)
		return err == nil && done >= int64(n)
	})
}

// bareApply consumes the topic, counts events by key and upserts the counts in
// one transaction for each thousand keys: no order, no checks, no progress.
func (b *bench) bareApply(ctx context.Context, p *platform, n int) (time.Duration, error) {
	conn, err := pgx.Connect(ctx, p.url)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `create schema if not exists bench; drop table if exists bench.bare; create table bench.bare (key text primary key, data jsonb)`); err != nil {
		return 0, err
	}
	consumer, err := b.client(kgo.ConsumeTopics(p.prefix+".user"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return 0, err
	}
	defer consumer.Close()
	start := time.Now()
	counts := make(map[string]int)
	for seen := 0; seen < n; {
		fetches := consumer.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return 0, err
		}
		fetches.EachRecord(func(r *kgo.Record) { counts[string(r.Key)]++; seen++ })
		if len(counts) >= 5000 || seen >= n {
			if err := upsertBare(ctx, conn, counts); err != nil {
				return 0, err
			}
			clear(counts)
		}
	}
	return time.Since(start), nil
}

func upsertBare(ctx context.Context, conn *pgx.Conn, counts map[string]int) error {
	var keys, rows []string
	flush := func() error {
		_, err := conn.Exec(ctx, `insert into bench.bare select * from unnest($1::text[], $2::jsonb[])
			on conflict (key) do update set data = jsonb_build_object('n', (bare.data->>'n')::bigint + (excluded.data->>'n')::bigint)`, keys, rows)
		keys, rows = keys[:0], rows[:0]
		return err
	}
	for key, n := range counts {
		keys, rows = append(keys, key), append(rows, fmt.Sprintf(`{"n":%d}`, n))
		if len(keys) == 1000 {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// benchVisible measures from the answer of an append to the answer of a read
// that contains it, at several rates.
func benchVisible(ctx context.Context, b *bench) error {
	p, err := b.platform(ctx, "bench_visible", "writer", "projector", "queries")
	if err != nil {
		return err
	}
	defer p.close()
	if err := p.awaitFeeding(ctx); err != nil {
		return err
	}
	if _, err := p.visible(ctx, 3000, 25*time.Second); err != nil { // until the broker has compiled what this takes, at the cost of a core
		return err
	}
	for _, perSecond := range []int{50, 500, 2000, 5000} {
		all, err := p.visible(ctx, perSecond, 8*time.Second)
		if err != nil {
			return err
		}
		goal := ""
		if perSecond == 5000 {
			goal = "p50 < 8 ms, p99 < 25 ms"
		}
		b.report.line(fmt.Sprintf("append answered to row read with its token, %d events/s", perSecond), fmt.Sprintf("%s (%d reads)", all, len(all)), goal, "", 0)
	}
	return nil
}

// awaitFeeding waits until an append becomes a row: members of a group that have
// just started take seconds to begin.
func (p *platform) awaitFeeding(ctx context.Context) error {
	writer, err := dial(p.writerURL)
	if err != nil {
		return err
	}
	defer writer.Close()
	if _, err := writer.append("first"); err != nil {
		return err
	}
	return await(ctx, 60*time.Second, "the first row", func() bool {
		res, err := http.Get(p.queryURL + "/v1/read-models/rm_users/first")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

// visible measures, while events are appended at a rate, from the answer of an
// append to the answer of a read that contains it.
func (p *platform) visible(ctx context.Context, perSecond int, during time.Duration) (all latencies, err error) {
	type written struct {
		stream, token string
		at            time.Time
	}
	var mu sync.Mutex
	reads, start := make(chan written, 1000), time.Now()
	var readers errgroup.Group
	for range 32 {
		readers.Go(func() error {
			var c *conn // dialed when it is needed: the server closes those that say nothing
			for w := range reads {
				if c == nil {
					var err error
					if c, err = dial(p.queryURL); err != nil {
						return err
					}
					defer c.Close()
				}
				if _, err := c.ask("GET", "/v1/read-models/rm_users/"+w.stream, "Refold-Token: "+w.token+"\r\nRefold-Wait: 5s\r\n", ""); err != nil {
					return err
				}
				mu.Lock()
				all = append(all, time.Since(w.at))
				mu.Unlock()
			}
			return nil
		})
	}
	appended := steady(ctx, p.writerURL, perSecond, during, func(stream, token string, at time.Time) error {
		if at.Sub(start) > 2*time.Second && stream[len(stream)-1] == '7' { // after the warm-up, one in ten
			reads <- written{stream, token, at}
		}
		return nil
	})
	close(reads)
	return all, errors.Join(appended, readers.Wait())
}
