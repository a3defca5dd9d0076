package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// difference compares the rows with those of the version that serves, both
// brought to one position by folding what either lacks. The same definition must
// give the same rows; of another one the fields that differ are counted.
func (s *snapshot) difference(ctx context.Context) (Check, error) {
	active, err := s.active(ctx)
	if errors.Is(err, readmodel.ErrUnknownProjection) || err == nil && active.Number == s.version.Number {
		return Check{}, nil // there is nothing to compare with
	}
	if err != nil {
		return Check{}, err
	}
	c := Check{Name: "difference", OK: true}
	plan, err := s.plans.Plan(active)
	if err != nil {
		c.Detail = fmt.Sprintf("version %d cannot be compared: %v", active.Number, err)
		return c, nil
	}
	theirs, err := heads(ctx, s.tx, active.Projection, active.Number)
	if err != nil {
		return c, err
	}
	target := greatest(s.heads, theirs)
	mine, moved, err := s.bring(ctx, s.version, s.plan, s.heads, target, "refold_new")
	if err != nil {
		return c, err
	}
	other, moved2, err := s.bring(ctx, active, plan, theirs, target, "refold_old")
	if err != nil {
		return c, err
	}
	c.Detail = fmt.Sprintf("with version %d at one position (%d events folded to get there)", active.Number, moved+moved2)
	if plan.Hash() == s.plan.Hash() {
		return c, s.compareTables(ctx, mine, other, &c)
	}
	return c, s.countDifferences(ctx, mine, other, s.plan, plan, &c)
}

func (s *snapshot) active(ctx context.Context) (v readmodel.Version, err error) {
	err = s.tx.QueryRow(ctx, `select projection, version, state, definition, plan, leaf from refold.projection_version where projection = $1 and state = 'active'`, s.version.Projection).
		Scan(&v.Projection, &v.Number, &v.State, &v.Definition, &v.PlanHash, &v.Leaf)
	if errors.Is(err, pgx.ErrNoRows) {
		err = readmodel.ErrUnknownProjection
	}
	return v, err
}

func greatest(a, b map[string]map[int]int64) map[string]map[int]int64 {
	out := make(map[string]map[int]int64)
	for _, m := range []map[string]map[int]int64{a, b} {
		for category, slots := range m {
			if out[category] == nil {
				out[category] = make(map[int]int64)
			}
			for slot, seq := range slots {
				out[category][slot] = max(out[category][slot], seq)
			}
		}
	}
	return out
}

// bring returns a query of a version's rows as they are at the position to: those
// that events in between concern are folded on in a temporary table.
func (s *snapshot) bring(ctx context.Context, v readmodel.Version, plan *projection.Plan, from, to map[string]map[int]int64, table string) (query string, events int, err error) {
	if err := plan.Foldable(); err != nil {
		return "", 0, err
	}
	query = `select key, data, state from ` + v.Table()
	parts := make(map[string]*projection.Row)
	streams := make(map[string][]string) // by category
	f := s.newFold(plan)
	for _, c := range s.categories {
		touched := make(map[string]bool)
		for slot, head := range to[c.Name] {
			for after := from[c.Name][slot]; after < head; {
				list, err := s.events.SlotEvents(ctx, c, slot, after, 1000)
				if err != nil {
					return "", 0, err
				}
				if len(list) == 0 {
					return "", 0, fmt.Errorf("the log lacks %s/%d/%d", c.Name, slot, after+1)
				}
				for i := range list {
					if after = list[i].Seq; after > head {
						break
					}
					events++
					touched[list[i].Stream] = true
					if plan.Shared() {
						if err := f.event(ctx, &list[i], parts); err != nil {
							return "", 0, err
						}
					}
				}
			}
		}
		streams[c.Name] = slices.Sorted(maps.Keys(touched))
	}
	if events == 0 {
		return query, 0, nil
	}
	if err := s.rowTable(ctx, table); err != nil {
		return "", 0, err
	}
	keys := slices.Sorted(maps.Keys(parts))
	if plan.Shared() {
		err = s.bringShared(ctx, v, plan, keys, parts, table)
	} else {
		c := s.categories[0]
		keys = streams[c.Name]
		err = s.bringOwn(ctx, v, plan, c, keys, from[c.Name], to[c.Name], table)
	}
	if err != nil {
		return "", 0, err
	}
	if _, err := s.tx.Exec(ctx, `create temp table `+table+`_keys on commit drop as select unnest($1::text[]) collate "C" as key`, keys); err != nil {
		return "", 0, err
	}
	return query + ` where key not in (select key from pg_temp.` + table + `_keys) union all select key, data, state from pg_temp.` + table, events, nil
}

func (s *snapshot) bringOwn(ctx context.Context, v readmodel.Version, plan *projection.Plan, c eventstore.Category, streams []string, from, to map[int]int64, table string) error {
	for chunk := range slices.Chunk(streams, 200) {
		if err := s.foldStreams(ctx, plan, c, chunk, from, to, table, v); err != nil {
			return err
		}
	}
	return nil
}

func (s *snapshot) bringShared(ctx context.Context, v readmodel.Version, plan *projection.Plan, keys []string, parts map[string]*projection.Row, table string) error {
	if _, err := s.tx.Exec(ctx, `insert into pg_temp.`+table+` (projection_name, version, key, data, state) select projection_name, version, key, data, state from `+v.Table()+` where key = any($1)`, keys); err != nil {
		return err
	}
	for chunk := range slices.Chunk(keys, 1000) {
		data, states := make([]string, len(chunk)), make([]*string, len(chunk))
		for i, key := range chunk {
			data[i] = string(parts[key].AppendData(nil))
			if text := parts[key].AppendState(nil); len(text) > 0 {
				one := string(text)
				states[i] = &one
			}
		}
		if _, err := s.tx.Exec(ctx, plan.MergeSQL("pg_temp."+table), v.Projection, v.Number, chunk, data, states); err != nil {
			return fmt.Errorf("bringing shared rows forward: %w", err)
		}
	}
	return nil
}

// countDifferences counts rows by field, for versions of two definitions.
func (s *snapshot) countDifferences(ctx context.Context, mine, other string, plan, before *projection.Plan, c *Check) error {
	was := make(map[string]bool)
	for _, f := range before.Fields() {
		was[f.Name] = true
	}
	names := []string{"(lost)", "(extra)"}
	counts := []string{"count(*) filter (where n.key is null)", "count(*) filter (where o.key is null)"}
	var added []string
	for _, f := range plan.Fields() {
		if !was[f.Name] {
			added = append(added, f.Name)
			continue
		}
		delete(was, f.Name)
		names = append(names, f.Name) // letters, digits and underscores
		counts = append(counts, fmt.Sprintf("count(*) filter (where n.key = o.key and n.data->'%s' is distinct from o.data->'%s')", f.Name, f.Name))
	}
	values := make([]int64, len(counts))
	into := make([]any, len(counts))
	for i := range values {
		into[i] = &values[i]
	}
	if err := s.tx.QueryRow(ctx, `select `+strings.Join(counts, ", ")+` from (`+mine+`) n full join (`+other+`) o on n.key = o.key`).Scan(into...); err != nil {
		return fmt.Errorf("counting differences: %w", err)
	}
	c.Fields = make(map[string]int64)
	for i, n := range values {
		if n == 0 {
			continue
		}
		c.Fields[names[i]] = n
		if i >= 2 {
			if err := s.sampleField(ctx, mine, other, names[i], c); err != nil {
				return err
			}
		}
	}
	c.Detail += fmt.Sprintf("; another definition: %d fields are new %v, %d are gone %v, %d of the rest differ", len(added), added, len(was), slices.Sorted(maps.Keys(was)), len(c.Fields))
	return nil
}

func (s *snapshot) sampleField(ctx context.Context, mine, other, field string, c *Check) error {
	rows, err := s.tx.Query(ctx, fmt.Sprintf(`select n.key, coalesce((n.data->'%[1]s')::text, ''), coalesce((o.data->'%[1]s')::text, '') from (%[2]s) n join (%[3]s) o on n.key = o.key
		where n.data->'%[1]s' is distinct from o.data->'%[1]s' order by 1 limit 3`, field, mine, other))
	if err != nil {
		return fmt.Errorf("sampling differences: %w", err)
	}
	one := Sample{What: field}
	_, err = pgx.ForEachRow(rows, []any{&one.Key, &one.Got, &one.Want}, func() error {
		c.Samples = append(c.Samples, one)
		return nil
	})
	return err
}

// sampleBound is how many events a sample of shared rows folds at most.
const sampleBound = 100_000

// sampleShared compares every shared row while the log is short enough, else it
// says what stands in for it.
func (s *snapshot) sampleShared(ctx context.Context) (Check, error) {
	var events int64
	for _, slots := range s.heads {
		for _, n := range slots {
			events += n
		}
	}
	if events <= sampleBound || s.rebuild.Kind == Fields { // whose parts were not compared
		c, err := s.full(ctx)
		c.Name = "sample"
		return c, err
	}
	return Check{Name: "sample", OK: true, Detail: fmt.Sprintf("shared rows of %d events: the parts of one partition were compared with a fold of the event table before they were merged; --verify=full folds all", events)}, nil
}

// deterministic folds the pinned records again, one partition after another when
// the load took several at a time and the other way round, and compares digests.
func (s *snapshot) deterministic(ctx context.Context) (Check, error) {
	c := Check{Name: "deterministic", OK: true}
	if s.id == 0 || len(s.job.parts) == 0 {
		return Check{}, nil // nothing was loaded by this job
	}
	again := s.beside(s.version)
	for _, p := range s.job.parts {
		one := *p
		one.meter = &partMeter{total: 1}
		l, err := again.newLoader(ctx, nil, &one, "")
		if err != nil {
			return c, err
		}
		l.limit = 1 << 62 // in one pass, whatever the load took
		if err := l.passes(ctx); err != nil {
			return c, fmt.Errorf("folding %s/%d again: %w", p.category.Name, p.partition, err)
		}
		if int64(l.digest) != p.digest || l.written != p.rows {
			c.OK = false
			c.Detail = fmt.Sprintf("%s/%d gave %d rows with digest %016x, and now %d with %016x", p.category.Name, p.partition, p.rows, uint64(p.digest), l.written, l.digest)
			return c, nil
		}
	}
	c.Detail = fmt.Sprintf("%d partitions folded one after another have the digests of the load, which took %d at a time", len(s.job.parts), s.rebuild.Options.Parallel)
	return c, nil
}
