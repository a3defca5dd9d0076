package rebuilder

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// fillShared merges what came before the change of plan into the new fields.
func (f *fields) fillShared(ctx context.Context) error {
	var names []string // new ones; the rows that the engine has not touched since lack them
	served, err := f.findVersion(ctx, f.name, f.version.Number)
	if err != nil {
		return err
	}
	before, err := f.plans.Plan(served)
	if err != nil {
		return err
	}
	names = addedFields(before, f.plan)
	if err := f.eachPart(ctx, f.loadParts); err != nil {
		return err
	}
	sql := f.plan.MergeFieldsSQL(f.version.Table(), names)
	for _, p := range f.parts {
		for !p.merged {
			if err := f.mergeChunk(ctx, p, sql); err != nil {
				return err
			}
		}
	}
	return f.fillBlank(ctx, sql)
}

// loadParts makes the parts of one partition of what had been applied when the
// plan was changed. Streams that the version has parked end where it has.
func (f *fields) loadParts(ctx context.Context, p *part) error {
	conn, err := f.connect(ctx, f.name)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	l, err := f.newLoader(ctx, conn, p, partsTable(f.version))
	if err != nil {
		return err
	}
	parked, err := f.parkedFrom(ctx, f.pool, f.version, p.category.Name)
	if err != nil {
		return err
	}
	for stream, from := range parked {
		l.parked[stream] = &parkedStream{from: from}
	}
	if err := l.run(ctx); err != nil {
		return err
	}
	for stream, s := range l.parked {
		if s.why != "" {
			return &Unfit{f.name, stream, s.why}
		}
	}
	return l.commit(ctx, nil)
}

// mergeChunk merges some of the parts of a partition and deletes them.
func (f *fields) mergeChunk(ctx context.Context, p *part, sql string) error {
	err := f.write(ctx, fmt.Sprintf("fill %s/%d", p.category.Name, p.partition), func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, fmt.Sprintf(`delete from %[1]s where category = $1 and partition = $2 and key in (select key from %[1]s where category = $1 and partition = $2 order by key limit %[2]d)
			returning key, data::text, state::text`, partsTable(f.version), fillChunk), p.category.Name, p.partition)
		if err != nil {
			return err
		}
		parts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[textRow])
		if err != nil {
			return err
		}
		if len(parts) == 0 {
			p.merged = true
			return f.noteMerged(ctx, tx, p)
		}
		slices.SortFunc(parts, func(a, b textRow) int { return strings.Compare(a.Key, b.Key) })
		return f.mergeTexts(ctx, tx, sql, parts)
	})
	if err != nil {
		p.merged = false
		return fmt.Errorf("merging the parts of %s/%d: %w", p.category.Name, p.partition, err)
	}
	return f.gate(ctx, 0)
}

// fillBlank gives the new fields, as they are at first, to rows that no part
// concerns.
func (f *fields) fillBlank(ctx context.Context, sql string) error {
	blank := f.plan.Blank()
	data, state := string(blank.AppendData(nil)), string(blank.AppendState(nil))
	return f.page(ctx, `not data ?& $2`, f.all, func(keys []string) error {
		return f.write(ctx, "fill from "+keys[0], func(tx pgx.Tx) error {
			parts := make([]textRow, len(keys))
			for i, key := range keys {
				parts[i] = textRow{key, data, &state}
			}
			return f.mergeTexts(ctx, tx, sql, parts)
		})
	})
}
