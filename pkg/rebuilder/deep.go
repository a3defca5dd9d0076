package rebuilder

import (
	"context"
	"errors"
	"time"

	"github.com/refoldhq/refold/pkg/projection"
)

// deep folds the whole history by a plan and writes nothing, so that what is
// estimated otherwise is known: whether the history is whole, how many rows it
// makes, which streams would be parked, and how long it takes.
func (r *Rebuilder) deep(ctx context.Context, p *Plan, plan *projection.Plan, options Options) error {
	j := r.newJob(p.Projection, options.Rate)
	j.plan, j.rebuild.Options = plan, options
	var err error
	if j.categories, err = r.categories(ctx, plan); err != nil {
		return err
	}
	parts, err := j.pin(ctx, options.Source)
	if err != nil {
		return err
	}
	j.setParts(parts)
	loaders := make(chan *loader, len(parts))
	began := time.Now()
	err = j.eachPart(ctx, func(ctx context.Context, part *part) error {
		l, err := j.newLoader(ctx, nil, part, "")
		if err != nil {
			return err
		}
		if err := l.run(ctx); err != nil {
			return err
		}
		l.rows = nil
		loaders <- l
		return nil
	})
	var missing *Incomplete
	if errors.As(err, &missing) || errors.Is(err, errRecreated) || errors.Is(err, ErrDiverged) {
		p.Complete, p.Why = false, err.Error()
		return nil
	}
	if err != nil {
		return err
	}
	close(loaders)
	p.Deep, p.Complete, p.Why = true, true, ""
	p.Seconds, p.Events, p.Bytes, p.Rows = time.Since(began).Seconds(), 0, 0, 0
	for l := range loaders {
		p.Events, p.Rows, p.Parked = p.Events+l.events(), p.Rows+l.written, p.Parked+len(l.parked)
		p.Bytes += l.part.meter.bytes.Load()
	}
	return nil
}
