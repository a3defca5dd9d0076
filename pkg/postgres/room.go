package postgres

import (
	"context"
	"fmt"
)

// Room is how many sessions the server allows to programs, and how many are taken.
type Room struct{ Allowed, Taken int }

const roomSQL = `select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int - coalesce(current_setting('reserved_connections', true), '0')::int,
	count(*)::int from pg_stat_activity where usesysid is not null and coalesce(backend_type, 'client backend') = 'client backend'`

// ReadRoom counts the sessions of the server. Of other roles' sessions an ordinary
// role does not see the type, so that their parallel workers count too.
func ReadRoom(ctx context.Context, q querier) (r Room, err error) {
	if err := q.QueryRow(ctx, roomSQL).Scan(&r.Allowed, &r.Taken); err != nil {
		return r, fmt.Errorf("counting the sessions of Postgres: %w", err)
	}
	return r, nil
}

// Left is how many sessions those may take that take many and keep them, which
// feed versions: a twentieth is left to appends, queries, and whoever mends things.
func (r Room) Left() int { return r.Allowed - max(3, r.Allowed/20) - r.Taken }
