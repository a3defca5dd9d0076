package rebuilder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Step is a step of a rebuild.
type Step string

// Steps, in order.
const (
	StepPreflight Step = "preflight"
	StepLoad      Step = "load"
	StepIndex     Step = "index"
	StepCheck     Step = "check"
	StepCatchUp   Step = "catch up"
	StepRehearse  Step = "rehearse" // of new fields only: folded and not written
	StepFill      Step = "fill"     // of new fields only: into the rows that are there
	StepVerify    Step = "verify"
	StepPromote   Step = "promote"
	StepDone      Step = "done"
)

// Kind is what a rebuild makes.
type Kind string

// Kinds of rebuilds.
const (
	Fresh   Kind = "version" // a version, beside the one that serves
	Fields  Kind = "fields"  // new fields in the rows of the version that serves
	Indexes Kind = "indexes" // other indexes of the version that serves
)

// State is the state of a rebuild.
type State string

// States of a rebuild.
const (
	Requested State = "requested" // nobody has taken it up
	Running   State = "running"
	Paused    State = "paused"
	Waiting   State = "waiting" // the version is ready and waits to be promoted
	Failed    State = "failed"  // the next run goes on where it stopped
	Done      State = "done"
	Cancelled State = "cancelled"
)

// Rebuild is a rebuild as the catalogue has it.
type Rebuild struct {
	ID         int64     `json:"id,string"`
	Projection string    `json:"projection"`
	Version    int       `json:"version,omitempty"`
	Kind       Kind      `json:"kind"`
	State      State     `json:"state"`
	Step       Step      `json:"step"`
	Options    Options   `json:"options"`
	Progress   Progress  `json:"progress"`
	Report     *Report   `json:"report,omitempty"`
	Error      string    `json:"error,omitempty"`
	Owner      string    `json:"owner,omitempty"`
	Requested  time.Time `json:"requested"`
	Updated    time.Time `json:"updated"`

	definition, plan string
	wish             string
}

// open tells whether the rebuild is not at its end.
func (r *Rebuild) open() bool { return r.State != Done && r.State != Cancelled }

const rebuildColumns = `id, projection, coalesce(version, 0), kind, state, step, options, progress, report, coalesce(error, ''), coalesce(owner, ''), requested, updated,
	coalesce(definition, ''), coalesce(plan, ''), coalesce(wish, ''),
	owner is not null and not exists (select from pg_stat_activity a where a.pid = owner_pid and (a.backend_start = owner_start or a.backend_start is null))`

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// ErrNoRebuild says that there is no such rebuild.
var ErrNoRebuild = errors.New("no such rebuild")

func scanRebuild(row pgx.CollectableRow) (Rebuild, error) {
	var r Rebuild
	var options, progress, report []byte
	var gone bool
	err := row.Scan(&r.ID, &r.Projection, &r.Version, &r.Kind, &r.State, &r.Step, &options, &progress, &report, &r.Error, &r.Owner, &r.Requested, &r.Updated,
		&r.definition, &r.plan, &r.wish, &gone)
	if err == nil {
		err = json.Unmarshal(options, &r.Options)
	}
	if err == nil {
		err = json.Unmarshal(progress, &r.Progress)
	}
	if err == nil && report != nil {
		err = json.Unmarshal(report, &r.Report)
	}
	if gone && r.State == Running { // its last words were of when it still ran
		r.Progress.Rate, r.Progress.ETASeconds = 0, -1
		r.Progress.Why = fmt.Sprintf("%s has died or lost its session: it goes on by itself, or another `rebuild run %s` does", r.Owner, r.Projection)
	}
	return r, err
}

func readRebuilds(ctx context.Context, q querier, where string, args ...any) ([]Rebuild, error) {
	rows, err := q.Query(ctx, `select `+rebuildColumns+` from refold.rebuild where `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("reading rebuilds: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanRebuild)
	if err != nil {
		return nil, fmt.Errorf("reading rebuilds: %w", err)
	}
	return list, nil
}

func one(list []Rebuild, err error) (Rebuild, error) {
	if err == nil && len(list) == 0 {
		err = ErrNoRebuild
	}
	if err != nil {
		return Rebuild{}, err
	}
	return list[0], nil
}

// Get returns a rebuild, or [ErrNoRebuild].
func (r *Rebuilder) Get(ctx context.Context, id int64) (Rebuild, error) {
	return one(readRebuilds(ctx, r.pool, `id = $1`, id))
}

// Latest returns the newest rebuild of a projection, or [ErrNoRebuild].
func (r *Rebuilder) Latest(ctx context.Context, name string) (Rebuild, error) {
	return one(readRebuilds(ctx, r.pool, `projection = $1 order by id desc limit 1`, name))
}

// Open returns all rebuilds that are not at their end, the oldest first.
func (r *Rebuilder) Open(ctx context.Context) ([]Rebuild, error) {
	return readRebuilds(ctx, r.pool, `state not in ('done', 'cancelled') order by id`)
}

// Busy says that a rebuild of the projection is under way.
type Busy struct {
	Projection string
	Rebuild    int64  // 0 when not known
	Owner      string // empty when nobody runs it
	Why        string
}

func (e *Busy) Error() string {
	text := "the projection " + e.Projection + " is being rebuilt"
	if e.Rebuild != 0 {
		text = fmt.Sprintf("rebuild %d of %s is under way", e.Rebuild, e.Projection)
	}
	if e.Owner != "" {
		text += ", run by " + e.Owner
	}
	if e.Why != "" {
		text += ": " + e.Why
	}
	return text
}

// Request asks for a rebuild, which a process with [Rebuilder.Serve], or the next
// [Rebuilder.Run] of the projection, takes up if it has the same definition. The
// error is a *[Busy] while one is not at its end, and a *[Left] when the projection
// has left the definition.
func (r *Rebuilder) Request(ctx context.Context, name string, options Options) (id int64, err error) {
	if options, err = options.withDefaults(); err != nil {
		return 0, err
	}
	plan, err := r.compile(name)
	if err != nil {
		return 0, err
	}
	if err := r.checkLineage(ctx, plan, options); err != nil {
		return 0, err
	}
	// A request by another definition that nobody has taken up gives way: whoever
	// asked for it may be gone.
	err = r.pool.QueryRow(ctx, `insert into refold.rebuild as r (projection, options, definition, plan) values ($1, $2, $3, $4)
		on conflict (projection) where state not in ('done', 'cancelled') do update set options = excluded.options, definition = excluded.definition, plan = excluded.plan,
			error = null, requested = clock_timestamp(), updated = clock_timestamp() where r.state = 'requested' and r.started is null and r.plan is distinct from excluded.plan
		returning id`, name, mustJSON(options), plan.Source(), plan.Hash()).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		busy := &Busy{Projection: name}
		if now, err := r.Latest(ctx, name); err == nil {
			busy.Rebuild, busy.Owner = now.ID, now.Owner
		}
		return 0, busy
	}
	if err != nil {
		return 0, fmt.Errorf("asking for a rebuild of %s: %w", name, err)
	}
	if _, err := r.pool.Exec(ctx, `notify refold_rebuild`); err != nil {
		r.deps.Logger.Debug("announcing a rebuild", "err", err) // it is found by polling
	}
	return id, nil
}

// RequestIfDue asks for a rebuild where the deployed definition needs one, unless
// the projection has left it: nobody asked to go back. A failure is logged: whoever
// asks goes on without.
func (r *Rebuilder) RequestIfDue(ctx context.Context, name string) {
	list, err := r.Projections(ctx, name)
	if err != nil {
		r.deps.Logger.Warn("looking whether a rebuild is due", "projection", name, "err", err)
		return
	}
	for _, p := range list {
		for _, v := range p.Versions {
			if !v.Due {
				continue
			}
			id, err := r.Request(ctx, name, Options{})
			var busy *Busy
			var left *Left
			if errors.As(err, &left) {
				r.deps.Logger.Warn("the deployed definition was left, and no rebuild is asked for", "projection", name, "version", v.Version, "next", "rebuild run "+name+" --back")
			} else if err != nil && !errors.As(err, &busy) {
				r.deps.Logger.Warn("asking for a rebuild that is due", "projection", name, "err", err)
			} else if err == nil {
				r.deps.Logger.Info("a rebuild is due and asked for", "projection", name, "version", v.Version, "rebuild", id)
			}
		}
	}
}
