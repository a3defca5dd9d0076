package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// ProjectionInfo is a projection with its versions that are not dropped.
type ProjectionInfo struct {
	Name     string        `json:"name"`
	Versions []VersionInfo `json:"versions"`
}

// VersionInfo is one version of a projection.
type VersionInfo struct {
	Version    int        `json:"version"`
	State      string     `json:"state"`
	Definition string     `json:"definition"`
	Plan       string     `json:"plan"`
	Rows       int64      `json:"rows"` // estimated where there are many
	Lag        Lag        `json:"lag"`
	Parked     int64      `json:"parked"`
	Created    time.Time  `json:"created"`
	Promoted   *time.Time `json:"promoted,omitempty"`
	KeepUntil  *time.Time `json:"keepUntil,omitempty"`
	// Due says that the deployed definition is another one, so that a rebuild is due;
	// of the version that serves.
	Due      bool                `json:"due,omitempty"`
	Progress []PartitionPosition `json:"progress,omitempty"`
}

// Lag is how far rows are behind the event table.
type Lag struct {
	Events  int64   `json:"events"`
	Seconds float64 `json:"seconds"`
}

// PartitionPosition is how far a version is in one partition.
type PartitionPosition struct {
	Category   string  `json:"category"`
	Generation int     `json:"generation"`
	Partition  int     `json:"partition"`
	Phase      string  `json:"phase"`
	NextOffset int64   `json:"nextOffset"`
	Slots      []int16 `json:"slots"`
	Seqs       []int64 `json:"seqs"`
	Owner      string  `json:"owner,omitempty"`
	Alarm      string  `json:"alarm,omitempty"`
}

const versionsSQL = `select v.projection, v.version, v.state, v.definition, v.plan, v.leaf, v.created, v.promoted, v.keep_until,
	(select count(*) from refold.parked_stream p where p.projection = v.projection and p.version = v.version),
	coalesce((select reltuples::bigint from pg_class where oid = to_regclass('refold.' || v.leaf)), 0),
	coalesce((select sum(greatest(coalesce((select e.seq from refold.event e where e.category = c.id and e.slot = u.slot order by e.seq desc limit 1), 0) - u.seq, 0))
		from refold.progress p join refold.category c on c.name = p.category, unnest(p.slots, p.seqs) u (slot, seq)
		where p.projection = v.projection and p.version = v.version and p.phase <> 'closed'), 0)::bigint,
	coalesce((select extract(epoch from clock_timestamp() - max(p.last_applied)) from refold.progress p where p.projection = v.projection and p.version = v.version), 0)::double precision
	from refold.projection_version v where v.dropped is null and ($1 = '' or v.projection = $1) order by 1, 2`

// exactRows is up to where rows are counted and not estimated.
const exactRows = 100_000

// Projections returns the projections with their versions; only the named one
// unless name is empty.
func (r *Rebuilder) Projections(ctx context.Context, name string) ([]ProjectionInfo, error) {
	rows, err := r.pool.Query(ctx, versionsSQL, name)
	if err != nil {
		return nil, fmt.Errorf("reading projections: %w", err)
	}
	list := []ProjectionInfo{}
	var leaves []string
	var v VersionInfo
	var projection, leaf string
	_, err = pgx.ForEachRow(rows, []any{&projection, &v.Version, &v.State, &v.Definition, &v.Plan, &leaf, &v.Created, &v.Promoted, &v.KeepUntil, &v.Parked, &v.Rows, &v.Lag.Events, &v.Lag.Seconds}, func() error {
		if v.Lag.Events == 0 {
			v.Lag.Seconds = 0
		}
		if n := len(list); n == 0 || list[n-1].Name != projection {
			list = append(list, ProjectionInfo{Name: projection})
		}
		p := &list[len(list)-1]
		p.Versions, leaves = append(p.Versions, v), append(leaves, leaf)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading projections: %w", err)
	}
	for i := range list {
		for k := range list[i].Versions {
			one := &list[i].Versions[k]
			if err := r.count(ctx, one, leaves[0]); err != nil {
				return nil, err
			}
			leaves = leaves[1:]
			if plan, err := r.compile(list[i].Name); err == nil {
				one.Due = one.State == "active" && plan.Hash() != one.Plan
			}
		}
	}
	return list, nil
}

func (r *Rebuilder) count(ctx context.Context, v *VersionInfo, leaf string) error {
	if v.Rows >= exactRows {
		return nil
	}
	err := r.pool.QueryRow(ctx, `select count(*) from refold.`+leaf).Scan(&v.Rows) // names of ours, see readmodel
	if postgres.Classify(err) == postgres.ClassMissing {
		v.Rows = 0
		return nil
	}
	if err != nil {
		return fmt.Errorf("counting the rows of %s: %w", leaf, err)
	}
	return nil
}

// Version returns one version with its progress by partition, or [ErrNoVersion].
func (r *Rebuilder) Version(ctx context.Context, name string, number int) (VersionInfo, error) {
	list, err := r.Projections(ctx, name)
	if err != nil {
		return VersionInfo{}, err
	}
	for _, p := range list {
		for _, v := range p.Versions {
			if v.Version == number {
				v.Progress, err = r.positions(ctx, name, number)
				return v, err
			}
		}
	}
	return VersionInfo{}, fmt.Errorf("%w: version %d of %s", ErrNoVersion, number, name)
}

func (r *Rebuilder) positions(ctx context.Context, name string, number int) ([]PartitionPosition, error) {
	rows, err := r.pool.Query(ctx, `select category, generation, partition, phase, next_offset, slots, seqs, coalesce(owner, ''), coalesce(alarm, '')
		from refold.progress where projection = $1 and version = $2 order by 1, 2, 3`, name, number)
	if err != nil {
		return nil, fmt.Errorf("reading the progress of %s version %d: %w", name, number, err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[PartitionPosition])
}

// Known tells whether there is a projection of this name, deployed or built.
func (r *Rebuilder) Known(ctx context.Context, name string) error {
	if _, err := r.compile(name); !errors.Is(err, ErrNoDefinition) {
		return nil //nolint:nilerr // it is defined, if wrongly
	}
	if list, err := r.Projections(ctx, name); err != nil || len(list) > 0 {
		return err
	}
	return fmt.Errorf("%w: %s", readmodel.ErrUnknownProjection, name)
}
