package main

import (
	"context"
	"fmt"
	"time"
)

// benchGrowth measures whether appending and lag stay flat as the log grows.
func benchGrowth(ctx context.Context, b *bench) error {
	p, err := b.platform(ctx, "bench_growth", "writer", "projector", "queries")
	if err != nil {
		return err
	}
	defer p.close()
	total := 0
	var first float64
	for _, target := range []int{b.events(100_000), b.events(1_000_000), b.events(3_000_000)} {
		took, err := importEvents(ctx, p.writerURL, fmt.Sprintf("g%d", target), target-total, 10)
		if err != nil {
			return err
		}
		imported := rate(target-total, took)
		total = target
		if err := p.awaitApplied(ctx, "rm_users", total); err != nil {
			return err
		}
		perSecond, each, err := postRate(p.writerURL, 64, 5*time.Second)
		if err != nil {
			return err
		}
		total += int(perSecond * 5)
		if first == 0 {
			first = perSecond
		}
		b.report.line(fmt.Sprintf("appends over HTTP with %d events in the log", target), fmt.Sprintf("%s, %s; imported at %s", thousands(perSecond), each, thousands(imported)), "flat",
			"the same with the first "+thousands(first), perSecond/first)
	}
	return nil
}

// benchIdle measures what each program uses when nothing happens.
func benchIdle(ctx context.Context, b *bench) error {
	names := []string{"writer", "projector", "queries"}
	p, err := b.platform(ctx, "bench_idle", names...)
	if err != nil {
		return err
	}
	defer p.close()
	before := make(map[string]usage)
	time.Sleep(5 * time.Second) // settle: start-up is not idling
	for _, name := range names {
		if before[name], err = p.usage(name); err != nil {
			return err
		}
	}
	const window = 20 * time.Second
	time.Sleep(window)
	for _, name := range names {
		after, err := p.usage(name)
		if err != nil {
			return err
		}
		share := float64(after.cpu-before[name].cpu) / float64(window) * 100
		b.report.line(name, fmt.Sprintf("%d MiB RSS, %.1f %% of a core", after.rss>>20, share), "< 50 MiB, < 1 %", "", 0)
	}
	return nil
}
