package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// benchQuery measures queries over HTTP beside pgbench -S on the same server with
// as many connections: by key, kept and not, pages, and what idle followers cost.
func benchQuery(ctx context.Context, b *bench) error {
	p, err := b.platform(ctx, "bench_query", "writer", "projector")
	if err != nil {
		return err
	}
	defer p.close()
	rows := b.events(100_000)
	if _, err := importEvents(ctx, p.writerURL, "q", rows, 1); err != nil {
		return err
	}
	if err := p.awaitApplied(ctx, "rm_users", rows); err != nil {
		return err
	}
	p.end("writer")
	p.end("projector")
	peer, err := b.pgbench(ctx, p.url)
	if err != nil {
		return err
	}
	q := queries{ctx, b, p, rows, peer}
	for _, measure := range []func() error{q.uncached, q.cached, q.followers} {
		if err := measure(); err != nil {
			return err
		}
		p.end("queries")
	}
	p.close()
	return b.depth(ctx)
}

type queries struct {
	ctx  context.Context
	b    *bench
	p    *platform
	rows int
	peer float64 // of pgbench -S, per second
}

// measure runs one kind of query over 64 connections.
func (q *queries) measure(what, goal string, path func(i int64) string) (float64, error) {
	perSecond, took, err := load(q.p.queryURL, 64, 6*time.Second, path)
	if err == nil {
		q.b.report.line(what+", 64 connections", fmt.Sprintf("%s, %s", thousands(perSecond), took), goal, "pgbench -S, 64 connections: "+thousands(q.peer), perSecond/q.peer)
	}
	return perSecond, err
}

func (q *queries) byKey(i int64) string {
	return fmt.Sprintf("/v1/read-models/rm_users/q-%d", i*7919%int64(q.rows))
}

func (q *queries) uncached() error {
	if err := q.p.start(q.ctx, "queries-without-cache"); err != nil {
		return err
	}
	defer q.p.end("queries-without-cache")
	if _, err := q.measure("GET by key over HTTP, nothing kept", ">= 20k/s", q.byKey); err != nil {
		return err
	}
	_, err := q.measure("a page of 20 by an index, nothing kept", ">= 5k/s", func(i int64) string {
		return fmt.Sprintf("/v1/read-models/rm_users?email=gte.q-%d@example.com&order=email&limit=20", i*7919%int64(q.rows))
	})
	return err
}

func (q *queries) cached() error {
	if err := q.p.start(q.ctx, "queries"); err != nil {
		return err
	}
	const goal = ">= 50k/s, p99 < 10 ms"
	kept, err := q.measure("GET by key over HTTP, 1,000 rows kept", goal, func(i int64) string { return q.byKey(i % 1000) })
	if err != nil {
		return err
	}
	bare, end, err := startBare(q.ctx, q.p.queryURL+q.byKey(0))
	if err != nil {
		return err
	}
	defer end()
	limit, _, err := load(bare, 64, 6*time.Second, func(i int64) string { return q.byKey(i % 1000) })
	if err == nil {
		q.b.report.line("the same beside its limit", thousands(kept), goal, "net/http that gives the same bytes and does nothing: "+thousands(limit), kept/limit)
	}
	return err
}

func (q *queries) followers() error {
	if err := q.p.start(q.ctx, "queries"); err != nil {
		return err
	}
	before, err := q.p.usage("queries")
	if err != nil {
		return err
	}
	const clients = 5000
	closeAll, err := follow(q.p.queryURL, "/v1/read-models/rm_users/changes", clients)
	defer closeAll()
	if err != nil {
		return err
	}
	// The runtime collects what opening them left ("at most") after two minutes at the latest, and gives it back.
	time.Sleep(150 * time.Second)
	after, err := q.p.usage("queries")
	if err != nil {
		return err
	}
	q.b.report.line("5,000 idle clients of the change feed", fmt.Sprintf("%d MiB more, %s in all", (after.rss-before.rss)>>20, after), "<= 100 MiB", "the same process before", float64(after.rss)/float64(before.rss))
	return nil
}

func getJSON(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: status %d", url, res.StatusCode)
	}
	return json.NewDecoder(res.Body).Decode(into)
}

var tps = regexp.MustCompile(`tps = ([0-9.]+)`)

// pgbench runs pgbench -S on a database of its own tables.
func (b *bench) pgbench(ctx context.Context, url string) (float64, error) {
	path, err := exec.LookPath("pgbench")
	if err != nil {
		found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench")
		if len(found) == 0 {
			return 0, fmt.Errorf("looking for pgbench: %w", err)
		}
		path = found[len(found)-1]
	}
	for _, args := range [][]string{{"-i", "-q", "-s", "5", url}, {"-S", "-M", "prepared", "-c", "64", "-j", "2", "-T", "5", url}} {
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Env = os.Environ()
		out, err := cmd.CombinedOutput()
		if err != nil {
			return 0, fmt.Errorf("running pgbench: %w: %s", err, out)
		}
		if m := tps.FindSubmatch(out); m != nil {
			return strconv.ParseFloat(string(m[1]), 64)
		}
	}
	return 0, fmt.Errorf("pgbench printed no rate")
}
