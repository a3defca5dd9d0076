package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// benchQuery measures GET by key over HTTP, uncached, beside pgbench -S on the
// same server with as many connections.
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
	if err := p.start(ctx, "queries"); err != nil {
		return err
	}
	peer, err := b.pgbench(ctx, p.url)
	if err != nil {
		return err
	}
	perSecond, took, err := getRate(ctx, p.queryURL+"/v1/read-models/rm_users/q-%d", rows, 64, 6*time.Second)
	if err != nil {
		return err
	}
	b.report.line("GET by key over HTTP, 64 connections", fmt.Sprintf("%s, %s", thousands(perSecond), took), ">= 20k/s", "pgbench -S, 64 connections: "+thousands(peer), perSecond/peer)
	return nil
}

func getRate(ctx context.Context, url string, rows, n int, during time.Duration) (float64, latencies, error) {
	c := client(n)
	defer c.CloseIdleConnections()
	var made atomic.Int64
	var failure atomic.Pointer[error]
	lists := make([]latencies, n)
	start := time.Now()
	end := start.Add(during)
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() {
			for i := w; time.Now().Before(end); i += 7919 {
				began := time.Now()
				if err := getWithToken(ctx, c, fmt.Sprintf(url, i%rows), ""); err != nil {
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
		return 0, nil, *err
	}
	var all latencies
	for _, l := range lists {
		all = append(all, l...)
	}
	return rate(int(made.Load()), time.Since(start)), all, nil
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
