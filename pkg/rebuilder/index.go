package rebuilder

import (
	"context"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// index merges the parts of shared rows and makes the filled table a leaf. Each
// statement is looked for before it is done, so that a job that takes over goes
// on behind the last one that was committed.
func (j *job) index(ctx context.Context) error {
	conn, err := j.connect(ctx, j.name)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `set maintenance_work_mem = '128MB'; set lock_timeout = '2s'`); err != nil {
		return fmt.Errorf("preparing to index: %w", err)
	}
	if err := j.endStrangers(ctx, conn); err != nil {
		return err
	}
	if j.plan.Shared() {
		if err := j.checkParts(ctx); err != nil {
			return err
		}
	}
	for _, s := range readmodel.FinishStatements(j.plan, j.version) {
		if err := j.finishStatement(ctx, conn, s); err != nil {
			return fmt.Errorf("making the %s of version %d: %w", s.Name, j.version.Number, err)
		}
		if s.Name == "primary key" && j.plan.Shared() {
			if err := j.mergeParts(ctx); err != nil {
				return err
			}
		}
	}
	return j.advance(ctx, StepCheck, nil)
}

// endStrangers ends sessions that still hold the table: nobody but an earlier job
// that was paused, whose transaction could only be refused.
func (j *job) endStrangers(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, `select pg_terminate_backend(l.pid) from pg_locks l join pg_stat_activity a using (pid)
		where l.relation in (to_regclass($1), to_regclass($2)) and l.pid <> pg_backend_pid() and a.application_name like 'refold-rebuild-%'`, j.version.Table(), partsTable(j.version)); err != nil {
		return fmt.Errorf("ending sessions of an earlier job: %w", err)
	}
	return nil
}

func (j *job) finishStatement(ctx context.Context, conn *pgx.Conn, s readmodel.Statement) error {
	for {
		var done bool
		if err := conn.QueryRow(ctx, s.Done).Scan(&done); err != nil || done {
			return err
		}
		if err := j.stopAt("before " + s.Name); err != nil {
			return err
		}
		err := j.runStatement(ctx, conn, s)
		switch class := postgres.Classify(err); {
		case err == nil:
			j.meter.wait("")
			return j.stopAt("after " + s.Name)
		case class == postgres.ClassLockTimeout, class == postgres.ClassConflict:
			j.meter.wait("waiting for a lock: " + s.Name) // readers queue behind a lock that waits, so it gives up and comes again
			if err := pause(ctx, 100*time.Millisecond); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

func (j *job) runStatement(ctx context.Context, conn *pgx.Conn, s readmodel.Statement) error {
	if s.Alone {
		_, err := conn.Exec(ctx, s.SQL)
		return err
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, s.SQL); err != nil {
			return err
		}
		if err := j.stopAt("within " + s.Name); err != nil {
			return err
		}
		return j.lease.Verify(ctx, tx)
	})
}

// mergeParts merges the parts of shared rows, partition after partition, by the
// statement that the engine uses, each partition in one transaction.
func (j *job) mergeParts(ctx context.Context) error {
	for _, p := range j.parts {
		if p.merged {
			continue
		}
		err := j.write(ctx, fmt.Sprintf("merge %s/%d", p.category.Name, p.partition), func(tx pgx.Tx) error { return j.mergePart(ctx, tx, p, j.version.Table(), partsTable(j.version)) })
		if err != nil {
			return fmt.Errorf("merging the parts of %s/%d: %w", p.category.Name, p.partition, err)
		}
		p.merged = true
	}
	return nil
}

// mergeChunk is how many rows are merged in one statement.
const mergeChunk = 1000

func (j *job) mergePart(ctx context.Context, tx pgx.Tx, p *part, into, parts string) error {
	if err := j.mergeRows(ctx, tx, p, into, parts); err != nil {
		return err
	}
	return j.noteMerged(ctx, tx, p)
}

// noteMerged notes, once, that the parts of a partition are in the rows.
func (j *job) noteMerged(ctx context.Context, tx pgx.Tx, p *part) error {
	tag, err := tx.Exec(ctx, `update refold.rebuild_partition set merged = clock_timestamp()
		where rebuild = $1 and category = $2 and generation = $3 and partition = $4 and merged is null`, j.id, p.category.Name, p.category.Generation, p.partition)
	if err == nil && tag.RowsAffected() != 1 {
		return fmt.Errorf("%w: it is merged already", errBroker) // look again
	}
	return err
}

// mergeRows merges the parts of one partition into a table.
func (j *job) mergeRows(ctx context.Context, tx pgx.Tx, p *part, into, parts string) error {
	if _, err := tx.Exec(ctx, `declare parts no scroll cursor for select key, data::text, state::text from `+parts+`
		where category = '`+p.category.Name+`' and partition = `+fmt.Sprint(p.partition)+` order by key`); err != nil {
		return err
	}
	sql := j.plan.MergeSQL(into)
	for {
		rows, err := tx.Query(ctx, fmt.Sprintf(`fetch %d from parts`, mergeChunk))
		if err != nil {
			return err
		}
		parts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[textRow])
		if err != nil {
			return err
		}
		if len(parts) == 0 {
			break
		}
		if err := j.mergeTexts(ctx, tx, sql, parts); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, `close parts`)
	return err
}

// textRow is a row, or a part of one, as text.
type textRow struct {
	Key, Data string
	State     *string
}

// mergeTexts merges parts, which are sorted by key, by a statement of the plan.
func (j *job) mergeTexts(ctx context.Context, tx pgx.Tx, sql string, parts []textRow) error {
	keys, data, states := make([]string, len(parts)), make([]string, len(parts)), make([]*string, len(parts))
	for i, p := range parts {
		keys[i], data[i], states[i] = p.Key, p.Data, p.State
	}
	_, err := tx.Exec(ctx, sql, j.version.Projection, j.version.Number, keys, data, states)
	return err
}

// Damaged says that rows are not what was folded.
type Damaged struct {
	Table              string
	Rows, WantRows     int64
	Digest, WantDigest int64
}

func (e *Damaged) Error() string {
	return fmt.Sprintf("the rows of %s are not those that were folded: %d rows with digest %016x, folded were %d with %016x; `rebuild cancel` drops them, `rebuild verify` names them", e.Table, e.Rows, uint64(e.Digest), e.WantRows, uint64(e.WantDigest))
}

// check compares the rows in the table with those that were folded, before
// anything changes them again, and hands the version to the engine.
func (j *job) check(ctx context.Context) error {
	if !j.plan.Shared() {
		if err := j.compareDigest(ctx, j.version.Table()); err != nil {
			return err
		}
	}
	return j.advance(ctx, StepCatchUp, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `update refold.progress set phase = 'live' where projection = $1 and version = $2 and phase = 'loading'`, j.name, j.version.Number); err != nil {
			return err
		}
		return readmodel.Announce(ctx, tx)
	})
}

// checkParts compares the parts of shared rows in the same way, and those of one
// partition with a fold of the event table: when they are merged, no row can be
// told from a few streams any more.
func (j *job) checkParts(ctx context.Context) error {
	if slices.ContainsFunc(j.parts, func(p *part) bool { return p.merged }) {
		return nil // an earlier job has checked them
	}
	if err := j.compareDigest(ctx, partsTable(j.version)); err != nil {
		return err
	}
	p := j.parts[rand.IntN(len(j.parts))]
	if p.source == FromEventStore {
		return nil
	}
	again := *p
	again.source, again.meter = FromEventStore, &partMeter{total: 1}
	if err := j.pool.QueryRow(ctx, `select seqs from refold.progress where projection = $1 and version = $2 and category = $3 and generation = $4 and partition = $5`,
		j.name, j.version.Number, p.category.Name, p.category.Generation, p.partition).Scan(&again.heads); err != nil {
		return fmt.Errorf("reading the progress of %s/%d: %w", p.category.Name, p.partition, err)
	}
	l, err := j.beside(j.version).newLoader(ctx, nil, &again, "")
	if err != nil {
		return err
	}
	if err := l.passes(ctx); err != nil {
		return fmt.Errorf("folding %s/%d from the event table: %w", p.category.Name, p.partition, err)
	}
	if l.written != p.rows || int64(l.digest) != p.digest {
		return fmt.Errorf("%w: partition %d of %s makes %d rows with digest %016x, the event table %d with %016x", ErrNotVerified, p.partition, p.category.Topic, p.rows, uint64(p.digest), l.written, l.digest)
	}
	return nil
}

func (j *job) compareDigest(ctx context.Context, table string) error {
	damaged := &Damaged{Table: table}
	for _, p := range j.parts {
		damaged.WantRows += p.rows
		damaged.WantDigest += p.digest
	}
	var err error
	if damaged.Rows, damaged.Digest, err = digestOf(ctx, j.pool, table); err != nil {
		return err
	}
	if damaged.Rows != damaged.WantRows || damaged.Digest != damaged.WantDigest {
		return damaged
	}
	return nil
}

// digestOf returns the number of rows in a table and the sum of their hashes,
// modulo 2^64.
func digestOf(ctx context.Context, q querier, table string) (rows, digest int64, err error) {
	var sum string
	if err := q.QueryRow(ctx, `select count(*), coalesce(sum(refold.row_hash(key, data, state)), 0)::text from `+table).Scan(&rows, &sum); err != nil {
		return 0, 0, fmt.Errorf("computing the digest of %s: %w", table, err)
	}
	n, ok := new(big.Int).SetString(sum, 10)
	if !ok {
		return 0, 0, fmt.Errorf("computing the digest of %s: the sum is %q", table, sum)
	}
	low := new(big.Int).And(n, new(big.Int).SetUint64(1<<64-1)) // two's complement, also of a negative sum
	return rows, int64(low.Uint64()), nil
}
