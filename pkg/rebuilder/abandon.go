package rebuilder

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// abandon takes new fields out of the rows again: first the version is fed by its
// own plan, which leaves them out of what it writes, then the rest is gone through.
func (j *job) abandon(ctx context.Context, now Rebuild) error {
	var err error
	if j.version, err = j.findVersion(ctx, j.name, now.Version); err != nil {
		return err
	}
	next := j.version
	next.Definition = now.definition
	if j.plan, err = j.plans.Plan(next); err != nil {
		return err
	}
	if j.categories, err = j.Rebuilder.categories(ctx, j.plan); err != nil {
		return err
	}
	if err := j.readParts(ctx); err != nil {
		return err
	}
	if err := j.write(ctx, "abandon", func(tx pgx.Tx) error { return readmodel.AbandonCompletion(ctx, tx, j.version) }); err != nil {
		return err
	}
	before, err := j.plans.Plan(j.version)
	if err != nil {
		return err
	}
	f, names := j.fields(), addedFields(before, j.plan)
	err = f.page(ctx, `data ?| $2`, names, func(keys []string) error {
		if j.plan.Shared() {
			return f.stripShared(ctx, keys, names)
		}
		return f.byPart(ctx, keys, func(ctx context.Context, p *part, keys []string) error {
			return f.stripOwn(ctx, before, p, keys, names)
		})
	})
	if err != nil {
		return err
	}
	return j.write(ctx, "drop parts", func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `drop table if exists `+partsTable(j.version))
		return err
	})
}

func (f *fields) stripShared(ctx context.Context, keys, names []string) error {
	return f.write(ctx, "strip from "+keys[0], func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select from `+f.version.Table()+` where key = any($1) order by key for update`, keys); err != nil {
			return fmt.Errorf("locking rows: %w", err)
		}
		if _, err := tx.Exec(ctx, `update `+f.version.Table()+` set data = data - $2::text[], state = state - $2::text[], updated_at = clock_timestamp() where key = any($1)`, keys, names); err != nil {
			return fmt.Errorf("taking new fields out of rows: %w", err)
		}
		return readmodel.AnnounceRows(ctx, tx, f.version)
	})
}

// stripOwn leaves of rows what the former plan makes; rows that it does not make
// go.
func (f *fields) stripOwn(ctx context.Context, before *projection.Plan, p *part, keys, names []string) error {
	return f.write(ctx, fmt.Sprintf("strip %s/%d from %s", p.category.Name, p.partition, keys[0]), func(tx pgx.Tx) error {
		at, err := f.applied(ctx, tx, p, "for update")
		if err != nil {
			return err
		}
		rows, _, err := f.foldAt(ctx, tx, before, p, at, keys)
		if err != nil {
			return err
		}
		made, _, states := texts(rows)
		if _, err := tx.Exec(ctx, `update `+f.version.Table()+` t set data = t.data - $3::text[], state = u.s, updated_at = clock_timestamp()
			from unnest($1::text[], $2::jsonb[]) u (k, s) where t.key = u.k and t.data ?| $3`, made, states, names); err != nil {
			return fmt.Errorf("taking new fields out of rows: %w", err)
		}
		if _, err := tx.Exec(ctx, `delete from `+f.version.Table()+` where key = any($1) and not key = any($2)`, keys, made); err != nil {
			return fmt.Errorf("taking rows away that only new fields made: %w", err)
		}
		return f.announce(ctx, tx, p, at, keys)
	})
}
