package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// benchHTTP measures appends over HTTP with 64 keep-alive connections, and the
// NDJSON import, beside appends in process in the same run.
func benchHTTP(ctx context.Context, b *bench) error {
	store, _, stop, err := b.store(ctx, "bench_http_peer")
	if err != nil {
		return err
	}
	peer, _, _, err := appendRate(ctx, store, 64, 5*time.Second)
	stop()
	if err != nil {
		return err
	}
	platform, err := b.platform(ctx, "bench_http", "writer")
	if err != nil {
		return err
	}
	defer platform.close()

	if _, _, err := postRate(platform.writerURL, 64, 20*time.Second); err != nil { // as [benchVisible]
		return err
	}
	perSecond, took, err := postRate(platform.writerURL, 64, 6*time.Second)
	if err != nil {
		return err
	}
	b.report.line("append over HTTP, 64 connections", fmt.Sprintf("%s, %s", thousands(perSecond), took), ">= 60 % of in process",
		"in process, 64 callers: "+thousands(peer), perSecond/peer)
	n := b.events(200_000)
	imported, err := importEvents(ctx, platform.writerURL, "imp", n, 1)
	if err != nil {
		return err
	}
	b.report.line("NDJSON import, one connection", thousands(rate(n, imported)), ">= 60k events/s", "in process, 64 callers: "+thousands(peer), rate(n, imported)/peer)
	usage, err := platform.usage("writer")
	if err != nil {
		return err
	}
	b.report.line("writer's memory under that load", usage.String(), "<= 256 MiB", "", 0)
	return nil
}

func userCreated(stream string) string {
	return fmt.Sprintf(`{"expectedVersion":"none","events":[{"type":"UserCreated","data":{"id":%q,"email":"%s@example.com","isActive":true,"name":"somebody"}}]}`, stream, stream)
}

// postRate appends single events over HTTP from n connections for a while.
func postRate(url string, n int, during time.Duration) (float64, latencies, error) {
	var failure atomic.Pointer[error]
	lists := make([]latencies, n)
	start := time.Now()
	end, run := start.Add(during), start.UnixNano()
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() {
			c, err := dial(url)
			if err != nil {
				failure.Store(&err)
				return
			}
			defer c.Close()
			for i := 0; time.Now().Before(end); i++ {
				began := time.Now()
				if _, err := c.append(fmt.Sprintf("h%d-%d-%d", run, w, i)); err != nil {
					failure.Store(&err)
					return
				}
				lists[w] = append(lists[w], time.Since(began))
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	if err := failure.Load(); err != nil {
		return 0, nil, *err
	}
	var all latencies
	for _, l := range lists {
		all = append(all, l...)
	}
	return rate(len(all), took), all, nil
}

// importEvents imports n events over one connection, perStream of them to each
// stream, and returns how long it took until the last answer.
func importEvents(ctx context.Context, url, prefix string, n, perStream int) (time.Duration, error) {
	lines, out := io.Pipe()
	go func() {
		var line bytes.Buffer
		for i := range n {
			line.Reset()
			stream := fmt.Sprintf("%s-%d", prefix, i/perStream)
			eventJSON := `{"type":"UserLoggedIn","data":{}}`
			if i%perStream == 0 {
				eventJSON = fmt.Sprintf(`{"type":"UserCreated","data":{"id":%q,"email":"%s@example.com","isActive":true}}`, stream, stream)
			}
			fmt.Fprintf(&line, `{"appends":[{"category":"User","stream":%q,"events":[%s]}]}`+"\n", stream, eventJSON)
			if _, err := out.Write(line.Bytes()); err != nil {
				return
			}
		}
		out.Close()
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/append", lines)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	start := time.Now()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err
	}
	if created := bytes.Count(raw, []byte(`"status":201`)); created != n {
		return 0, fmt.Errorf("importing: %d of %d lines were appended; the answer ends with %.500s", created, n, raw[max(0, len(raw)-500):])
	}
	return time.Since(start), nil
}
