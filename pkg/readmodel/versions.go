package readmodel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/projection"
)

// Announce tells those who follow the catalogue that it has changed, when tx
// commits.
func Announce(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, `select pg_notify('refold_catalogue', ''), pg_notify('refold_progress', 'catalogue')`); err != nil {
		return fmt.Errorf("announcing a change of the catalogue: %w", err)
	}
	return nil
}

// lockProjection locks the catalogue row of a projection, making it if it is
// missing. Everything that changes the versions of a projection does so first.
func lockProjection(ctx context.Context, tx pgx.Tx, name string) error {
	if _, err := tx.Exec(ctx, `insert into refold.projection (name) values ($1) on conflict do nothing`, name); err != nil {
		return fmt.Errorf("making the projection %s: %w", name, err)
	}
	if _, err := tx.Exec(ctx, `select from refold.projection where name = $1 for update`, name); err != nil {
		return fmt.Errorf("locking the projection %s: %w", name, err)
	}
	return nil
}

// CreateBuilding makes the next version of a projection, in state building: its
// number, which is never used again, its progress in phase loading, and its
// table, which stands alone and has no index until it is filled.
func CreateBuilding(ctx context.Context, tx pgx.Tx, plan *projection.Plan, sources []Source) (Version, error) {
	v := Version{Projection: plan.Name(), State: "building", Definition: plan.Source(), PlanHash: plan.Hash()}
	if err := lockProjection(ctx, tx, v.Projection); err != nil {
		return v, err
	}
	if err := tx.QueryRow(ctx, `update refold.projection set last_version = last_version + 1 where name = $1 returning last_version`, v.Projection).Scan(&v.Number); err != nil {
		return v, fmt.Errorf("numbering a version of %s: %w", v.Projection, err)
	}
	v.Leaf = fmt.Sprintf("rows_%s_v%d", v.Projection, v.Number)
	if _, err := tx.Exec(ctx, `insert into refold.projection_version (projection, version, state, definition, plan, leaf) values ($1, $2, $3, $4, $5, $6)`,
		v.Projection, v.Number, v.State, v.Definition, v.PlanHash, v.Leaf); err != nil {
		return v, fmt.Errorf("creating version %d of %s: %w", v.Number, v.Projection, err)
	}
	for _, s := range sources {
		if _, err := tx.Exec(ctx, progressSQL, v.Projection, v.Number, s.Category, s.Generation, s.Slots, s.Partitions); err != nil {
			return v, fmt.Errorf("creating the progress of %s version %d: %w", v.Projection, v.Number, err)
		}
	}
	for _, sql := range []string{
		`update refold.progress set phase = 'loading' where projection = '` + v.Projection + `' and version = ` + fmt.Sprint(v.Number),
		`create table ` + v.Table() + ` (like refold.projections including defaults)`,
		fmt.Sprintf(`alter table %s alter projection_name set default '%s', alter version set default %d`, v.Table(), v.Projection, v.Number),
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return v, fmt.Errorf("creating the table of %s version %d: %w", v.Projection, v.Number, err)
		}
	}
	return v, Announce(ctx, tx)
}

// Statement is one step of making a filled table a leaf. Its SQL is run unless
// Done, a query for a boolean, says that it was.
type Statement struct {
	Name, Done, SQL string
	// Alone says that the SQL does not run inside a transaction.
	Alone bool
}

// FinishStatements returns what makes the filled, standalone table of a version
// a leaf of refold.projections, in order; each can be repeated. The CHECK spares
// ATTACH the scan during which readers would wait.
func FinishStatements(plan *projection.Plan, v Version) []Statement {
	exists := func(relation string) string { return `select to_regclass('refold.` + relation + `') is not null` }
	list := []Statement{{Name: "unique index", Done: exists(v.Leaf + "_pkey"), SQL: `create unique index ` + v.Leaf + `_pkey on ` + v.Table() + ` (key)`}}
	for i, x := range LeafIndexes(plan, v) {
		list = append(list, Statement{Name: fmt.Sprintf("index %d", i), Done: exists(x.Name), SQL: x.SQL("")})
	}
	constraint := func(kind string) string {
		return `select exists (select from pg_constraint where conrelid = 'refold.` + v.Leaf + `'::regclass and contype = '` + kind + `')`
	}
	middle := "refold.projection_" + v.Projection
	inherits := func(leaf, parent string) string {
		return `select exists (select from pg_inherits where inhrelid = to_regclass('` + leaf + `') and inhparent = to_regclass('` + parent + `'))`
	}
	return append(list,
		Statement{Name: "primary key", Done: constraint("p"), SQL: `alter table ` + v.Table() + ` add primary key using index ` + v.Leaf + `_pkey`},
		Statement{Name: "check", Done: constraint("c"), SQL: `alter table ` + v.Table() + ` add check (` + leafCheck(v) + `)`},
		Statement{Name: "vacuum", Done: `select false`, SQL: `vacuum (analyze) ` + v.Table(), Alone: true},
		Statement{Name: "middle", Done: exists("projection_" + v.Projection), SQL: `create table ` + middle + ` (like refold.projections including defaults) partition by list (version)`},
		Statement{Name: "attach middle", Done: inherits(middle, "refold.projections"), SQL: `alter table refold.projections attach partition ` + middle + ` for values in ('` + v.Projection + `')`},
		Statement{Name: "attach", Done: inherits(v.Table(), middle), SQL: fmt.Sprintf(`alter table %s attach partition %s for values in (%d)`, middle, v.Table(), v.Number)})
}

func leafCheck(v Version) string {
	return fmt.Sprintf(`projection_name is not null and projection_name = '%s' and version is not null and version = %d`, v.Projection, v.Number)
}

// ErrBehind is wrapped when a version has not applied all that the serving one
// has, so that readers would go back in time.
var ErrBehind = errors.New("the version is behind the one that serves")

// ErrNotServable says that a version is not in a state to serve.
var ErrNotServable = errors.New("the version is not ready to serve")

// Flip is a change of the version that queries are served from.
type Flip struct {
	Projection string
	To         int
	// Wait is how long the feeding of the serving version is held up at most for
	// the other to catch up.
	Wait time.Duration
	// Keep is how long the version that served until now is fed on.
	Keep time.Duration
	// Fence is called late in the transaction; nil for none.
	Fence func(context.Context, pgx.Tx) error
}

// Do makes the version To serve, in tx, once it has applied everything that the
// serving version has; it returns the number of the latter, 0 for none.
//
// It locks the catalogue row and then the progress of the serving version, in
// order, and compares in later statements, so what it compares cannot grow until
// tx ends: no reader sees the rows go back. Engines never lock the catalogue
// while they hold progress, so nothing deadlocks. After Wait it gives up with
// [ErrBehind], naming the first slot, and nothing has changed.
func (f Flip) Do(ctx context.Context, tx pgx.Tx) (from int, err error) {
	if err := lockProjection(ctx, tx, f.Projection); err != nil {
		return 0, err
	}
	var state string
	err = tx.QueryRow(ctx, `select state, coalesce((select active from refold.projection where name = $1), 0)
		from refold.projection_version where projection = $1 and version = $2`, f.Projection, f.To).Scan(&state, &from)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, fmt.Errorf("%w: %s has no version %d", ErrNotServable, f.Projection, f.To)
	case err != nil:
		return 0, fmt.Errorf("reading the versions of %s: %w", f.Projection, err)
	case from == f.To:
		return from, nil // it serves already
	case state != "ready":
		return from, fmt.Errorf("%w: version %d of %s is %s", ErrNotServable, f.To, f.Projection, state)
	}
	if from != 0 {
		if err := f.awaitDominance(ctx, tx, from); err != nil {
			return from, err
		}
	}
	return from, f.flip(ctx, tx, from)
}

const (
	lockProgressSQL = `select from refold.progress where projection = $1 and version = $2 order by category, generation, partition for update`
	behindSQL       = `with progress as (select version, category, slot, max(seq) seq from refold.progress, unnest(slots, seqs) u (slot, seq)
			where projection = $1 and version in ($2, $3) group by version, category, slot)
		select a.category, a.slot, a.seq, b.seq from progress a left join progress b on b.version = $3 and b.category = a.category and b.slot = a.slot
		where a.version = $2 and a.seq > coalesce(b.seq, 0) order by 1, 2 limit 1`
)

func (f Flip) awaitDominance(ctx context.Context, tx pgx.Tx, from int) error {
	if _, err := tx.Exec(ctx, lockProgressSQL, f.Projection, from); err != nil {
		return fmt.Errorf("locking the progress of %s version %d: %w", f.Projection, from, err)
	}
	deadline := time.Now().Add(f.Wait)
	for {
		var category string
		var slot int16
		var seq int64
		var reached *int64
		err := tx.QueryRow(ctx, behindSQL, f.Projection, from, f.To).Scan(&category, &slot, &seq, &reached)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("comparing the progress of %s: %w", f.Projection, err)
		}
		if time.Now().After(deadline) {
			if reached == nil {
				return fmt.Errorf("%w: version %d of %s does not read the slot %s/%d", ErrBehind, f.To, f.Projection, category, slot)
			}
			return fmt.Errorf("%w: version %d of %s has applied %s/%d/%d, version %d is at seq %d", ErrBehind, f.To, f.Projection, category, slot, *reached, from, seq)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(2 * time.Millisecond): // its engine commits in its own time
		}
	}
}

func (f Flip) flip(ctx context.Context, tx pgx.Tx, from int) error {
	for _, s := range []struct {
		sql  string
		args []any
	}{
		{`update refold.projection_version set state = 'ready', keep_until = clock_timestamp() + $3::interval where projection = $1 and version = $2`, []any{f.Projection, from, f.Keep}},
		{`update refold.projection_version set state = 'active', promoted = clock_timestamp(), keep_until = null where projection = $1 and version = $2`, []any{f.Projection, f.To}},
		{`update refold.projection set active = $2 where name = $1`, []any{f.Projection, f.To}},
	} {
		if _, err := tx.Exec(ctx, s.sql, s.args...); err != nil {
			return fmt.Errorf("making version %d of %s serve: %w", f.To, f.Projection, err)
		}
	}
	if err := Announce(ctx, tx); err != nil {
		return err
	}
	if f.Fence != nil {
		return f.Fence(ctx, tx)
	}
	return nil
}

// ErrServing says that a version serves, so that it cannot be retired.
var ErrServing = errors.New("the version serves queries")

// MarkRetired takes a version out of use, in tx. Its table stays until it is
// dropped.
func MarkRetired(ctx context.Context, tx pgx.Tx, v Version) error {
	if err := lockProjection(ctx, tx, v.Projection); err != nil {
		return err
	}
	var active bool
	if err := tx.QueryRow(ctx, `select coalesce(active = $2, false) from refold.projection where name = $1`, v.Projection, v.Number).Scan(&active); err != nil {
		return fmt.Errorf("reading the projection %s: %w", v.Projection, err)
	}
	if active {
		return fmt.Errorf("retiring version %d of %s: %w", v.Number, v.Projection, ErrServing)
	}
	if _, err := tx.Exec(ctx, `update refold.projection_version set state = 'retired', retired = coalesce(retired, clock_timestamp()) where projection = $1 and version = $2`,
		v.Projection, v.Number); err != nil {
		return fmt.Errorf("retiring version %d of %s: %w", v.Number, v.Projection, err)
	}
	return Announce(ctx, tx)
}

// DropRetired drops the table of a retired version and what belongs to it, on a
// session of its own, which should have a lock_timeout. It first waits until
// transactions that began before the version was retired have ended: one of
// them may have resolved it. A reader that is later than that gets an error, and
// never an empty answer, because it names the leaf and names are not used twice.
//
// Each step can be cut off and repeated: a DETACH that was cut off is finalized.
func DropRetired(ctx context.Context, conn *pgx.Conn, v Version) error {
	if err := awaitReaders(ctx, conn, v); err != nil {
		return err
	}
	if err := detach(ctx, conn, v); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, sql := range []string{`drop table if exists ` + v.Table(), `drop table if exists refold.parts_` + fmt.Sprintf("%s_v%d", v.Projection, v.Number)} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return fmt.Errorf("dropping the table of %s version %d: %w", v.Projection, v.Number, err)
			}
		}
		for _, sql := range []string{
			`delete from refold.progress where projection = $1 and version = $2`,
			`delete from refold.parked_event where projection = $1 and version = $2`,
			`delete from refold.parked_stream where projection = $1 and version = $2`,
			`update refold.projection_version set dropped = clock_timestamp() where projection = $1 and version = $2 and state = 'retired'`,
		} {
			if _, err := tx.Exec(ctx, sql, v.Projection, v.Number); err != nil {
				return fmt.Errorf("forgetting %s version %d: %w", v.Projection, v.Number, err)
			}
		}
		return Announce(ctx, tx)
	})
}

const oldReadersSQL = `select count(*) from pg_stat_activity a, refold.projection_version v where v.projection = $1 and v.version = $2
	and a.datname = current_database() and a.pid <> pg_backend_pid() and a.backend_type = 'client backend' and a.application_name like 'refold-%' and a.xact_start < v.retired`

func awaitReaders(ctx context.Context, conn *pgx.Conn, v Version) error {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		var n int
		if err := conn.QueryRow(ctx, oldReadersSQL, v.Projection, v.Number).Scan(&n); err != nil {
			return fmt.Errorf("looking for readers of %s version %d: %w", v.Projection, v.Number, err)
		}
		if n == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil // DETACH waits for those that hold the leaf, the rest gets an error and resolves again
}

func detach(ctx context.Context, conn *pgx.Conn, v Version) error {
	for {
		var pending bool
		err := conn.QueryRow(ctx, `select inhdetachpending from pg_inherits where inhrelid = to_regclass($1)`, v.Table()).Scan(&pending)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("looking for the table of %s version %d: %w", v.Projection, v.Number, err)
		}
		sql := `alter table refold.projection_` + v.Projection + ` detach partition ` + v.Table() + ` concurrently`
		if pending {
			sql = `alter table refold.projection_` + v.Projection + ` detach partition ` + v.Table() + ` finalize`
		}
		_, err = conn.Exec(ctx, sql)
		switch class := postgres.Classify(err); {
		case err == nil:
		case class == postgres.ClassLockTimeout, class == postgres.ClassConflict:
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(100 * time.Millisecond): // whoever holds the table says nothing when done
			}
		default:
			return fmt.Errorf("detaching the table of %s version %d: %w", v.Projection, v.Number, err)
		}
	}
}

// ChangeIndexes brings the indexes of a version's leaf to those of another plan,
// which makes the rows that lie there, without holding up readers or writers, and
// makes that plan the version's, for queries too. conn is a session of its own. Each step can be cut off
// and repeated; fence is called late in the transaction that changes the catalogue.
func ChangeIndexes(ctx context.Context, conn *pgx.Conn, v Version, plan *projection.Plan, fence func(context.Context, pgx.Tx) error) error {
	wanted := make(map[string]bool)
	for _, x := range LeafIndexes(plan, v) {
		wanted[x.Name] = true
		if err := makeIndex(ctx, conn, x); err != nil {
			return fmt.Errorf("making an index of %s version %d: %w", v.Projection, v.Number, err)
		}
	}
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := lockProjection(ctx, tx, v.Projection); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `update refold.projection_version set definition = $3, plan = $4, next_definition = null, next_plan = null,
			former_plans = case when plan = $4 then former_plans else array_append(former_plans, plan) end where projection = $1 and version = $2`, v.Projection, v.Number, plan.Source(), plan.Hash()); err != nil {
			return err
		}
		if err := Announce(ctx, tx); err != nil {
			return err
		}
		if err := AnnounceRows(ctx, tx, v); err != nil {
			return err
		}
		return fence(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("changing the plan of %s version %d: %w", v.Projection, v.Number, err)
	}
	rows, err := conn.Query(ctx, `select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = to_regclass($1) and not i.indisprimary`, v.Table())
	if err != nil {
		return fmt.Errorf("listing the indexes of %s version %d: %w", v.Projection, v.Number, err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("listing the indexes of %s version %d: %w", v.Projection, v.Number, err)
	}
	for _, name := range names {
		if !wanted[name] && strings.HasPrefix(name, v.Leaf+"_x") { // others are somebody's own
			if _, err := conn.Exec(ctx, `drop index concurrently if exists refold.`+name); err != nil {
				return fmt.Errorf("dropping an index of %s version %d: %w", v.Projection, v.Number, err)
			}
		}
	}
	return nil
}

// makeIndex makes an index unless it is there. One that was cut off is invalid,
// and made anew.
func makeIndex(ctx context.Context, conn *pgx.Conn, x LeafIndex) error {
	var valid bool
	err := conn.QueryRow(ctx, `select indisvalid from pg_index where indexrelid = to_regclass('refold.' || $1)`, x.Name).Scan(&valid)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return err
	case valid:
		return nil
	default:
		if _, err := conn.Exec(ctx, `drop index concurrently if exists refold.`+x.Name); err != nil {
			return err
		}
	}
	_, err = conn.Exec(ctx, x.SQL("concurrently"))
	return err
}
