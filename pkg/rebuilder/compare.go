package rebuilder

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// rowTable makes a temporary table of rows.
func (s *snapshot) rowTable(ctx context.Context, name string) error {
	_, err := s.tx.Exec(ctx, `drop table if exists pg_temp.`+name+`; create temp table `+name+` (projection_name text, version int, key text collate "C" primary key, data jsonb, state jsonb, updated_at timestamptz default now()) on commit drop`)
	if err != nil {
		return fmt.Errorf("making a table to compare with: %w", err)
	}
	return nil
}

// compareRows compares the rows of the version with those that were folded into a
// temporary table. While fields are being filled, it compares what queries show:
// without the hidden state, which is that of all fields, and without rows that the
// plan does not make, because the new fields alone may make some.
func (s *snapshot) compareRows(ctx context.Context, table, where string, c *Check) error {
	if !s.version.Completing {
		return s.compareTables(ctx, `select key, data, state from `+s.version.Table()+where, `select key, data, state from pg_temp.`+table, c)
	}
	c.Detail += ", as far as queries show them: fields are being filled"
	shown := `select key, (select coalesce(jsonb_object_agg(f.key, f.value), '{}') from jsonb_each(data) f where f.key = any(` + s.fieldNames() + `)) as data, null::jsonb as state
		from (select key, data from ` + s.version.Table() + where + `) r where key in (select key from pg_temp.` + table + `)`
	return s.compareTables(ctx, shown, `select key, data, null::jsonb as state from pg_temp.`+table, c)
}

// fieldNames is an array of the plan's fields in SQL.
func (s *snapshot) fieldNames() string {
	var names []string
	for _, f := range s.plan.Fields() {
		names = append(names, f.Name)
	}
	return literals(names)
}

// compareTables names the rows that differ between two queries of key, data and state.
func (s *snapshot) compareTables(ctx context.Context, got, want string, c *Check) error {
	rows, err := s.tx.Query(ctx, `select coalesce(g.key, w.key), g.data::text || coalesce(g.state::text, ''), w.data::text || coalesce(w.state::text, ''), count(*) over ()
		from (`+got+`) g full join (`+want+`) w on g.key = w.key where g.key is null or w.key is null or g.data <> w.data or g.state is distinct from w.state
		order by 1 limit `+fmt.Sprint(maxSamples))
	if err != nil {
		return fmt.Errorf("comparing rows: %w", err)
	}
	var key string
	var g, w *string
	var total int64
	if _, err := pgx.ForEachRow(rows, []any{&key, &g, &w, &total}, func() error {
		one := Sample{Key: key, What: "differs"}
		switch {
		case g == nil:
			one.What, one.Want = "lost", *w
		case w == nil:
			one.What, one.Got = "extra", *g
		default:
			one.Got, one.Want = *g, *w
		}
		c.Samples = append(c.Samples, one)
		return nil
	}); err != nil {
		return fmt.Errorf("comparing rows: %w", err)
	}
	if total > 0 {
		c.OK = false
		first := c.Samples[0]
		c.Detail += fmt.Sprintf(": %d rows differ, the first is %q (%s)", total, first.Key, first.What)
	}
	return nil
}

// full folds the event table up to the snapshot's progress, by the load's own
// passes within the memory budget, and compares every row and every column.
func (s *snapshot) full(ctx context.Context) (Check, error) {
	c := Check{Name: "full", OK: true}
	table := "refold_folded"
	if err := s.rowTable(ctx, table); err != nil {
		return c, err
	}
	folding := s.beside(s.version)
	into := "pg_temp." + table
	if s.plan.Shared() {
		into = "pg_temp.refold_parts"
		if _, err := s.tx.Exec(ctx, `create temp table refold_parts (category text collate "C", partition integer, key text collate "C", data jsonb, state jsonb) on commit drop`); err != nil {
			return c, err
		}
	}
	var events int64
	for _, p := range s.parts(folding) {
		l, err := folding.newLoader(ctx, s.conn, p, into)
		if err != nil {
			return c, err
		}
		l.opened = true
		if err := l.passes(ctx); err != nil {
			return c, fmt.Errorf("folding %s/%d: %w", p.category.Name, p.partition, err)
		}
		events += l.events()
		if s.plan.Shared() {
			if err := folding.mergeRows(ctx, s.tx, p, "pg_temp."+table, into); err != nil {
				return c, err
			}
		}
	}
	c.Detail = fmt.Sprintf("every row against a fold of %d events of the event table", events)
	return c, s.compareRows(ctx, table, "", &c)
}

// parts returns the partitions of the event table up to the snapshot's progress.
func (s *snapshot) parts(j *job) (list []*part) {
	for _, category := range s.categories {
		for n := range category.Partitions {
			p := &part{category: category, partition: n, source: FromEventStore, heads: make([]int64, category.Slots/category.Partitions)}
			for i := range p.heads {
				p.heads[i] = s.heads[category.Name][p.slot(i)]
			}
			list = append(list, p)
		}
	}
	j.setParts(list)
	return list
}

// sampleSize is how many streams are folded by themselves, as many again by the
// keys of rows.
const sampleSize = 250

// sample folds streams straight from the event table, one by one: some that the
// log has, and some that the rows name. Shared rows have no stream of their own,
// so their sample is the whole.
func (s *snapshot) sample(ctx context.Context) (Check, error) {
	if s.plan.Shared() {
		return s.sampleShared(ctx)
	}
	c := Check{Name: "sample", OK: true}
	streams, err := s.chooseStreams(ctx)
	if err != nil {
		return c, err
	}
	if err := s.rowTable(ctx, "refold_sample"); err != nil {
		return c, err
	}
	category := s.categories[0]
	for chunk := range slices.Chunk(streams, 50) {
		if err := s.foldStreams(ctx, s.plan, category, chunk, nil, s.heads[category.Name], "refold_sample", s.version); err != nil {
			return c, err
		}
	}
	c.Detail = fmt.Sprintf("%d streams folded from the event table", len(streams))
	return c, s.compareRows(ctx, "refold_sample", ` where key = any(`+literals(streams)+`)`, &c)
}

// literals writes stream ids, whose characters need no escapes, as an array.
func literals(list []string) string {
	if len(list) == 0 {
		return `'{}'::text[]`
	}
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = "'" + strings.ReplaceAll(s, "'", "''") + "'"
	}
	return `array[` + strings.Join(quoted, ",") + `]::text[]`
}

func (s *snapshot) chooseStreams(ctx context.Context) ([]string, error) {
	category := s.categories[0]
	var slots []int32
	var seqs []int64
	var filled []int
	for slot, head := range s.heads[category.Name] {
		if head > 0 {
			filled = append(filled, slot)
		}
	}
	if len(filled) == 0 {
		return nil, nil
	}
	for range sampleSize {
		slot := filled[rand.IntN(len(filled))]
		slots, seqs = append(slots, int32(slot)), append(seqs, 1+rand.Int64N(s.heads[category.Name][slot]))
	}
	var share float64 // of the table's pages, so many that they hold a sample
	if err := s.tx.QueryRow(ctx, `select least(100, 100 * 50 / greatest(relpages, 1)::double precision) from pg_class where oid = $1::regclass`, s.version.Table()).Scan(&share); err != nil {
		return nil, fmt.Errorf("choosing streams: %w", err)
	}
	rows, err := s.tx.Query(ctx, `select e.stream from unnest($2::int[], $3::bigint[]) u (slot, seq) join refold.event e on e.category = $1 and e.slot = u.slot and e.seq = u.seq
		union (select key from `+s.version.Table()+` tablesample system ($5) limit $4)`, category.ID, slots, seqs, sampleSize, share)
	if err != nil {
		return nil, fmt.Errorf("choosing streams: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// foldStreams folds streams with versions in the range of seqs (from, to] into
// rows, which begin as from has them when it is given, and writes those that
// exist into a temporary table.
func (s *snapshot) foldStreams(ctx context.Context, plan *projection.Plan, category eventstore.Category, streams []string, from, to map[int]int64, table string, v readmodel.Version) error {
	rows := make(map[string]*projection.Row)
	if from != nil {
		if err := s.loadRows(ctx, plan, v, streams, rows); err != nil {
			return err
		}
	}
	parked, err := s.parkedFrom(ctx, s.tx, v, category.Name)
	if err != nil {
		return err
	}
	ranges := make([]engine.StreamRange, len(streams))
	for i, stream := range streams {
		slot := category.SlotOf(stream)
		ranges[i] = engine.StreamRange{Stream: stream, After: from[slot], UpTo: to[slot]}
		if first, is := parked[stream]; is { // from there on nothing was applied
			ranges[i].UpTo = min(to[slot], first-1)
		}
	}
	fold := engine.StreamFold{Projection: s.name, Plan: plan, Category: category, Schemas: s.deps.Schemas}
	if _, _, err := fold.Into(ctx, s.tx, ranges, rows); err != nil { // what is poison shows in the rows
		return err
	}
	return s.writeRows(ctx, table, v, rows)
}

func (s *snapshot) loadRows(ctx context.Context, plan *projection.Plan, v readmodel.Version, keys []string, into map[string]*projection.Row) error {
	rows, err := s.tx.Query(ctx, `select key, data, state from `+v.Table()+` where key = any($1)`, keys)
	if err != nil {
		return fmt.Errorf("reading rows: %w", err)
	}
	var key string
	var data, state []byte
	_, err = pgx.ForEachRow(rows, []any{&key, &data, &state}, func() error {
		row, err := plan.LoadRow(data, state)
		into[key] = row
		return err
	})
	return err
}

func (s *snapshot) writeRows(ctx context.Context, table string, v readmodel.Version, rows map[string]*projection.Row) error {
	keys, data, states := texts(rows)
	_, err := s.tx.Exec(ctx, `insert into pg_temp.`+table+` (projection_name, version, key, data, state) select $1, $2, k, d, s from unnest($3::text[], $4::jsonb[], $5::jsonb[]) u (k, d, s)`,
		v.Projection, v.Number, keys, data, states)
	if err != nil {
		return fmt.Errorf("writing rows to compare with: %w", err)
	}
	return nil
}

// fold folds single events outside a load.
type fold struct {
	job     *job
	plan    *projection.Plan
	folder  *projection.Folder
	schemas schemaCache
	skip    map[string]engine.Decisions // by category
}

func (s *snapshot) newFold(plan *projection.Plan) *fold {
	return &fold{job: s.job, plan: plan, folder: plan.NewFolder(), schemas: newSchemaCache(s.deps.Schemas), skip: make(map[string]engine.Decisions)}
}

func (f *fold) event(ctx context.Context, e *event.Event, rows map[string]*projection.Row) error {
	skip, known := f.skip[e.Category]
	if !known {
		var err error
		if skip, err = engine.ReadDecisions(ctx, f.job.pool, f.job.name, e.Category, nil); err != nil {
			return err
		}
		f.skip[e.Category] = skip
	}
	if skip.Skips(e) || !f.plan.Uses(e.Category, e.Type) {
		return nil
	}
	schema, _, err := f.schemas.of(e)
	if err != nil || schema == nil {
		return err
	}
	if outcome, err := f.folder.Begin(e, schema); err != nil || outcome == projection.Filtered {
		return nil //nolint:nilerr // parked; the caller has looked
	}
	for key := range f.folder.Keys() {
		row := rows[string(key)]
		if row == nil {
			row = f.plan.NewRow()
		}
		if f.folder.Apply(row) == nil {
			rows[string(key)] = row
		}
	}
	return nil
}
