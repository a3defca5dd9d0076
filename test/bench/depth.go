package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

const depthYAML = `projection: bench_depth
category: User
fields:
  id:     {from: [UserCreated]}
  email:  {from: [UserCreated]}
  active: {from: [UserCreated.isActive]}
indexes:
  - {fields: [email]}
`

// depth compares pages of 20 behind a million rows with the first ones, by key and
// by a field, over one connection and nothing kept. A rebuild makes the rows.
func (b *bench) depth(ctx context.Context) error {
	schemas, err := contracts(depthYAML)
	if err != nil {
		return err
	}
	defer os.RemoveAll(schemas)
	p, err := b.deepTable(ctx, schemas, b.events(1_200_000))
	if p != nil {
		defer p.close()
	}
	if err != nil {
		return fmt.Errorf("making a deep table: %w", err)
	}
	if err := p.start(ctx, "queries-without-cache"); err != nil {
		return err
	}
	for _, order := range []string{"key", "email"} {
		if err := p.compareDepths(ctx, order, b.events(1_000_000)); err != nil {
			return fmt.Errorf("reading by %s: %w", order, err)
		}
	}
	return nil
}

// deepTable returns a platform of which nothing runs, with a row for each of so
// many streams.
func (b *bench) deepTable(ctx context.Context, schemas string, rows int) (*platform, error) {
	p, err := b.platform(ctx, "bench_depth")
	if err != nil {
		return nil, err
	}
	p.schemas = schemas
	if err := p.start(ctx, "writer"); err != nil { // it makes the category and the topic
		return p, err
	}
	p.end("writer")
	if err := (&rebuildHistory{events: rows, perStream: 1}).write(ctx, b, p); err != nil {
		return p, err
	}
	_, _, err = p.rebuild(ctx, "bench_depth", "--source=eventstore")
	return p, err
}

func (p *platform) compareDepths(ctx context.Context, order string, depth int) error {
	list := "/v1/read-models/bench_depth?order=" + order + "&limit="
	second, err := p.walk(ctx, list, 20, 1)
	if err != nil {
		return err
	}
	far, err := p.walk(ctx, list, 1000, depth/1000)
	if err != nil {
		return err
	}
	pages := []string{list + "20", list + "20&cursor=" + second, list + "20&cursor=" + far}
	took := make([]latencies, len(pages))
	const turns = 3 // so that all meet the same machine
	for range turns {
		for i, page := range pages {
			_, each, err := load(p.queryURL, 1, 2*time.Second, func(int64) string { return page })
			if err != nil {
				return err
			}
			took[i] = append(took[i], each...)
		}
	}
	p.bench.report.line(fmt.Sprintf("a page of 20 by %s behind %d rows, one connection", order, depth/1000*1000), took[2].String(), "as the first page",
		fmt.Sprintf("the first page: %s; the second: %s", took[0], took[1]), float64(took[2].at(0.5))/float64(took[0].at(0.5)))
	return nil
}

// walk reads pages from the first on and returns the cursor behind them.
func (p *platform) walk(ctx context.Context, list string, limit, pages int) (cursor string, err error) {
	for range pages {
		var page struct{ Next string }
		url := fmt.Sprint(p.queryURL, list, limit)
		if cursor != "" {
			url += "&cursor=" + cursor
		}
		if err := getJSON(ctx, url, &page); err != nil {
			return "", err
		}
		cursor = page.Next
	}
	return cursor, nil
}
