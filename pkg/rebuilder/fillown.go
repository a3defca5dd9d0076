package rebuilder

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// fillPage is how many rows are looked for at a time, fillChunk how many are
// filled in one transaction, which the partition's engine waits for.
const (
	fillPage  = 2000
	fillChunk = 250
)

// page calls do with the keys of rows that fit a condition on data, a page after
// the other; the condition's parameter is $2.
func (f *fields) page(ctx context.Context, condition string, names []string, do func([]string) error) error {
	for after := ""; ; {
		rows, err := f.pool.Query(ctx, fmt.Sprintf(`select key from %s where key > $1 and %s order by key limit %d`, f.version.Table(), condition, fillPage), after, names)
		if err != nil {
			return fmt.Errorf("looking for rows to fill: %w", err)
		}
		keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return fmt.Errorf("looking for rows to fill: %w", err)
		}
		if len(keys) == 0 {
			return nil
		}
		if err := do(keys); err != nil {
			return err
		}
		after = keys[len(keys)-1]
	}
}

// byPart calls do with keys of rows of one stream, a chunk of one partition at a
// time, several of them at once.
func (f *fields) byPart(ctx context.Context, keys []string, do func(context.Context, *part, []string) error) error {
	c := f.categories[0]
	byPart := make([][]string, c.Partitions)
	for _, key := range keys {
		n := c.SlotOf(key) % c.Partitions
		byPart[n] = append(byPart[n], key)
	}
	group, filling := f.group(ctx)
	for n, keys := range byPart {
		group.Go(func() error {
			for chunk := range slices.Chunk(keys, fillChunk) {
				if err := do(filling, f.parts[n], chunk); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// fillOwn completes the rows of one stream that an engine has not completed.
func (f *fields) fillOwn(ctx context.Context) error {
	if err := f.makeMissing(ctx); err != nil {
		return err
	}
	filled := 0
	return f.page(ctx, `not data ?& $2`, f.all, func(keys []string) error {
		f.meter.wait(fmt.Sprintf("filling new fields: %d rows are filled", filled))
		filled += len(keys)
		return f.byPart(ctx, keys, func(ctx context.Context, p *part, keys []string) error { return f.fillRows(ctx, p, keys, false) })
	})
}

// fillRows completes rows that are there, or makes those that are not.
func (f *fields) fillRows(ctx context.Context, p *part, keys []string, missing bool) error {
	events := 0
	err := f.write(ctx, fmt.Sprintf("fill %s/%d from %s", p.category.Name, p.partition, keys[0]), func(tx pgx.Tx) error {
		at, err := f.applied(ctx, tx, p, "for update")
		if err != nil {
			return err
		}
		// What follows sees all that was committed before the lock was had.
		if keys, err = f.unfilled(ctx, tx, keys, missing); err != nil || len(keys) == 0 {
			return err
		}
		rows, n, err := f.foldAt(ctx, tx, f.plan, p, at, keys)
		if err != nil {
			return err
		}
		events = n
		if missing {
			err = f.insertRows(ctx, tx, rows)
		} else {
			err = f.updateRows(ctx, tx, rows)
		}
		if err != nil {
			return err
		}
		return f.announce(ctx, tx, p, at, keys)
	})
	if err != nil {
		return fmt.Errorf("filling rows of %s/%d: %w", p.category.Name, p.partition, err)
	}
	return f.gate(ctx, events)
}

// unfilled returns those of the rows that still lack fields, or are not there.
func (f *fields) unfilled(ctx context.Context, tx pgx.Tx, keys []string, missing bool) ([]string, error) {
	sql := `select key from ` + f.version.Table() + ` where key = any($1) and not data ?& $2`
	if missing {
		sql = `select k from unnest($1::text[]) k where $2::text[] is not null and not exists (select from ` + f.version.Table() + ` where key = k)`
	}
	rows, err := tx.Query(ctx, sql, keys, f.all)
	if err != nil {
		return nil, fmt.Errorf("looking for rows to fill: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// foldAt folds streams by a plan up to what the version has applied.
func (f *fields) foldAt(ctx context.Context, tx pgx.Tx, plan *projection.Plan, p *part, at position, streams []string) (map[string]*projection.Row, int, error) {
	parked, err := f.parkedFrom(ctx, tx, f.version, p.category.Name)
	if err != nil {
		return nil, 0, err
	}
	ranges := make([]engine.StreamRange, len(streams))
	for i, stream := range streams {
		ranges[i] = engine.StreamRange{Stream: stream, UpTo: at.seqs[p.place(p.category.SlotOf(stream))]}
		if from, is := parked[stream]; is {
			ranges[i].UpTo = min(ranges[i].UpTo, from-1)
		}
	}
	rows := make(map[string]*projection.Row, len(streams))
	fold := engine.StreamFold{Projection: f.name, Plan: plan, Category: p.category, Schemas: f.deps.Schemas}
	n, poisoned, err := fold.Into(ctx, tx, ranges, rows)
	if err != nil {
		return nil, n, err
	}
	for stream, why := range poisoned {
		return nil, n, &Unfit{f.name, stream, why.Error()}
	}
	return rows, n, nil
}

// texts returns rows that exist as the columns of a table.
func texts(rows map[string]*projection.Row) (keys, data []string, states []*string) {
	for key, row := range rows {
		if row.Exists() {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		var state *string
		if text := rows[key].AppendState(nil); len(text) > 0 {
			one := string(text)
			state = &one
		}
		data, states = append(data, string(rows[key].AppendData(nil))), append(states, state)
	}
	return keys, data, states
}

// updateRows writes the fields that rows lack, and no others.
func (f *fields) updateRows(ctx context.Context, tx pgx.Tx, rows map[string]*projection.Row) error {
	keys, data, states := texts(rows)
	if len(keys) < len(rows) {
		for key, row := range rows {
			if !row.Exists() {
				return fmt.Errorf("%w: there is a row %q, which no event of its stream makes", ErrNotVerified, key)
			}
		}
	}
	_, err := tx.Exec(ctx, `update `+f.version.Table()+` t set data = u.d || t.data, state = u.s, updated_at = clock_timestamp()
		from unnest($1::text[], $2::jsonb[], $3::jsonb[]) u (k, d, s) where t.key = u.k`, keys, data, states)
	if err != nil {
		return fmt.Errorf("completing rows: %w", err)
	}
	return nil
}

func (f *fields) insertRows(ctx context.Context, tx pgx.Tx, rows map[string]*projection.Row) error {
	keys, data, states := texts(rows)
	_, err := tx.Exec(ctx, `insert into `+f.version.Table()+` (projection_name, version, key, data, state) select $1, $2, k, d, s from unnest($3::text[], $4::jsonb[], $5::jsonb[]) u (k, d, s)`,
		f.name, f.version.Number, keys, data, states)
	if err != nil {
		return fmt.Errorf("making rows: %w", err)
	}
	return nil
}

// announce tells those who keep answers which rows are others now.
func (f *fields) announce(ctx context.Context, tx pgx.Tx, p *part, at position, keys []string) error {
	a := readmodel.Announcement{Projection: f.name, Version: f.version.Number, Category: p.category.Name, Generation: p.category.Generation, Partition: p.partition,
		From: at.next, To: at.next, Seqs: at.seqs}
	for _, key := range keys {
		a.Keys = append(a.Keys, readmodel.HashKey(key))
	}
	_, err := tx.Exec(ctx, `select pg_notify($1, $2)`, readmodel.Channel, a.Payload())
	return err
}

// makeMissing makes the rows of streams which only events make that the former
// plan does not use.
func (f *fields) makeMissing(ctx context.Context) error {
	served, err := f.findVersion(ctx, f.name, f.version.Number)
	if err != nil {
		return err
	}
	before, err := f.plans.Plan(served)
	if err != nil {
		return err
	}
	types := newTypes(before, f.plan, f.types)
	if len(types) == 0 {
		return nil
	}
	return f.eachOf(ctx, func(p *part) bool { return p.merged }, func(ctx context.Context, p *part) error {
		at, err := f.applied(ctx, f.pool, p, "")
		if err != nil {
			return err
		}
		for place, head := range at.seqs {
			for after := int64(0); after < head; after += tableChunk {
				f.meter.wait(fmt.Sprintf("looking for streams without a row: %s/%d, seq %d of %d", p.category.Name, p.slot(place), after, head))
				streams, err := f.streamsWithoutRow(ctx, p, p.slot(place), after, min(head, after+tableChunk), types)
				if err != nil {
					return err
				}
				for chunk := range slices.Chunk(streams, fillChunk) {
					if err := f.fillRows(ctx, p, chunk, true); err != nil {
						return err
					}
				}
			}
		}
		return f.write(ctx, fmt.Sprintf("made %s/%d", p.category.Name, p.partition), func(tx pgx.Tx) error { return f.noteMerged(ctx, tx, p) })
	})
}

func (f *fields) streamsWithoutRow(ctx context.Context, p *part, slot int, after, upTo int64, types []string) ([]string, error) {
	rows, err := f.pool.Query(ctx, `select distinct e.stream from refold.event e where e.category = $1 and e.slot = $2 and e.seq > $3 and e.seq <= $4 and e.type = any($5)
		and not exists (select from `+f.version.Table()+` t where t.key = e.stream)`, p.category.ID, int16(slot), after, upTo, types)
	if err != nil {
		return nil, fmt.Errorf("looking for streams without a row: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
