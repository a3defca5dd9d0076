package readmodel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Rows also change when a parked stream is retried or skipped, which moves no
// progress. What was carried out stands in refold.row_request, by id; so a
// follower that resumes behind an id misses none of it.

// answered is a request that a version has carried out.
type answered struct {
	id      int64
	version int
}

// maxAnswered is the most requests whose rows are told one by one.
const maxAnswered = 1000

// errTooManyAnswered says that any row may have changed, for all that is told.
var errTooManyAnswered = errors.New("more requests about parked streams were carried out than are told one by one")

const answeredSQL = `select id, category, stream from refold.row_request where projection = $1 and id > $2 and outcomes ? $3 order by id limit $4`

// answered returns the rows that requests behind a standing have changed, but for
// those that were told, to which it adds them.
func (d *deriver) answered(ctx context.Context, pool *pgxpool.Pool, m *Model, from standing, told map[answered]bool) ([]Change, error) {
	rows, err := pool.Query(ctx, answeredSQL, m.Version.Projection, from.requests, strconv.Itoa(m.Version.Number), maxAnswered)
	if err != nil {
		return nil, err
	}
	type one struct {
		ID               int64
		Category, Stream string
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[one])
	if err != nil {
		return nil, fmt.Errorf("reading what came of requests about parked streams of %s: %w", m.Version.Projection, err)
	}
	if len(list) == maxAnswered {
		return nil, errTooManyAnswered
	}
	fresh, keys := make(map[answered]bool), make(map[string]bool)
	for _, r := range list {
		a := answered{r.ID, m.Version.Number}
		if told[a] {
			continue
		}
		fresh[a] = true
		if err := d.keysOf(ctx, m, r.Category, r.Stream, keys); err != nil {
			return nil, err
		}
	}
	var names []string
	for key := range keys {
		names = append(names, key)
	}
	changes, err := d.rows(ctx, m, names, from)
	if err == nil {
		maps.Copy(told, fresh)
	}
	return changes, err
}

// maxRetold is the most events of a stream whose rows are told after a retry.
const maxRetold = 10_000

// keysOf adds the keys of the rows that a stream feeds.
func (d *deriver) keysOf(ctx context.Context, m *Model, category, stream string, keys map[string]bool) error {
	if !m.Plan.Shared() {
		keys[stream] = true
		return nil
	}
	c, ok := d.categories[category]
	if !ok {
		return nil
	}
	for after, read := int64(0), 0; ; {
		events, err := d.log.StreamEvents(ctx, c, stream, after, maxStep, false)
		if err != nil {
			return err
		}
		if read += len(events); read > maxRetold {
			return errTooManyAnswered
		}
		for i := range events {
			concerned, err := d.keys(ctx, m, &events[i])
			if err != nil {
				return err
			}
			for _, key := range concerned {
				keys[key] = true
			}
		}
		if len(events) < maxStep {
			return nil
		}
		after = events[len(events)-1].Version
	}
}
