package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
// of all fed versions of the named projections; of all without names.
func Setup(ctx context.Context, pool *pgxpool.Pool, contracts *avro.Contracts, definitions []*projection.Definition, names []string) ([]Feed, error) {
	categories, err := eventstore.ReadCategories(ctx, pool)
	if err != nil {
		return nil, err
	}
	catalogue := readmodel.NewCatalogue(pool)
	for _, d := range definitions {
		if len(names) > 0 && !slices.Contains(names, d.Name) {
			continue
		}
		plan, err := projection.Compile(d, contracts)
		if err != nil {
			return nil, err
		}
		if err := create(ctx, catalogue, plan, categories); err != nil {
			return nil, err
		}
	}
	versions, err := catalogue.Fed(ctx)
	if err != nil {
		return nil, err
	}
	plans := readmodel.NewPlans(contracts)
	var feeds []Feed
	for _, v := range versions {
		if len(names) > 0 && !slices.Contains(names, v.Projection) {
			continue
		}
		plan, err := plans.Plan(v)
		if err != nil {
			return nil, err
		}
		feed := Feed{Version: v, Plan: plan}
		for _, c := range categories {
			if slices.Contains(plan.Categories(), c.Name) {
				feed.Categories = append(feed.Categories, c)
			}
		}
		feeds = append(feeds, feed)
	}
	return feeds, nil
}

func create(ctx context.Context, catalogue *readmodel.Catalogue, plan *projection.Plan, categories []eventstore.Category) error {
	var sources []readmodel.Source
	for _, name := range plan.Categories() {
		i := slices.IndexFunc(categories, func(c eventstore.Category) bool { return c.Name == name })
		if i < 0 {
			return fmt.Errorf("%w: %s", ErrNoCategory, name)
		}
		c := categories[i]
		sources = append(sources, readmodel.Source{Category: c.Name, Generation: c.Generation, Slots: c.Slots, Partitions: c.Partitions})
	}
	return catalogue.CreateFirst(ctx, plan, sources)
}
