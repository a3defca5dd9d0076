// Package readmodel keeps the rows of projections: the catalogue of their
// versions, the tables that the rows lie in, and queries.
//
// Every version of a projection has a leaf table of its own below
// refold.projections, with the indexes that its definition declares. A query
// reads the leaf of the active version, by name.
package readmodel

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/projection"
)

// Version is one build of a projection.
type Version struct {
	Projection string
	Number     int
	State      string // building, ready, active or retired
	Definition string
	PlanHash   string
	Leaf       string // a table in the schema refold
	// Completing says that the version is fed by a definition with fields that not
	// all of its rows have yet, see [BeginCompletion].
	Completing bool
}

// Table returns the quoted name of the version's leaf.
func (v Version) Table() string { return "refold." + v.Leaf }

// Source is a topic that feeds a projection.
type Source struct {
	Category          string
	Generation        int
	Slots, Partitions int
}

// Catalogue knows the versions of all projections. It is safe for concurrent use.
type Catalogue struct{ pool *pgxpool.Pool }

// NewCatalogue returns the catalogue of a database.
func NewCatalogue(pool *pgxpool.Pool) *Catalogue { return &Catalogue{pool} }

// ErrUnknownProjection says that a projection has no active version.
var ErrUnknownProjection = errors.New("unknown projection")

const versionColumns = `projection, version, state, definition, plan, leaf, next_plan is not null`

// Fed returns all versions that are to be fed, active or ready, with the
// definitions by which they are to be.
func (c *Catalogue) Fed(ctx context.Context) ([]Version, error) {
	return c.versions(ctx, `select projection, version, state, coalesce(next_definition, definition), coalesce(next_plan, plan), leaf, next_plan is not null from refold.projection_version where state in ('active', 'ready') order by 1, 2`)
}

// All returns all versions, with the definitions that queries go by.
func (c *Catalogue) All(ctx context.Context) ([]Version, error) {
	return c.versions(ctx, `select `+versionColumns+` from refold.projection_version order by 1, 2`)
}

// Active returns the version of a projection that queries are served from.
func (c *Catalogue) Active(ctx context.Context, name string) (Version, error) {
	list, err := c.versions(ctx, `select `+versionColumns+` from refold.projection_version where projection = $1 and state = 'active'`, name)
	if err != nil {
		return Version{}, err
	}
	if len(list) == 0 {
		return Version{}, ErrUnknownProjection
	}
	return list[0], nil
}

func (c *Catalogue) versions(ctx context.Context, sql string, args ...any) ([]Version, error) {
	rows, err := c.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("reading the catalogue: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Version])
	if err != nil {
		return nil, fmt.Errorf("reading the catalogue: %w", err)
	}
	return list, nil
}

// CreateFirst makes version 1 of a projection that has none: its tables, its
// indexes and its progress from offset 0, active at once, in one transaction.
// Where there is a version already it does nothing. Several callers may race.
func (c *Catalogue) CreateFirst(ctx context.Context, plan *projection.Plan, sources []Source) error {
	err := pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(hashtextextended('refold.catalogue', 0))`); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `insert into refold.projection (name, active, last_version) values ($1, 1, 1) on conflict do nothing`, plan.Name())
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		v := Version{Projection: plan.Name(), Number: 1, Leaf: fmt.Sprintf("rows_%s_v1", plan.Name())}
		statements := firstTables(plan, v)
		for _, x := range LeafIndexes(plan, v) {
			statements = append(statements, x.SQL(""))
		}
		for _, sql := range statements {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		if _, err := tx.Exec(ctx, `insert into refold.projection_version (projection, version, state, definition, plan, leaf, promoted)
			values ($1, 1, 'active', $2, $3, $4, clock_timestamp())`, plan.Name(), plan.Source(), plan.Hash(), v.Leaf); err != nil {
			return err
		}
		for _, s := range sources {
			if _, err := tx.Exec(ctx, progressSQL, plan.Name(), 1, s.Category, s.Generation, s.Slots, s.Partitions); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("creating the projection %s: %w", plan.Name(), err)
	}
	return nil
}

const progressSQL = `insert into refold.progress (projection, version, category, generation, partition, slots, seqs, last_ids)
	select $1, $2, $3, $4, p, array_agg(s::smallint order by s), array_agg(0::bigint), array_agg('00000000-0000-0000-0000-000000000000'::uuid)
	from generate_series(0, $6::int - 1) p, generate_series(p, $5::int - 1, $6::int) s group by p`

// firstTables makes the projection's own partition and the leaf of a version.
// Names are those of projections and numbers, which need no quoting. Tables are
// attached, never made as partitions of another: that would wait for every
// transaction on the parent.
func firstTables(plan *projection.Plan, v Version) []string {
	middle := "refold.projection_" + plan.Name()
	return append([]string{
		`create table ` + middle + ` (like refold.projections including defaults) partition by list (version)`,
		`alter table refold.projections attach partition ` + middle + ` for values in ('` + plan.Name() + `')`,
	}, leafStatements(middle, v)...)
}

func leafStatements(middle string, v Version) []string {
	return []string{
		`create table ` + v.Table() + ` (like refold.projections including defaults, primary key (key),
			check (projection_name is not null and projection_name = '` + v.Projection + `' and version is not null and version = ` + fmt.Sprint(v.Number) + `))`,
		`alter table ` + middle + ` attach partition ` + v.Table() + ` for values in (` + fmt.Sprint(v.Number) + `)`,
	}
}

// LeafIndex is one index of a leaf. Its name follows from what it indexes, so
// that it is found again whatever stands beside it.
type LeafIndex struct{ Name, On string }

// SQL returns the statement that makes the index; how is empty or "concurrently".
func (x LeafIndex) SQL(how string) string {
	return "create index " + how + " " + x.Name + " on " + x.On
}

// LeafIndexes returns the indexes that a plan declares, on a version's leaf.
func LeafIndexes(plan *projection.Plan, v Version) []LeafIndex {
	var list []LeafIndex
	for _, x := range plan.Indexes() {
		var columns []string
		for _, name := range x.Fields {
			for _, f := range plan.Fields() {
				if f.Name == name {
					columns = append(columns, "("+Expression(f)+")")
				}
			}
		}
		on := "(" + strings.Join(columns, ", ") + ", key)"
		if x.Contains { // by members: what "contains" asks, see [statement.sql]
			on = "using gin ((data->'" + x.Fields[0] + "') jsonb_path_ops)"
		}
		h := fnv.New32a()
		h.Write([]byte(on))
		list = append(list, LeafIndex{Name: fmt.Sprintf("%s_x%08x", v.Leaf, h.Sum32()), On: v.Table() + " " + on})
	}
	slices.SortFunc(list, func(a, b LeafIndex) int { return strings.Compare(a.Name, b.Name) })
	return slices.Compact(list)
}

// Expression returns the SQL of a field's value as it is indexed and compared.
func Expression(f projection.Field) string {
	text := "data->>'" + f.Name + "'" // names are letters, digits and underscores
	switch f.Kind {
	case avro.Long, avro.Double, avro.Decimal:
		return "(" + text + ")::numeric"
	case avro.Bool:
		return "(" + text + ")::boolean"
	case avro.Timestamp:
		return "refold.time(" + text + ")"
	default:
		return "(" + text + `) collate "C"`
	}
}
