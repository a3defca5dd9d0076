package rebuilder

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// Plan is what a rebuild would do and what it would cost.
type Plan struct {
	Projection string `json:"projection"`
	// Serving is the version that serves, 0 for none.
	Serving int `json:"serving"`
	// Change says what the deployed definition is to the one of the serving version:
	// none, index, backfill or rebuild.
	Change string `json:"change"`
	// Fields says what becomes of each field that differs.
	Fields  []FieldChange `json:"fields,omitempty"`
	Events  int64         `json:"events"`
	Bytes   int64         `json:"bytes"` // estimated, of records as they lie in the topic
	Rows    int64         `json:"rows"`  // of the serving version
	Seconds float64       `json:"seconds"`
	Memory  int64         `json:"memoryBytes"`
	// Complete tells whether the source seems to hold the whole history; Why says
	// what speaks against it. Only the load itself proves it.
	Complete bool `json:"complete"`
	// Deep says that everything was read and folded: then the figures are counts
	// (rows of shared rows before their parts are merged), the time is that of the
	// fold, and Parked is how many streams a fresh version would park.
	Deep     bool     `json:"deep,omitempty"`
	Parked   int      `json:"parked,omitempty"`
	Why      string   `json:"why,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// FieldChange is what becomes of one field or index.
type FieldChange struct {
	Name   string `json:"name"`
	Change string `json:"change"`
	Detail string `json:"detail,omitempty"`
}

// assumedRate is what a load makes on two cores, for estimates where no rebuild
// of the projection was made yet.
const assumedRate = 300_000

// assumedRow is what a row takes in memory, in bytes.
const assumedRow = 700

// Plan says what Run would do. It changes nothing. deep reads and folds the whole
// history, where else only its ends are looked at.
func (r *Rebuilder) Plan(ctx context.Context, name string, options Options, deep bool) (Plan, error) {
	options, err := options.withDefaults()
	if err != nil {
		return Plan{}, err
	}
	deployed, err := r.compile(name)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Projection: name, Change: "rebuild", Complete: true}
	active, err := r.catalogue.Active(ctx, name)
	switch {
	case errors.Is(err, readmodel.ErrUnknownProjection):
		p.Warnings = append(p.Warnings, "no version serves yet: the rebuild makes the first one")
	case err != nil:
		return p, err
	default:
		p.Serving = active.Number
		before, err := r.plans.Plan(active)
		if err != nil {
			p.Warnings = append(p.Warnings, "the serving version's definition no longer compiles: "+err.Error())
			break
		}
		difference := projection.Diff(before, deployed)
		p.Change = string(difference.Change)
		for _, part := range difference.Parts {
			p.Fields = append(p.Fields, FieldChange{part.Name, string(part.Change), part.Detail})
		}
		if info, err := r.Version(ctx, name, active.Number); err == nil {
			p.Rows = info.Rows
		}
	}
	if err := r.warn(ctx, &p, deployed); err != nil {
		return p, err
	}
	if err := r.cost(ctx, &p, deployed, options); err != nil || !deep {
		return p, err
	}
	return p, r.deep(ctx, &p, deployed, options)
}

// warn adds what would refuse a rebuild by the plan.
func (r *Rebuilder) warn(ctx context.Context, p *Plan, plan *projection.Plan) error {
	err := r.checkLineage(ctx, plan, Options{})
	var left *Left
	if err != nil && !errors.As(err, &left) {
		return err
	}
	if left != nil {
		p.Warnings = append(p.Warnings, left.Error())
	}
	return nil
}

func (r *Rebuilder) cost(ctx context.Context, p *Plan, plan *projection.Plan, options Options) error {
	client, err := r.client()
	if err != nil {
		return err
	}
	defer client.Close()
	categories, err := r.categories(ctx, plan)
	if err != nil {
		return err
	}
	partitions := 0
	for _, c := range categories {
		partitions += c.Partitions
		parts, err := r.pinCategory(ctx, kadm.NewClient(client), c, options.Source)
		if err != nil {
			return err
		}
		for _, part := range parts {
			p.Events += part.events()
			if part.source == FromTopic && (part.start > 0 || part.end == 0 && part.events() > 0) {
				p.Complete = false
				p.Why = fmt.Sprintf("topic %s partition %d holds offsets %d to %d of a slot that has events from seq 1 on: --source=eventstore or auto reads them from Postgres", c.Topic, part.partition, part.start, part.end)
			}
		}
		var width float64
		if err := r.pool.QueryRow(ctx, `select coalesce(avg(length(value) + length(stream)), 0) from (select value, stream from refold.event where category = $1 limit 1000) e`, c.ID).Scan(&width); err != nil {
			return fmt.Errorf("estimating the width of events: %w", err)
		}
		p.Bytes = int64((width + 300) * float64(p.Events)) // a record's headers take about 300 bytes
	}
	now, err := postgres.ReadRoom(ctx, r.pool)
	if err != nil {
		return err
	}
	if err := enoughRoom(now, sessions(partitions, options), partitions); err != nil {
		p.Warnings = append(p.Warnings, err.Error())
	}
	rate := float64(assumedRate)
	if last, err := r.Latest(ctx, p.Projection); err == nil && last.State == Done && last.Progress.Rate > 1000 {
		rate = last.Progress.Rate
	}
	if options.Rate > 0 {
		rate = min(rate, float64(options.Rate))
	}
	p.Seconds = float64(p.Events)*options.Verify.folds()/rate + 1
	p.Memory = min(options.MemoryBytes, 64<<20+p.Rows*assumedRow*int64(options.Parallel)/int64(max(1, partitions)))
	return nil
}
