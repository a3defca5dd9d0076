package readmodel

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/projection"
)

// BeginCompletion makes a version be fed by a plan that has fields more than its
// own, in tx, while queries go on with the plan that it has: from here on every
// row that is written has all fields, and the others can be completed.
//
// Nobody feeds it by the former plan any more once tx has committed: the owners'
// epochs are raised, which refuses what they are about to commit, and a claim
// compares the plan. So in every slot there is one definite seq up to which events
// were applied by the former plan, and it stands in the progress that is locked here.
func BeginCompletion(ctx context.Context, tx pgx.Tx, v Version, plan *projection.Plan) error {
	if err := lockFeeding(ctx, tx, v); err != nil {
		return err
	}
	var fits bool
	err := tx.QueryRow(ctx, `select state in ('active', 'ready') and plan = $3 and next_plan is null from refold.projection_version where projection = $1 and version = $2`,
		v.Projection, v.Number, v.PlanHash).Scan(&fits)
	if err == nil && !fits || errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("%w: version %d of %s is retired, or its definition has changed meanwhile", ErrNotServable, v.Number, v.Projection)
	}
	if err == nil {
		_, err = tx.Exec(ctx, `update refold.projection_version set next_definition = $3, next_plan = $4 where projection = $1 and version = $2`,
			v.Projection, v.Number, plan.Source(), plan.Hash())
	}
	if err != nil {
		return fmt.Errorf("changing what feeds %s version %d: %w", v.Projection, v.Number, err)
	}
	return Announce(ctx, tx)
}

// AbandonCompletion makes a version be fed by its own plan again, in tx.
func AbandonCompletion(ctx context.Context, tx pgx.Tx, v Version) error {
	if err := lockFeeding(ctx, tx, v); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `update refold.projection_version set next_definition = null, next_plan = null where projection = $1 and version = $2`, v.Projection, v.Number); err != nil {
		return fmt.Errorf("changing what feeds %s version %d: %w", v.Projection, v.Number, err)
	}
	return Announce(ctx, tx)
}

// lockFeeding holds the feeding of a version up until tx ends, and makes its
// owners claim anew.
func lockFeeding(ctx context.Context, tx pgx.Tx, v Version) error {
	if err := lockProjection(ctx, tx, v.Projection); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, lockProgressSQL, v.Projection, v.Number); err != nil {
		return fmt.Errorf("locking the progress of %s version %d: %w", v.Projection, v.Number, err)
	}
	if _, err := tx.Exec(ctx, `update refold.progress set owner_epoch = owner_epoch + 1 where projection = $1 and version = $2`, v.Projection, v.Number); err != nil {
		return fmt.Errorf("fencing those who feed %s version %d: %w", v.Projection, v.Number, err)
	}
	return nil
}

// AnnounceRows tells those who keep answers that all rows of a version may have
// changed, when tx commits.
func AnnounceRows(ctx context.Context, tx pgx.Tx, v Version) error {
	a := Announcement{Projection: v.Projection, Version: v.Number, Many: true}
	if _, err := tx.Exec(ctx, `select pg_notify($1, $2)`, Channel, a.Payload()); err != nil {
		return fmt.Errorf("announcing a change of rows: %w", err)
	}
	return nil
}
