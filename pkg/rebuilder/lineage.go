package rebuilder

import (
	"context"
	"fmt"

	"github.com/refoldhq/refold/pkg/projection"
)

// Left says that the deployed definition is one that the projection has left: a
// version of it has served and serves no more, or was changed in place. While
// programs are upgraded one by one, those that are not yet still deploy it; a
// rebuild by it would take away what is served since, so that somebody has to say
// that this is what is wanted, see [Options.Back].
type Left struct{ Projection string }

func (e *Left) Error() string {
	return fmt.Sprintf("the deployed definition of %s is one that was served before and was left: a rebuild would take away what came since; to go back, `rebuild rollback %s` while the former version is kept, or `rebuild run %s --back`", e.Projection, e.Projection, e.Projection)
}

const leftSQL = `select exists (select from refold.projection_version where projection = $1 and (plan = $2 and promoted is not null or $2 = any(former_plans)))
	and not exists (select from refold.projection_version where projection = $1 and state = 'active' and plan = $2)`

// checkLineage is a *[Left] when the projection has left a plan and nobody wants
// to go back to it.
func (r *Rebuilder) checkLineage(ctx context.Context, plan *projection.Plan, options Options) error {
	if options.Back {
		return nil
	}
	var left bool
	if err := r.pool.QueryRow(ctx, leftSQL, plan.Name(), plan.Hash()).Scan(&left); err != nil {
		return fmt.Errorf("looking at what %s was built by: %w", plan.Name(), err)
	}
	if left {
		return &Left{plan.Name()}
	}
	return nil
}
