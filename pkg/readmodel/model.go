package readmodel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/projection"
)

// Model is one version as it is queried. It never changes: when the catalogue's
// entry does, by a flip or by a definition that changes in place, another takes
// its place.
type Model struct {
	Version Version
	Plan    *projection.Plan

	revision string // of the entry in the catalogue: the transaction that wrote it
	row      string // the row as an expression on its table
	id       versionID
	stamps   *stamps
	getter   *getter
	indexes  [][]string // the fields of each index of values in order, the primary key's last
	estimate estimate
}

// models finds the versions that queries are answered from. What it keeps is
// confirmed by every statement that reads rows, in the same snapshot.
type models struct {
	pool     *pgxpool.Pool
	plans    *Plans
	validity *validity

	mu        sync.Mutex
	active    map[string]*Model // by name, while it is not doubted
	served    map[string]*Model // by name, that was active last
	forgotten uint64            // how often active was doubted
	byLeaf    map[string]*Model // the newest of each
}

func newModels(pool *pgxpool.Pool, plans *Plans, validity *validity) *models {
	return &models{pool: pool, plans: plans, validity: validity, active: make(map[string]*Model), served: make(map[string]*Model), byLeaf: make(map[string]*Model)}
}

// current returns the version that was active when last asked for; it asks the
// database about names that it does not know.
func (m *models) current(ctx context.Context, name string) (*Model, error) {
	m.mu.Lock()
	model, forgotten := m.active[name], m.forgotten
	m.mu.Unlock()
	if model != nil {
		return model, nil
	}
	model, err := m.load(ctx, `select `+entryColumns+` from refold.projection_version where projection = $1 and state = 'active'`, name)
	if err != nil {
		return nil, err
	}
	m.adopt(model, forgotten)
	return model, nil
}

// adopt takes note of the version that is active, unless another look at the
// catalogue was asked for since this one began, which may be the older of the two.
//
// What was kept of the version when it served before falls. It may lack what the
// version that served meanwhile has shown, as invalidations come after commits,
// each version's in their own time; its rows lack nothing, see [Flip].
func (m *models) adopt(model *Model, forgotten uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := model.Version.Projection
	if m.served[name] != model {
		m.validity.changed(model.id, nil, true)
	}
	if m.forgotten == forgotten {
		m.active[name], m.served[name] = model, model
	}
}

// numbered returns a version that is not retired, active or not.
func (m *models) numbered(ctx context.Context, name string, number int) (*Model, error) {
	return m.load(ctx, `select `+entryColumns+` from refold.projection_version where projection = $1 and version = $2 and state <> 'retired'`, name, number)
}

// forget makes the next query look the active version up again, unless somebody
// has done so already.
func (m *models) forget(model *Model) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgotten++
	if m.active[model.Version.Projection] == model {
		delete(m.active, model.Version.Projection)
	}
}

func (m *models) load(ctx context.Context, sql string, args ...any) (*Model, error) {
	rows, err := m.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("reading the catalogue: %w", err)
	}
	e, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[catalogueEntry])
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrUnknownProjection
	}
	if err != nil {
		return nil, fmt.Errorf("reading the catalogue: %w", err)
	}
	return m.model(e)
}

// catalogueEntry is a version with the revision of its entry.
type catalogueEntry struct {
	Version
	Revision string
}

const entryColumns = versionColumns + `, xmin::text`

// model returns the one model of an entry.
func (m *models) model(e catalogueEntry) (*Model, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if model := m.byLeaf[e.Leaf]; model != nil && model.revision == e.Revision {
		return model, nil
	}
	plan, err := m.plans.Plan(e.Version)
	if err != nil {
		return nil, err
	}
	id := versionID{e.Projection, e.Number}
	model := &Model{Version: e.Version, Plan: plan, revision: e.Revision, row: rowSQL(e.Version, plan), id: id, stamps: m.validity.of(id), indexes: indexesOf(plan)}
	model.getter = newGetter(m.pool, m.validity, e.Version, model.row)
	m.byLeaf[e.Leaf] = model
	return model, nil
}

// rowSQL returns the row of a version as an expression: what is stored or, while
// the version is being completed, the fields that its definition has. Those that
// are new are in some rows and not yet in others.
func rowSQL(v Version, plan *projection.Plan) string {
	if !v.Completing {
		return "data"
	}
	var names []string
	for _, f := range plan.Fields() {
		names = append(names, "'"+f.Name+"'") // a name of the plan, which needs no escapes
	}
	return "(select coalesce(jsonb_object_agg(f.key, f.value), '{}') from jsonb_each(data) f where f.key in (" + strings.Join(names, ", ") + "))"
}
