package service

import (
	"context"
	"fmt"

	"github.com/refoldhq/refold/pkg/rebuilder"
)

type rebuildPlanCommand struct {
	Name   string `arg:"" help:"Projection."`
	Source string `help:"Where the history would be read." enum:"topic,eventstore,auto" default:"topic"`
	Rate   int    `help:"Most events read in a second." default:"0"`
	Verify string `help:"What would be verified before it serves." enum:"sample,full,deterministic" default:"sample"`
	Deep   bool   `help:"Read and fold the whole history: proves that it is whole, and counts."`
}

// Run prints the plan.
func (p *rebuildPlanCommand) Run(ctx context.Context, s *Settings, c *RebuildCommands) error {
	return c.with(ctx, s, func(r *rebuilder.Rebuilder) error {
		plan, err := r.Plan(ctx, p.Name, rebuilder.Options{Source: rebuilder.Source(p.Source), Rate: p.Rate, Verify: rebuilder.Verification(p.Verify)}, p.Deep)
		if err != nil {
			return err
		}
		return c.printPlan(plan)
	})
}

type rebuildStatusCommand struct {
	Name string `arg:"" optional:"" help:"Projection; all without a name."`
}

// Run prints versions, and rebuilds that are not at their end, or the newest one
// of the named projection.
func (t *rebuildStatusCommand) Run(ctx context.Context, s *Settings, c *RebuildCommands) error {
	return c.with(ctx, s, func(r *rebuilder.Rebuilder) error {
		if t.Name != "" {
			if err := r.Known(ctx, t.Name); err != nil {
				return err
			}
		}
		projections, err := r.Projections(ctx, t.Name)
		if err != nil {
			return err
		}
		rebuilds, err := r.Open(ctx)
		if err != nil {
			return err
		}
		if t.Name != "" {
			rebuilds = nil
			if latest, err := r.Latest(ctx, t.Name); err == nil {
				rebuilds = []rebuilder.Rebuild{latest}
			}
		}
		return c.printStatus(projections, rebuilds)
	})
}

type rebuildPauseCommand struct {
	Name string `arg:"" help:"Projection."`
}

// Run pauses the rebuild that is under way.
func (p *rebuildPauseCommand) Run(ctx context.Context, s *Settings, c *RebuildCommands) error {
	return c.latest(ctx, s, p.Name, func(r *rebuilder.Rebuilder, id int64) error { return r.Pause(ctx, id) })
}

type rebuildResumeCommand struct {
	Name string `arg:"" help:"Projection."`
}

// Run lets the paused rebuild go on.
func (p *rebuildResumeCommand) Run(ctx context.Context, s *Settings, c *RebuildCommands) error {
	return c.latest(ctx, s, p.Name, func(r *rebuilder.Rebuilder, id int64) error { return r.Resume(ctx, id) })
}

type rebuildCancelCommand struct {
	Name string `arg:"" help:"Projection."`
}

// Run cancels the rebuild that is not at its end.
func (p *rebuildCancelCommand) Run(ctx context.Context, s *Settings, c *RebuildCommands) error {
	return c.latest(ctx, s, p.Name, func(r *rebuilder.Rebuilder, id int64) error { return r.Cancel(ctx, id) })
}

type rebuildPromoteCommand struct {
	Name string `arg:"" help:"Projection."`
}

// Run promotes the version that waits.
func (p *rebuildPromoteCommand) Run(ctx context.Context, s *Settings, c *RebuildCommands) error {
	return c.latest(ctx, s, p.Name, func(r *rebuilder.Rebuilder, id int64) error {
		_, err := r.Promote(ctx, id)
		return err
	})
}

// latest does something to the newest rebuild of a projection, and shows it.
func (c *RebuildCommands) latest(ctx context.Context, s *Settings, name string, f func(*rebuilder.Rebuilder, int64) error) error {
	return c.with(ctx, s, func(r *rebuilder.Rebuilder) error {
		now, err := r.Latest(ctx, name)
		if err != nil {
			return err
		}
		if err := f(r, now.ID); err != nil {
			return err
		}
		if now, err = r.Get(ctx, now.ID); err != nil {
			return err
		}
		return c.printRebuild(now)
	})
}

type rebuildVerifyCommand struct {
	Name   string `arg:"" help:"Projection."`
	Number int    `arg:"" optional:"" name:"number" help:"Version to verify; the one that serves without a number."`
	How    string `help:"sample or full." enum:"sample,full" default:"full"`
}

// Run verifies a version.
func (v *rebuildVerifyCommand) Run(ctx context.Context, s *Settings, c *RebuildCommands) error {
	return c.with(ctx, s, func(r *rebuilder.Rebuilder) error {
		report, err := r.Verify(ctx, v.Name, v.Number, rebuilder.Verification(v.How))
		if err != nil {
			return err
		}
		if err := c.printReport(report); err != nil {
			return err
		}
		if !report.OK {
			return fmt.Errorf("%w: version %d of %s", rebuilder.ErrNotVerified, report.Version, v.Name)
		}
		return nil
	})
}

type rebuildRollbackCommand struct {
	Name string `arg:"" help:"Projection."`
}

// Run rolls back.
func (b *rebuildRollbackCommand) Run(ctx context.Context, s *Settings, c *RebuildCommands) error {
	return c.with(ctx, s, func(r *rebuilder.Rebuilder) error {
		version, err := r.RollBack(ctx, b.Name)
		if err != nil {
			return err
		}
		return c.print(map[string]any{"name": b.Name, "active": version}, func() { fmt.Printf("version %d of %s serves\n", version, b.Name) })
	})
}

type rebuildRetireCommand struct {
	Name   string `arg:"" help:"Projection."`
	Number int    `arg:"" optional:"" name:"number" help:"Version to retire; all that are ready and do not serve without a number."`
}

// Run retires versions.
func (t *rebuildRetireCommand) Run(ctx context.Context, s *Settings, c *RebuildCommands) error {
	return c.with(ctx, s, func(r *rebuilder.Rebuilder) error {
		retired, err := r.Retire(ctx, t.Name, t.Number)
		if err != nil {
			return err
		}
		return c.print(map[string]any{"name": t.Name, "retired": retired}, func() { fmt.Printf("retired versions of %s: %v\n", t.Name, retired) })
	})
}
