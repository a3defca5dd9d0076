package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// ErrNoCategory is wrapped while a category is not in the database: the writer
// makes it when it starts.
var ErrNoCategory = errors.New("the category is not in the database yet: writer serve makes it")

// Setup makes version 1 of every projection that has none and returns the feeds
// of all fed versions of the named projections; of all without names. A version
// that cannot be fed is an error.
func Setup(ctx context.Context, pool *pgxpool.Pool, contracts *avro.Contracts, definitions []*projection.Definition, names []string) ([]Feed, error) {
	d, err := NewDeployment(pool, contracts, definitions, names, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	feeds, failed, err := d.read(ctx)
	for _, v := range failed {
		err = errors.Join(err, v.err)
	}
	if err != nil {
		return nil, err
	}
	return feeds, nil
}

// Deployment is what a program deploys, its definitions, beside what the catalogue
// holds: from both follows what is to be fed. It is safe for concurrent use.
type Deployment struct {
	pool  *pgxpool.Pool
	names []string
	plans []*projection.Plan // of the definitions
	built *readmodel.Plans   // of the versions in the catalogue
	log   *slog.Logger

	mu    sync.Mutex
	said  map[string]string // what was logged last about a version
	known map[string]bool   // projections that have a version
}

// NewDeployment compiles the definitions of the named projections; of all without
// names. It does not dial.
func NewDeployment(pool *pgxpool.Pool, contracts *avro.Contracts, definitions []*projection.Definition, names []string, log *slog.Logger) (*Deployment, error) {
	d := &Deployment{pool: pool, names: names, built: readmodel.NewPlans(contracts, definitions...), log: log, said: make(map[string]string), known: make(map[string]bool)}
	for _, definition := range definitions {
		if !d.wants(definition.Name) || slices.ContainsFunc(d.plans, func(p *projection.Plan) bool { return p.Name() == definition.Name }) {
			continue // not wanted, or a former revision of a fold in Go
		}
		plan, err := projection.Compile(definition, contracts)
		if err != nil {
			return nil, err
		}
		d.plans = append(d.plans, plan)
	}
	return d, nil
}

func (d *Deployment) wants(name string) bool {
	return len(d.names) == 0 || slices.Contains(d.names, name)
}

// Feeds makes version 1 of every projection that has none and returns the feeds
// of all fed versions. A version that this program cannot feed is left out, and
// logged once for each reason: the others go on.
func (d *Deployment) Feeds(ctx context.Context) ([]Feed, error) {
	feeds, failed, err := d.read(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range failed {
		if d.changed(f.version, f.err.Error()) {
			d.log.Error("a version cannot be fed", "projection", f.version.Projection, "version", f.version.Number, "err", f.err)
		}
	}
	for _, f := range feeds {
		due := ""
		for _, plan := range d.plans {
			if plan.Name() == f.Version.Projection && plan.Hash() != f.Version.PlanHash && f.Version.State == "active" {
				due = plan.Hash()
			}
		}
		if d.changed(f.Version, due) && due != "" {
			d.log.Warn("a rebuild is due: another definition is deployed than the one that the active version was built by, which it is fed by until then",
				"projection", f.Version.Projection, "version", f.Version.Number, "next", "rebuild run "+f.Version.Projection)
		}
	}
	return feeds, nil
}

// changed notes what is said about a version and tells whether it is new.
func (d *Deployment) changed(v readmodel.Version, what string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.said[v.Leaf] == what {
		return false
	}
	d.said[v.Leaf] = what
	return true
}

// unfed is a version that cannot be fed, and why.
type unfed struct {
	version readmodel.Version
	err     error
}

func (d *Deployment) read(ctx context.Context) (feeds []Feed, failed []unfed, err error) {
	categories, err := eventstore.ReadCategories(ctx, d.pool)
	if err != nil {
		return nil, nil, err
	}
	catalogue := readmodel.NewCatalogue(d.pool)
	for _, plan := range d.plans {
		if err := d.create(ctx, catalogue, plan, categories); err != nil {
			return nil, nil, err
		}
	}
	versions, err := catalogue.Fed(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, v := range versions {
		if !d.wants(v.Projection) {
			continue
		}
		plan, err := d.built.Plan(v)
		if err == nil {
			err = plan.Foldable()
		}
		if err != nil {
			failed = append(failed, unfed{v, err})
			continue
		}
		feed := Feed{Version: v, Plan: plan}
		if v.Completing {
			if feed.Served, err = d.served(ctx, catalogue, v); err != nil {
				failed = append(failed, unfed{v, err})
				continue
			}
		}
		for _, c := range categories {
			if slices.Contains(plan.Categories(), c.Name) {
				feed.Categories = append(feed.Categories, c)
			}
		}
		feeds = append(feeds, feed)
	}
	return feeds, failed, nil
}

// served returns the plan that queries of a version go by.
func (d *Deployment) served(ctx context.Context, catalogue *readmodel.Catalogue, v readmodel.Version) (*projection.Plan, error) {
	all, err := catalogue.All(ctx)
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		if one.Leaf == v.Leaf {
			return d.built.Plan(one)
		}
	}
	return nil, fmt.Errorf("%w: %s version %d", readmodel.ErrUnknownProjection, v.Projection, v.Number)
}

// create makes version 1 of a projection that has none.
func (d *Deployment) create(ctx context.Context, catalogue *readmodel.Catalogue, plan *projection.Plan, categories []eventstore.Category) error {
	d.mu.Lock()
	known := d.known[plan.Name()]
	d.mu.Unlock()
	if known { // versions are retired, projections are never forgotten
		return nil
	}
	var sources []readmodel.Source
	for _, name := range plan.Categories() {
		i := slices.IndexFunc(categories, func(c eventstore.Category) bool { return c.Name == name })
		if i < 0 {
			return fmt.Errorf("%w: %s", ErrNoCategory, name)
		}
		c := categories[i]
		sources = append(sources, readmodel.Source{Category: c.Name, Generation: c.Generation, Slots: c.Slots, Partitions: c.Partitions})
	}
	if err := catalogue.CreateFirst(ctx, plan, sources); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known[plan.Name()] = true
	return nil
}
