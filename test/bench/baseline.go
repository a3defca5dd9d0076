package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// plainTable is the event table without what makes it a log: the same columns,
// indexes and bytes, no versions to check, no slots to lock, seqs from a
// sequence with gaps. Inserting into it is the limit of what appending can cost.
const plainTable = `
	create schema if not exists bench;
	drop table if exists bench.plain, bench.outbox;
	drop sequence if exists bench.seq;
	create sequence bench.seq cache 100;
	create table bench.plain (like refold.event including defaults including storage);
	alter table bench.plain add primary key (category, slot, seq);
	create unique index on bench.plain (category, stream, version);
	create unique index on bench.plain (id, category);
	create table bench.outbox (id bigint primary key default nextval('bench.seq'), topic text, key text, value bytea, headers jsonb)`

const plainInsert = `insert into bench.plain (category, slot, seq, version, id, time, recorded, stream, type, value)
	values (1, $1, nextval('bench.seq'), 1, gen_random_uuid(), clock_timestamp(), clock_timestamp(), $2, 'UserCreated', $3)`

const outboxInsert = `insert into bench.outbox (topic, key, value, headers) values ('refold.user', $1, $2, '{"type": "UserCreated"}')`

// plainRate returns how many one-row transactions a second n connections make,
// with an outbox row beside each event or without.
func plainRate(ctx context.Context, url string, n int, outbox bool, during time.Duration) (float64, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return 0, err
	}
	config.MaxConns = int32(n)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, plainTable); err != nil {
		return 0, fmt.Errorf("creating the plain table: %w", err)
	}
	var made atomic.Int64
	var failure atomic.Pointer[error]
	end := time.Now().Add(during)
	var all sync.WaitGroup
	for w := range n {
		all.Go(func() {
			for i := 0; time.Now().Before(end); i++ {
				if err := insertPlain(ctx, pool, fmt.Sprintf("p%d-%d", w, i), i, outbox); err != nil {
					failure.Store(&err)
					return
				}
				made.Add(1)
			}
		})
	}
	all.Wait()
	if err := failure.Load(); err != nil {
		return 0, fmt.Errorf("inserting plainly: %w", *err)
	}
	return rate(int(made.Load()), during), nil
}

func insertPlain(ctx context.Context, pool *pgxpool.Pool, stream string, i int, outbox bool) error {
	if !outbox {
		_, err := pool.Exec(ctx, plainInsert, i%64, stream, samplePayload)
		return err
	}
	// One round trip: the most favourable way to write both rows in a transaction.
	batch := &pgx.Batch{}
	batch.Queue("begin")
	batch.Queue(plainInsert, i%64, stream, samplePayload)
	batch.Queue(outboxInsert, stream, samplePayload)
	batch.Queue("commit")
	return pool.SendBatch(ctx, batch).Close()
}

// bestPlainRate returns the best rate over numbers of connections, and which.
func bestPlainRate(ctx context.Context, url string, outbox bool) (best float64, connections int, err error) {
	for _, n := range []int{16, 64, 128} {
		r, err := plainRate(ctx, url, n, outbox, 4*time.Second)
		if err != nil {
			return 0, 0, err
		}
		if r > best {
			best, connections = r, n
		}
	}
	return best, connections, nil
}

// samplePayload is as large as the value of a UserCreated.
var samplePayload = make([]byte, 96)
