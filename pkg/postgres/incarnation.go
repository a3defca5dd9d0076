package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Incarnation names one run of one server on one history. Two equal ones are
// the same server process on the same timeline, so nothing that was committed
// under the one can be missing under the other. Compare with ==.
//
// It takes all three to tell: a failover to a standby keeps System, two standbys
// that were both promoted share Timeline, and a promotion keeps Started. A plain
// restart gives a new incarnation too, although it loses nothing.
type Incarnation struct {
	// System is the cluster's system identifier.
	System uint64
	// Timeline is that of the write-ahead log being written now.
	Timeline uint32
	// Started is when the postmaster started, to the microsecond, in UTC.
	Started time.Time
}

// TimelineSQL is the expression for the current timeline as a bigint, for
// statements that compare it inside their own transaction (0.4 us). The timeline
// of pg_control_checkpoint() goes on showing the old one after a promotion. On a
// server in recovery it raises 55000.
const TimelineSQL = `('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::pg_catalog.bit(32)::bigint`

// querier is what a pool, a connection and a transaction have in common.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

const readIncarnation = `select system_identifier, ` + TimelineSQL + `, pg_postmaster_start_time()
	from pg_control_system()`

// ReadIncarnation asks the server behind q, which should be one session: two
// queries through a pool may reach two servers. On a standby it fails with an
// error of code 55000.
func ReadIncarnation(ctx context.Context, q querier) (Incarnation, error) {
	var system, timeline int64
	var i Incarnation
	if err := q.QueryRow(ctx, readIncarnation).Scan(&system, &timeline, &i.Started); err != nil {
		return Incarnation{}, fmt.Errorf("reading the server's incarnation: %w", err)
	}
	i.System, i.Timeline, i.Started = uint64(system), uint32(timeline), i.Started.UTC()
	return i, nil
}

// SessionIncarnation returns the incarnation of the server that a session is on. The
// server is asked once: a session that could write does not outlive an incarnation.
func SessionIncarnation(ctx context.Context, conn *pgx.Conn) (Incarnation, error) {
	const key = "refold.incarnation"
	data := conn.PgConn().CustomData()
	if known, ok := data[key].(Incarnation); ok {
		return known, nil
	}
	i, err := ReadIncarnation(ctx, conn)
	if err == nil {
		data[key] = i
	}
	return i, err
}

// String returns the incarnation for logs.
func (i Incarnation) String() string {
	return fmt.Sprintf("%d/%d/%s", i.System, i.Timeline, i.Started.Format(time.RFC3339Nano))
}
