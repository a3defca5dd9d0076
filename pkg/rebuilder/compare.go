package rebuilder

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/projection"
)

// makeRowTable makes a temporary table of rows.
func makeRowTable(ctx context.Context, q execer, name, ending string) error {
	_, err := q.Exec(ctx, `drop table if exists `+name+`; create temp table `+name+` (key text collate "C" primary key, data jsonb, state jsonb, projection_name text, version int, updated_at timestamptz default now()) `+ending)
	if err != nil {
		return fmt.Errorf("making a table to compare with: %w", err)
	}
	return nil
}

type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// compareRows compares the rows of the version with those that were folded, which
// a query returns. While fields are being filled, it compares what queries show:
// without the hidden state, which is that of all fields, and without rows that the
// plan does not make, because the new fields alone may make some.
func (s *snapshot) compareRows(ctx context.Context, folded, where string, c *Check) error {
	if !s.version.Completing {
		return s.compareTables(ctx, `select key, data, state from `+s.version.Table()+where, folded, c)
	}
	c.Detail += ", as far as queries show them: fields are being filled"
	shown := `select key, (select coalesce(jsonb_object_agg(f.key, f.value), '{}') from jsonb_each(data) f where f.key = any(` + s.fieldNames() + `)) as data, null::jsonb as state
		from (select key, data from ` + s.version.Table() + where + `) r where key in (select key from (` + folded + `) f)`
	return s.compareTables(ctx, shown, `select key, data, null::jsonb as state from (`+folded+`) f`, c)
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

// full compares every row and every column with the fold of the event table, which
// is brought forward to the snapshot's progress.
func (s *snapshot) full(ctx context.Context) (Check, error) {
	c := Check{Name: "full", OK: true, took: s.folded.took, Detail: fmt.Sprintf("every row against a fold of %d events of the event table", s.heads.events())}
	made, _, err := s.bring(ctx, &s.folded.rowsAt, s.heads, "refold_made")
	if err != nil {
		return c, err
	}
	return c, s.compareRows(ctx, made, "", &c)
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
	if err := makeRowTable(ctx, s.tx, "pg_temp.refold_sample", "on commit drop"); err != nil {
		return c, err
	}
	category := s.categories[0]
	nothing := &rowsAt{plan: s.plan}
	parked, err := s.parkedFrom(ctx, s.tx, s.version, category.Name)
	if err != nil {
		return c, err
	}
	nothing.parked = map[string]map[string]int64{category.Name: parked}
	for chunk := range slices.Chunk(streams, 50) {
		if err := s.foldStreams(ctx, nothing, category, chunk, s.heads, "refold_sample"); err != nil {
			return c, err
		}
	}
	c.Detail = fmt.Sprintf("%d streams folded from the event table", len(streams))
	return c, s.compareRows(ctx, `select key, data, state from pg_temp.refold_sample`, ` where key = any(`+literals(streams)+`)`, &c)
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

// foldStreams folds streams on from where rows have them up to a position, into a
// temporary table. Rows without a table have none of them.
func (s *snapshot) foldStreams(ctx context.Context, from *rowsAt, category eventstore.Category, streams []string, to positions, table string) error {
	rows := make(map[string]*projection.Row)
	if from.table != "" {
		if err := s.loadRows(ctx, from, streams, rows); err != nil {
			return err
		}
	}
	parked := from.parked[category.Name]
	ranges := make([]engine.StreamRange, len(streams))
	for i, stream := range streams {
		slot := category.SlotOf(stream)
		ranges[i] = engine.StreamRange{Stream: stream, After: from.at[category.Name][slot], UpTo: to[category.Name][slot]}
		if first, is := parked[stream]; is { // from there on nothing was applied
			ranges[i].UpTo = min(ranges[i].UpTo, first-1)
		}
	}
	fold := engine.StreamFold{Projection: s.name, Plan: from.plan, Category: category, Schemas: s.deps.Schemas}
	_, poisoned, err := fold.Into(ctx, s.tx, ranges, rows)
	if err != nil {
		return err
	}
	for stream := range poisoned { // nothing of it is folded any more
		parked[stream] = from.at[category.Name][category.SlotOf(stream)] + 1
	}
	return s.writeRows(ctx, table, rows)
}

func (s *snapshot) loadRows(ctx context.Context, from *rowsAt, keys []string, into map[string]*projection.Row) error {
	rows, err := s.tx.Query(ctx, `select key, data, state from `+from.table+` where key = any($1)`, keys)
	if err != nil {
		return fmt.Errorf("reading rows: %w", err)
	}
	var key string
	var data, state []byte
	_, err = pgx.ForEachRow(rows, []any{&key, &data, &state}, func() error {
		row, err := from.plan.LoadRow(data, state)
		into[key] = row
		return err
	})
	return err
}

func (s *snapshot) writeRows(ctx context.Context, table string, rows map[string]*projection.Row) error {
	keys, data, states := texts(rows)
	_, err := s.tx.Exec(ctx, `insert into pg_temp.`+table+` (key, data, state) select * from unnest($1::text[], $2::jsonb[], $3::jsonb[])`, keys, data, states)
	if err != nil {
		return fmt.Errorf("writing rows to compare with: %w", err)
	}
	return nil
}

// fold folds single events outside a load, into parts of shared rows.
type fold struct {
	*rowsAt
	job     *job
	folder  *projection.Folder
	schemas *schemaCache
	skip    map[string]engine.Decisions // by category
}

func (s *snapshot) newFold(rows *rowsAt) *fold {
	return &fold{rowsAt: rows, job: s.job, folder: rows.plan.NewFolder(), schemas: newSchemaCache(s.deps.Schemas), skip: make(map[string]engine.Decisions)}
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
	parked := f.parked[e.Category]
	if from, is := parked[e.Stream]; is && e.Seq >= from || skip.Skips(e) || !f.plan.Uses(e.Category, e.Type) {
		return nil
	}
	writer, err := f.schemas.of(e)
	if err != nil {
		return err
	}
	switch outcome, err := f.folder.Begin(e, writer); {
	case err != nil:
		parked[e.Stream] = e.Seq
		return nil //nolint:nilerr // nothing of the stream is folded any more
	case outcome == projection.Filtered:
		return nil
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
