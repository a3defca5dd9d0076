package eventstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
)

// Snapshot is the state of an aggregate after one of its events. It is a cache
// of what folding the stream would give.
type Snapshot struct {
	// Version is that of the last event in the state; 0 is no snapshot.
	Version int64
	// Event is the id of that event. A stream that holds another one at the
	// version has lost its tail since, and the snapshot is worthless.
	Event    event.ID
	Recorded event.Time // of that event
	State    []byte
}

// Snapshots keeps snapshots, one for each stream and fingerprint: the newest. It
// is safe for concurrent use.
type Snapshots struct{ pool *pgxpool.Pool }

// NewSnapshots returns the snapshots of a database.
func NewSnapshots(pool *pgxpool.Pool) *Snapshots { return &Snapshots{pool} }

const (
	selectSnapshotSQL = `select version, event, recorded, state from refold.snapshot where category = $1 and stream = $2 and fingerprint = $3`
	// The event of the snapshot itself comes first, to compare its id.
	// Only what a fold needs is read.
	eventsFromSnapshotSQL = `select version, id, recorded, type, value from refold.event where category = $1 and stream = $2
		and version >= coalesce((select s.version from refold.snapshot s where s.category = $1 and s.stream = $2 and s.fingerprint = $3), 1) order by version limit $4`
	eventsForFoldSQL = `select version, id, recorded, type, value from refold.event where category = $1 and stream = $2 order by version limit $3`
)

// Loaded is what an aggregate is made from.
type Loaded struct {
	// Snapshot is the zero value where there is none of use: the events begin at the
	// first then.
	Snapshot Snapshot
	// Events are the first that follow the snapshot. They have what a fold needs: no
	// place in their slot, no metadata and no time but the recorded one.
	Events []event.Event
	// Claims are what the stream held after the events were read.
	Claims []Claim
	// From is the incarnation of the database that all this was read from.
	From postgres.Incarnation
}

// Load returns a stream's snapshot and what follows it, at most limit events, in
// one trip; what it holds only with claims. A snapshot whose event the stream does
// not hold is left out.
func (s *Snapshots) Load(ctx context.Context, category Category, stream string, fingerprint []byte, limit int, claims bool) (out Loaded, err error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return Loaded{}, fmt.Errorf("loading %s/%s: %w", category.Name, stream, err)
	}
	defer conn.Release()
	out.From, err = postgres.SessionIncarnation(ctx, conn.Conn())
	if err == nil {
		trip := &pgx.Batch{}
		trip.Queue(selectSnapshotSQL, category.ID, stream, fingerprint).QueryRow(func(row pgx.Row) error {
			return scanSnapshot(row, &out.Snapshot)
		})
		out.queue(trip, category, stream, claims, eventsFromSnapshotSQL, category.ID, stream, fingerprint, limit+1)
		err = conn.SendBatch(ctx, trip).Close()
	}
	if err == nil && !out.settle(limit) {
		trip := &pgx.Batch{}
		out = Loaded{From: out.From}
		out.queue(trip, category, stream, claims, eventsForFoldSQL, category.ID, stream, limit)
		err = conn.SendBatch(ctx, trip).Close()
	}
	if err != nil {
		return Loaded{}, fmt.Errorf("loading %s/%s: %w", category.Name, stream, err)
	}
	return out, nil
}

// queue reads events and, behind them, claims: those that are older than the
// events could be missed at the version of the events.
func (l *Loaded) queue(trip *pgx.Batch, category Category, stream string, claims bool, sql string, args ...any) {
	trip.Queue(sql, args...).Query(func(rows pgx.Rows) (err error) {
		l.Events, err = collectForFold(rows, category.Name, stream)
		return err
	})
	if claims {
		trip.Queue(claimsOfSQL, category.ID, stream).Query(func(rows pgx.Rows) (err error) {
			l.Claims, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Claim])
			return err
		})
	}
}

// settle takes the snapshot's own event away, and tells whether the events fit
// behind the snapshot. They do not if it speaks of events that are gone, or another
// one was written between the two statements.
func (l *Loaded) settle(limit int) bool {
	snap, events := &l.Snapshot, l.Events
	switch {
	case snap.Version == 0 && (len(events) == 0 || events[0].Version == 1):
		l.Events = events[:min(limit, len(events))]
		return true
	case snap.Version > 0 && len(events) > 0 && events[0].Version == snap.Version && events[0].ID == snap.Event:
		l.Events = events[1:]
		return true
	}
	return false
}

func collectForFold(rows pgx.Rows, category, stream string) ([]event.Event, error) {
	var list []event.Event
	e := event.Event{Category: category, Stream: stream}
	var id [16]byte
	var recorded time.Time
	_, err := pgx.ForEachRow(rows, []any{&e.Version, &id, &recorded, &e.Type, &e.Value}, func() error {
		e.ID, e.Recorded = id, event.TimeOf(recorded)
		list = append(list, e)
		e.Value = nil // the next row gets memory of its own
		return nil
	})
	return list, err
}

func scanSnapshot(row pgx.Row, snap *Snapshot) error {
	var id [16]byte
	var recorded time.Time
	err := row.Scan(&snap.Version, &id, &recorded, &snap.State)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	snap.Event, snap.Recorded = id, event.TimeOf(recorded)
	return err
}

const writeSnapshotSQL = `
	insert into refold.snapshot as s (category, stream, fingerprint, version, event, recorded, state) values ($1, $2, $3, $4, $5, $6, $7)
	on conflict (category, stream, fingerprint) do update
		set version = excluded.version, event = excluded.event, recorded = excluded.recorded, state = excluded.state, written = clock_timestamp()
		where s.version <= excluded.version
		   or not exists (select from refold.event e where e.category = s.category and e.stream = s.stream and e.version = s.version and e.id = s.event)`

// Write keeps a snapshot unless there is one of a later version whose event the
// stream still holds. A crash of the server may lose what was written last: its
// commit does not wait for the disk, which appends need more.
func (s *Snapshots) Write(ctx context.Context, category Category, stream string, fingerprint []byte, snap Snapshot) error {
	trip := &pgx.Batch{} // one transaction, for there is one Sync
	trip.Queue(`select set_config('synchronous_commit', 'off', true)`)
	trip.Queue(writeSnapshotSQL, category.ID, stream, fingerprint, snap.Version, [16]byte(snap.Event), snap.Recorded.Std(), snap.State)
	if err := s.pool.SendBatch(ctx, trip).Close(); err != nil {
		return fmt.Errorf("writing a snapshot of %s/%s: %w", category.Name, stream, err)
	}
	return nil
}

// Delete removes a snapshot that was found to be wrong.
func (s *Snapshots) Delete(ctx context.Context, category Category, stream string, fingerprint []byte) error {
	_, err := s.pool.Exec(ctx, `delete from refold.snapshot where category = $1 and stream = $2 and fingerprint = $3`, category.ID, stream, fingerprint)
	if err != nil {
		return fmt.Errorf("deleting a snapshot of %s/%s: %w", category.Name, stream, err)
	}
	return nil
}

// Streams returns the streams after one, in order, that have a snapshot with a
// fingerprint; at most limit.
func (s *Snapshots) Streams(ctx context.Context, category Category, fingerprint []byte, after string, limit int) ([]string, error) {
	rows, err := s.pool.Query(ctx, `select stream from refold.snapshot where category = $1 and stream > $2 and fingerprint = $3 order by stream limit $4`,
		category.ID, after, fingerprint, limit)
	if err != nil {
		return nil, fmt.Errorf("listing snapshots of %s: %w", category.Name, err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("listing snapshots of %s: %w", category.Name, err)
	}
	return list, nil
}

// Sweep deletes at most limit snapshots of a category that were made by other
// fingerprints and written longer ago than age: writers of another version may
// still run beside this one. It returns how many it deleted.
func (s *Snapshots) Sweep(ctx context.Context, category Category, fingerprint []byte, age time.Duration, limit int) (int64, error) {
	tag, err := s.pool.Exec(ctx, `delete from refold.snapshot where ctid in (
		select ctid from refold.snapshot where category = $1 and fingerprint <> $2 and written < clock_timestamp() - $3::interval order by written limit $4)`,
		category.ID, fingerprint, age, limit)
	if err != nil {
		return 0, fmt.Errorf("sweeping snapshots of %s: %w", category.Name, err)
	}
	return tag.RowsAffected(), nil
}
