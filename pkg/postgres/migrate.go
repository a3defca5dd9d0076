package postgres

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var embedded embed.FS

// versionTable is goose's record of what was applied.
const versionTable = "refold.goose_db_version"

// Migrate applies every migration that the database does not have yet, each in a
// transaction of its own. Concurrent calls, from any process, wait for each other;
// a call that finds nothing to do changes nothing. A crash leaves the migrations
// that were complete, and the next call goes on from there.
//
// The order is that of their numbers, but for a database that has later ones
// already: what it lacks below them comes first. Each area has a range of numbers,
// so migrations of different ranges do not build on each other.
//
// It runs on a session of its own, without the pool's statement and lock
// time-outs. A database that is newer than this program is left as it is.
func Migrate(ctx context.Context, pool *pgxpool.Pool) error {
	files, err := Migrations()
	if err != nil {
		return err
	}
	return migrate(ctx, pool, files)
}

func migrate(ctx context.Context, pool *pgxpool.Pool, files fs.FS) error {
	db := openForMigrations(pool)
	defer db.Close()
	if err := makeSchema(ctx, db); err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 600))
	if err != nil {
		return fmt.Errorf("making the migrations' lock: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithSessionLocker(locker),
		goose.WithTableName(versionTable),
		goose.WithAllowOutofOrder(true),
		goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("reading the migrations: %w", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrating: %w", err)
	}
	return nil
}

func openForMigrations(pool *pgxpool.Pool) *sql.DB {
	cfg := pool.Config().ConnConfig
	for _, name := range []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"} {
		delete(cfg.RuntimeParams, name)
	}
	return stdlib.OpenDB(*cfg)
}

// Migrations returns the migration files that are compiled in, for those who
// apply them with a tool of their own.
func Migrations() (fs.FS, error) {
	files, err := fs.Sub(embedded, "migrations")
	if err != nil {
		return nil, fmt.Errorf("reading the embedded migrations: %w", err)
	}
	return files, nil
}

// makeSchema makes the schema that goose's own table lies in, before goose looks
// for it. "create schema if not exists" alone fails when two sessions race: the
// loser then finds it there.
func makeSchema(ctx context.Context, conn *sql.DB) error {
	var exists bool
	row := conn.QueryRowContext(ctx, `select exists (select from pg_namespace where nspname = 'refold')`)
	if err := row.Scan(&exists); err != nil {
		return fmt.Errorf("looking for the schema refold: %w", err)
	}
	if exists {
		return nil // creating it again would ask for a right that the role need not have
	}
	if _, err := conn.ExecContext(ctx, `create schema if not exists refold`); err != nil && !IsCode(err, "23505") {
		return fmt.Errorf("creating the schema refold: %w", err)
	}
	return nil
}

// Missing returns the numbers of the migrations that are compiled in and that the
// database lacks, in order; all of them for a database that was never migrated.
func Missing(ctx context.Context, pool *pgxpool.Pool) ([]int64, error) {
	all, err := numbers()
	if err != nil {
		return nil, err
	}
	rows, err := pool.Query(ctx, `select version_id from refold.goose_db_version where is_applied`)
	var applied []int64
	if err == nil {
		applied, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	}
	if err != nil && Classify(err) != ClassMissing {
		return nil, fmt.Errorf("reading which migrations were applied: %w", err)
	}
	return slices.DeleteFunc(all, func(n int64) bool { return slices.Contains(applied, n) }), nil
}

// numbers returns those of the migrations that are compiled in, in order.
func numbers() ([]int64, error) {
	files, err := Migrations()
	if err != nil {
		return nil, err
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("listing the migrations: %w", err)
	}
	all := make([]int64, len(names))
	for i, name := range names {
		if all[i], err = goose.NumericComponent(name); err != nil {
			return nil, fmt.Errorf("numbering the migration %s: %w", name, err)
		}
	}
	slices.Sort(all)
	return all, nil
}
