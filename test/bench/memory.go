package main

import (
	"context"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
)

// benchMemory measures whether a rebuild's memory stays within its budget, and flat
// as the log grows while its rows do not.
func benchMemory(ctx context.Context, b *bench) error {
	schemas, err := contracts(ownedYAML)
	if err != nil {
		return err
	}
	defer os.RemoveAll(schemas)
	var first int64
	for _, c := range []struct{ events, rows int }{{1_000_000, 500_000}, {5_000_000, 500_000}, {20_000_000, 500_000}, {10_000_000, 1_000_000}} {
		events, rows := b.events(c.events), b.events(c.rows)
		peak, err := b.rebuildMemory(ctx, schemas, &rebuildHistory{events: events, perStream: events / rows})
		if err != nil {
			return err
		}
		if first == 0 {
			first = peak
		}
		b.report.line(fmt.Sprintf("peak memory of a rebuild of %d events into %d rows", events, rows), fmt.Sprintf("%d MiB", peak>>20), "<= 512 MiB, flat",
			fmt.Sprintf("the first of these: %d MiB", first>>20), float64(peak)/float64(first))
	}
	return nil
}

// rebuildMemory rebuilds a history of its own, which it leaves no trace of.
func (b *bench) rebuildMemory(ctx context.Context, schemas string, h *rebuildHistory) (peak int64, err error) {
	name := fmt.Sprintf("bench_memory_%d_%d", h.events, h.perStream)
	p, err := b.platform(ctx, name)
	if err != nil {
		return 0, err
	}
	p.schemas = schemas
	if err := p.start(ctx, "writer"); err != nil {
		return 0, err
	}
	p.close()
	if err := h.write(ctx, b, p); err != nil {
		return 0, fmt.Errorf("writing the history: %w", err)
	}
	_, u, err := p.rebuild(ctx, "bench_users")
	if err != nil {
		return 0, err
	}
	conn, err := pgx.Connect(ctx, b.postgres.URL("postgres"))
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "drop database "+name+" with (force)"); err != nil {
		return 0, err
	}
	c, err := b.client()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_, err = kadm.NewClient(c).DeleteTopic(ctx, p.prefix+".user")
	return u.hwm, err
}
