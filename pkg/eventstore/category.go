package eventstore

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/event"
)

// CategorySpec is what a contract says about a category.
type CategorySpec struct {
	Name              string
	Slots, Partitions int
	Topic             string
}

// Category is a category as the database knows it.
type Category struct {
	ID                int16
	Name              string
	Slots, Partitions int
	Topic             string
	Generation        int
}

// SlotOf returns the slot of a stream of the category.
func (c Category) SlotOf(stream string) int { return event.SlotOf(stream, c.Slots) }

const selectCategories = `select id, name, slots, partitions, topic, generation from refold.category`

// ReadCategories returns all categories, by name.
func ReadCategories(ctx context.Context, pool *pgxpool.Pool) ([]Category, error) {
	rows, err := pool.Query(ctx, selectCategories+` order by name`)
	if err != nil {
		return nil, fmt.Errorf("reading the categories: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Category])
	if err != nil {
		return nil, fmt.Errorf("reading the categories: %w", err)
	}
	return list, nil
}

// ensureCategory makes a category with its slots, or returns the one that is there.
func ensureCategory(ctx context.Context, pool *pgxpool.Pool, spec CategorySpec) (c Category, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// An insertion that meets the name takes an id all the same, of 32,767 that there are.
		if _, err := tx.Exec(ctx, `insert into refold.category (name, slots, partitions, topic) select $1, $2, $3, $4
			where not exists (select from refold.category where name = $1) on conflict (name) do nothing`,
			spec.Name, spec.Slots, spec.Partitions, spec.Topic); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, selectCategories+` where name = $1`, spec.Name)
		if err != nil {
			return err
		}
		if c, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Category]); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `insert into refold.slot (category, slot) select $1, generate_series(0, $2::int - 1) on conflict do nothing`, c.ID, c.Slots)
		return err
	})
	switch {
	case err != nil:
		return c, fmt.Errorf("making the category %s: %w", spec.Name, err)
	case c.Slots != spec.Slots:
		return c, fmt.Errorf("the category %s has %d slots, its contract says %d: the slots of a category never change", c.Name, c.Slots, spec.Slots)
	case c.Partitions != spec.Partitions:
		return c, fmt.Errorf("the topic of the category %s has %d partitions, its contract says %d: growing it needs a new generation of the topic", c.Name, c.Partitions, spec.Partitions)
	case c.Topic != spec.Topic:
		return c, fmt.Errorf("the category %s is relayed to the topic %s, the configuration says %s: use the prefix that it was created with", c.Name, c.Topic, spec.Topic)
	}
	return c, nil
}
