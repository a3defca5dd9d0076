package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
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
	target := s.heads.greatest(theirs)
	mine, moved, err := s.bringVersion(ctx, s.version, s.plan, s.heads, target, "refold_new")
	if err != nil {
		return c, err
	}
	other, moved2, err := s.bringVersion(ctx, active, plan, theirs, target, "refold_old")
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

// rowsAt are the rows of a plan in a table, and up to where the log is in them.
type rowsAt struct {
	table string // as SQL has it
	plan  *projection.Plan
	at    positions
	// parked is the first seq of each parked stream, by category and stream: from
	// there on nothing is in the rows.
	parked map[string]map[string]int64
}

// bringVersion is bring for the rows of a version.
func (s *snapshot) bringVersion(ctx context.Context, v readmodel.Version, plan *projection.Plan, at, to positions, table string) (query string, events int, err error) {
	if err := plan.Foldable(); err != nil {
		return "", 0, err
	}
	rows := &rowsAt{table: v.Table(), plan: plan, at: at, parked: make(map[string]map[string]int64)}
	for _, c := range s.categories {
		if rows.parked[c.Name], err = s.parkedFrom(ctx, s.tx, v, c.Name); err != nil {
			return "", 0, err
		}
	}
	return s.bring(ctx, rows, to, table)
}

// bring returns a query of rows as they are at the position to: those that events
// in between concern are folded on in a temporary table, and their keys are in
// another one, which both end with the transaction.
func (s *snapshot) bring(ctx context.Context, rows *rowsAt, to positions, table string) (query string, events int, err error) {
	query = `select key, data, state from ` + rows.table
	parts := make(map[string]*projection.Row)
	streams := make(map[string][]string) // by category
	f := s.newFold(rows)
	for _, c := range s.categories {
		touched := make(map[string]bool)
		for slot, head := range to[c.Name] {
			n, err := s.eachEvent(ctx, c, slot, rows.at[c.Name][slot], head, func(e *event.Event) error {
				touched[e.Stream] = true
				if !rows.plan.Shared() {
					return nil
				}
				return f.event(ctx, e, parts)
			})
			if err != nil {
				return "", 0, err
			}
			events += n
		}
		streams[c.Name] = slices.Sorted(maps.Keys(touched))
	}
	if events == 0 {
		return query, 0, nil
	}
	if err := makeRowTable(ctx, s.tx, "pg_temp."+table, "on commit drop"); err != nil {
		return "", 0, err
	}
	keys := slices.Sorted(maps.Keys(parts))
	if rows.plan.Shared() {
		err = s.bringShared(ctx, rows, keys, parts, table)
	} else {
		c := s.categories[0]
		keys = streams[c.Name]
		for chunk := range slices.Chunk(keys, 200) {
			if err = s.foldStreams(ctx, rows, c, chunk, to, table); err != nil {
				break
			}
		}
	}
	if err != nil {
		return "", 0, err
	}
	if _, err := s.tx.Exec(ctx, `create temp table `+table+`_keys on commit drop as select unnest($1::text[]) collate "C" as key`, keys); err != nil {
		return "", 0, err
	}
	return query + ` where key not in (select key from pg_temp.` + table + `_keys) union all select key, data, state from pg_temp.` + table, events, nil
}

// eachEvent calls do with the events of a slot behind one seq up to another, and
// returns how many they were.
func (s *snapshot) eachEvent(ctx context.Context, c eventstore.Category, slot int, after, head int64, do func(*event.Event) error) (events int, err error) {
	for after < head {
		list, err := s.events.SlotEvents(ctx, c, slot, after, 1000)
		if err != nil {
			return events, err
		}
		if len(list) == 0 {
			return events, fmt.Errorf("the log lacks %s/%d/%d", c.Name, slot, after+1)
		}
		for i := range list {
			if after = list[i].Seq; after > head {
				break
			}
			events++
			if err := do(&list[i]); err != nil {
				return events, err
			}
		}
	}
	return events, nil
}

func (s *snapshot) bringShared(ctx context.Context, rows *rowsAt, keys []string, parts map[string]*projection.Row, table string) error {
	if _, err := s.tx.Exec(ctx, `insert into pg_temp.`+table+` (key, data, state) select key, data, state from `+rows.table+` where key = any($1)`, keys); err != nil {
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
		if _, err := s.tx.Exec(ctx, rows.plan.MergeSQL("pg_temp."+table), s.version.Projection, s.version.Number, chunk, data, states); err != nil {
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

// sampleShared compares every shared row where the log was folded, else it says
// what stands in for that.
func (s *snapshot) sampleShared(ctx context.Context) (Check, error) {
	if s.folded != nil {
		c, err := s.full(ctx)
		c.Name = "sample"
		return c, err
	}
	return Check{Name: "sample", OK: true, Detail: fmt.Sprintf("shared rows of %d events: the parts of one partition were compared with a fold of the event table before they were merged; --verify=full folds all", s.heads.events())}, nil
}

// deterministic folds the pinned records again, one partition after another when
// the load took several at a time and the other way round, and compares digests.
func (j *job) deterministic(ctx context.Context) (Check, error) {
	c := Check{Name: "deterministic", OK: true}
	if j.id == 0 || len(j.parts) == 0 {
		return Check{}, nil // nothing was loaded by this job
	}
	again := j.beside(j.version)
	defer j.meter.follow(&again.meter)()
	parts := make([]*part, len(j.parts))
	for i, p := range j.parts {
		one := *p
		one.loaded, parts[i] = false, &one
	}
	again.setParts(parts)
	for i, p := range j.parts {
		l, err := again.newLoader(ctx, nil, parts[i], "")
		if err != nil {
			return c, err
		}
		l.limit *= int64(j.rebuild.Options.Parallel) // in fewer passes than the load took
		if err := l.passes(ctx); err != nil {
			return c, fmt.Errorf("folding %s/%d again: %w", p.category.Name, p.partition, err)
		}
		if int64(l.digest) != p.digest || l.written != p.rows {
			c.OK = false
			c.Detail = fmt.Sprintf("%s/%d gave %d rows with digest %016x, and now %d with %016x", p.category.Name, p.partition, p.rows, uint64(p.digest), l.written, l.digest)
			return c, nil
		}
	}
	c.Detail = fmt.Sprintf("%d partitions folded one after another have the digests of the load, which took %d at a time", len(j.parts), j.rebuild.Options.Parallel)
	return c, nil
}
