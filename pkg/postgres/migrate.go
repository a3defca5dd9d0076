package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var embedded embed.FS

// versionTable is goose's record of what was applied.
const versionTable = "refold.goose_db_version"

// Migrate applies every migration that the database does not have yet, in
// order, each in a transaction of its own. Concurrent calls, from any process,
// wait for each other; a call that finds nothing to do changes nothing. A crash
// leaves the migrations that were complete, and the next call goes on from there.
//
// It runs on a session of its own, without the pool's statement and lock
// time-outs. A database that is newer than this program is left as it is.
func Migrate(ctx context.Context, pool *pgxpool.Pool) error {
	db := openForMigrations(pool)
	defer db.Close()
	if err := makeSchema(ctx, db); err != nil {
		return err
	}
	files, err := Migrations()
	if err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 600))
	if err != nil {
		return fmt.Errorf("making the migrations' lock: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithSessionLocker(locker),
		goose.WithTableName(versionTable),
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

// SchemaVersion returns the number of the last migration that the database has,
// 0 for a database that was never migrated.
func SchemaVersion(ctx context.Context, pool *pgxpool.Pool) (int64, error) {
	var version int64
	err := pool.QueryRow(ctx,
		`select coalesce(max(version_id), 0) from refold.goose_db_version where is_applied`).Scan(&version)
	switch Classify(err) {
	case ClassNone:
		return version, nil
	case ClassMissing:
		return 0, nil
	default:
		return 0, fmt.Errorf("reading the schema's version: %w", err)
	}
}

// LatestVersion returns the number of the last migration that is compiled in.
func LatestVersion() (int64, error) {
	files, err := Migrations()
	if err != nil {
		return 0, err
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return 0, fmt.Errorf("listing the migrations: %w", err)
	}
	latest := int64(0)
	for _, name := range names {
		number, err := goose.NumericComponent(name)
		if err != nil {
			return 0, fmt.Errorf("numbering the migration %s: %w", name, err)
		}
		latest = max(latest, number)
	}
	return latest, nil
}

// WaitForSchema returns once the database has every migration that this program
// was built with, and while a rolling upgrade goes on it may have more. A server
// that is away is waited for too. It ends with the context, whose error then
// tells what was missing.
func WaitForSchema(ctx context.Context, pool *pgxpool.Pool) error {
	want, err := LatestVersion()
	if err != nil {
		return err
	}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		have, err := SchemaVersion(ctx, pool)
		switch {
		case err == nil && have >= want:
			return nil
		case err != nil && !Transient(err) && ctx.Err() == nil:
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for migration %d, the database has %d: %w",
				want, have, errors.Join(context.Cause(ctx), err))
		case <-tick.C:
		}
	}
}
