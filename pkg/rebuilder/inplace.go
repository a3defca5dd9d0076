package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// decide says of what kind the rebuild is: what was begun goes on as it is; else
// the difference between the deployed definition and that of the version that
// serves, which is returned too, decides. With only, no other rebuild will do.
func (j *job) decide(ctx context.Context, options Options, only int64) (Kind, readmodel.Version, error) {
	open, err := one(readRebuilds(ctx, j.pool, `projection = $1 and state not in ('done', 'cancelled')`, j.name))
	switch {
	case only != 0 && err == nil && open.ID != only, only != 0 && errors.Is(err, ErrNoRebuild):
		return Fresh, readmodel.Version{}, ErrNoRebuild
	case err == nil && open.Version != 0:
		return open.Kind, readmodel.Version{}, nil
	case err == nil && open.plan != "" && open.plan != j.plan.Hash():
		return Fresh, readmodel.Version{}, anotherPlan(open)
	case err == nil && open.State == Requested:
		options = open.Options
	case err != nil && !errors.Is(err, ErrNoRebuild):
		return Fresh, readmodel.Version{}, err
	}
	if err := j.checkLineage(ctx, j.plan, options); err != nil {
		return Fresh, readmodel.Version{}, err
	}
	active, err := j.catalogue.Active(ctx, j.name)
	if errors.Is(err, readmodel.ErrUnknownProjection) || err == nil && options.Fresh {
		return Fresh, active, nil
	}
	if err != nil {
		return Fresh, active, err
	}
	before, err := j.plans.Plan(active)
	if err != nil {
		return Fresh, active, nil //nolint:nilerr // a definition that no longer compiles needs a rebuild
	}
	kind := j.kindOf(before, j.plan)
	if kind == Indexes {
		if long, err := j.tooLong(ctx, active); err != nil || long {
			return Fresh, active, err
		}
	}
	return kind, active, nil
}

// anotherPlan says that what is open is not to be done by the deployed definition.
func anotherPlan(open Rebuild) *Busy {
	return &Busy{Projection: open.Projection, Rebuild: open.ID, Why: "it builds another definition than the deployed one; finish it with the former, or `rebuild cancel " + open.Projection + "` first"}
}

// kindOf returns what it takes to come from one plan to another. Shared rows that
// only events of new types make could not be told from others if the new fields
// had to be taken out again, so they are not filled in place.
func (r *Rebuilder) kindOf(before, after *projection.Plan) Kind {
	switch projection.Diff(before, after).Change {
	case projection.ChangeIndex:
		return Indexes
	case projection.ChangeBackfill:
		if !after.Shared() || len(newTypes(before, after, r.types)) == 0 {
			return Fields
		}
	}
	return Fresh
}

// changeIndexes changes the indexes of the serving version, and notes it as a
// rebuild that is done.
func (j *job) changeIndexes(ctx context.Context, active readmodel.Version, options Options) error {
	conn, err := j.connect(ctx, j.name)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	stop := j.keepLease(ctx)
	defer stop()
	err = readmodel.ChangeIndexes(ctx, conn, active, j.plan, func(ctx context.Context, tx pgx.Tx) error {
		id, err := j.noteInPlace(ctx, tx, active.Number, options)
		if err != nil {
			return fmt.Errorf("noting a change in place: %w", err)
		}
		j.id, j.rebuild = id, Rebuild{ID: id, Projection: j.name, Version: active.Number, Kind: Indexes, State: Done, Step: StepDone, Options: options}
		return j.lease.Verify(ctx, tx)
	})
	if err != nil {
		return err
	}
	j.log.Info("indexes are changed in place", "version", active.Number)
	return nil
}

// noteInPlace ends the request for a rebuild, or makes a rebuild that is done.
func (j *job) noteInPlace(ctx context.Context, tx pgx.Tx, version int, options Options) (id int64, err error) {
	err = tx.QueryRow(ctx, `update refold.rebuild set version = $2, kind = 'indexes', state = 'done', step = 'done', definition = $3, plan = $4, started = clock_timestamp(), finished = clock_timestamp()
		where projection = $1 and state not in ('done', 'cancelled') and version is null and coalesce(plan, $4) = $4 returning id`, j.name, version, j.plan.Source(), j.plan.Hash()).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		err = tx.QueryRow(ctx, `insert into refold.rebuild (projection, version, kind, state, step, definition, plan, options, started, finished)
			values ($1, $2, 'indexes', 'done', 'done', $3, $4, $5, clock_timestamp(), clock_timestamp()) returning id`, j.name, version, j.plan.Source(), j.plan.Hash(), mustJSON(options)).Scan(&id)
	}
	return id, err
}

// tooLong tells whether a row holds text in an indexed field that a fold with the
// index would not have made: then only a rebuild gives the rows of the definition.
func (j *job) tooLong(ctx context.Context, v readmodel.Version) (long bool, err error) {
	var tests []string
	for _, x := range j.plan.Indexes() {
		for _, f := range j.plan.Fields() {
			if f.MaxText > 0 && slices.Contains(x.Fields, f.Name) {
				tests = append(tests, fmt.Sprintf("octet_length(data->>'%s') > %d", f.Name, f.MaxText)) // letters, digits and underscores
			}
		}
	}
	if len(tests) == 0 {
		return false, nil
	}
	err = j.pool.QueryRow(ctx, `select exists (select from `+v.Table()+` where `+strings.Join(tests, " or ")+`)`).Scan(&long)
	if err != nil {
		return false, fmt.Errorf("looking for text that is too long for an index: %w", err)
	}
	return long, nil
}
