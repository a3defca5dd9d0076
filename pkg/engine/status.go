package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Status is how a version of a projection is being fed.
type Status struct {
	Projection string `json:"projection"`
	Version    int    `json:"version"`
	State      string `json:"state"` // building, ready or active
	Plan       string `json:"plan"`  // hash of the plan
	// Events is how many events of the log the version has not folded, Seconds the
	// age of the oldest of them.
	Events     int64             `json:"lagEvents"`
	Seconds    float64           `json:"lagSeconds"`
	Parked     int64             `json:"parkedStreams"`
	Stopped    int               `json:"stoppedSlots"`
	Partitions []PartitionStatus `json:"partitions"`
}

// PartitionStatus is how far a version is in one partition.
type PartitionStatus struct {
	Category   string        `json:"category"`
	Generation int           `json:"generation"`
	Partition  int           `json:"partition"`
	Phase      string        `json:"phase"`
	NextOffset int64         `json:"nextOffset"`
	Events     int64         `json:"lagEvents"`
	Seconds    float64       `json:"lagSeconds"`
	Owner      string        `json:"owner,omitempty"`
	Fed        bool          `json:"fed"` // the session of the owner is there
	Alarm      string        `json:"alarm,omitempty"`
	Stopped    []StoppedSlot `json:"stopped,omitempty"`
	Updated    time.Time     `json:"updated"`
}

const statusSQL = `select p.projection, p.version, v.state, v.plan, p.category, p.generation, p.partition, p.phase, p.next_offset, coalesce(p.owner, ''),
		exists (select from pg_stat_activity a where a.pid = p.owner_pid and a.backend_start = p.owner_start), coalesce(p.alarm, ''), p.stopped, p.updated,
		coalesce((select sum(greatest(coalesce((select e.seq from refold.event e where e.category = c.id and e.slot = u.slot order by e.seq desc limit 1), 0) - u.seq, 0))
			from unnest(p.slots, p.seqs) u (slot, seq)), 0)::bigint,
		greatest(0, coalesce((select extract(epoch from clock_timestamp() - min((select e.recorded from refold.event e where e.category = c.id and e.slot = u.slot and e.seq = u.seq + 1)))
			from unnest(p.slots, p.seqs) u (slot, seq)), 0))::float8,
		(select count(*) from refold.parked_stream s where s.projection = p.projection and s.version = p.version)
	from refold.progress p join refold.projection_version v on v.projection = p.projection and v.version = p.version
		left join refold.category c on c.name = p.category
	where v.state <> 'retired' and p.phase <> 'closed' and ($1 = '' or p.projection = $1) order by 1, 2, 5, 6, 7`

// ReadStatus returns how all versions of a projection are fed that are not
// retired; of all projections without a name.
func ReadStatus(ctx context.Context, pool *pgxpool.Pool, projection string) ([]Status, error) {
	rows, err := pool.Query(ctx, statusSQL, projection)
	if err != nil {
		return nil, fmt.Errorf("reading the progress of projections: %w", err)
	}
	list := []Status{}
	var s Status
	var p PartitionStatus
	var stopped []byte
	_, err = pgx.ForEachRow(rows, []any{&s.Projection, &s.Version, &s.State, &s.Plan, &p.Category, &p.Generation, &p.Partition, &p.Phase, &p.NextOffset, &p.Owner, &p.Fed, &p.Alarm, &stopped, &p.Updated,
		&p.Events, &p.Seconds, &s.Parked}, func() error {
		p.Stopped = nil
		if err := json.Unmarshal(stopped, &p.Stopped); err != nil {
			return err
		}
		if n := len(list); n == 0 || list[n-1].Projection != s.Projection || list[n-1].Version != s.Version {
			list = append(list, s)
		}
		v := &list[len(list)-1]
		v.Events += p.Events
		v.Seconds = max(v.Seconds, p.Seconds)
		v.Stopped += len(p.Stopped)
		v.Partitions = append(v.Partitions, p)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the progress of projections: %w", err)
	}
	return list, nil
}
