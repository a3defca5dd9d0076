package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// portion is the most events in one import: its answer is kept until its end.
const portion = 200_000

// benchGrowth measures whether appending and lag stay flat, and importing linear, as
// the log grows from one million events to ten.
func benchGrowth(ctx context.Context, b *bench) error {
	p, err := b.platform(ctx, "bench_growth", "writer", "projector", "queries")
	if err != nil {
		return err
	}
	defer p.close()
	var first, firstImport float64
	for _, target := range []int{b.events(1_000_000), b.events(3_000_000), b.events(10_000_000)} {
		imported, err := p.growTo(ctx, target)
		if err != nil {
			return err
		}
		perSecond, each, err := postRate(p.writerURL, 64, 5*time.Second)
		if err != nil {
			return err
		}
		lag, err := p.visible(ctx, 500, 6*time.Second)
		if err != nil {
			return err
		}
		if first == 0 {
			first, firstImport = perSecond, imported
		}
		at := fmt.Sprintf(" with %d events in the log", target)
		b.report.line("import up to here,"+at, thousands(imported)+", rows included", "linear", "to the first of these "+thousands(firstImport), imported/firstImport)
		b.report.line("appends over HTTP"+at, thousands(perSecond)+", "+each.String(), "flat", "with the first of these "+thousands(first), perSecond/first)
		b.report.line("append to row read at 500 events/s"+at, lag.String(), "flat", "", 0)
	}
	return nil
}

// growTo imports until the log holds so many events and all are in the rows, and
// returns how many a second that were.
func (p *platform) growTo(ctx context.Context, target int) (float64, error) {
	conn, err := pgx.Connect(ctx, p.url)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	var before int
	if err := conn.QueryRow(ctx, `select count(*) from refold.event`).Scan(&before); err != nil {
		return 0, fmt.Errorf("counting events: %w", err)
	}
	start := time.Now()
	for total := before; total < target; {
		n := min(portion, target-total)
		if _, err := importEvents(ctx, p.writerURL, fmt.Sprintf("g%d", total), n, 10); err != nil {
			return 0, err
		}
		total += n
	}
	if err := p.awaitApplied(ctx, "rm_users", max(before, target)); err != nil {
		return 0, err
	}
	return rate(max(1, target-before), time.Since(start)), nil
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
