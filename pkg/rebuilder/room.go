package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrNoRoom says that Postgres has no sessions left for what a rebuild makes.
var ErrNoRoom = errors.New("too few sessions of Postgres are left")

// room is how many sessions the server allows, and how many are taken.
type room struct{ allowed, taken int }

const roomSQL = `select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int, count(*)::int from pg_stat_activity where backend_type = 'client backend'`

func (r *Rebuilder) room(ctx context.Context) (now room, err error) {
	if err := r.pool.QueryRow(ctx, roomSQL).Scan(&now.allowed, &now.taken); err != nil {
		return now, fmt.Errorf("counting the sessions of Postgres: %w", err)
	}
	return now, nil
}

// sessions returns how many sessions a rebuild takes beside its pool: while it
// loads two for each partition at work, later one for each partition of the
// version, which whoever feeds the version keeps.
func sessions(partitions int, options Options) int {
	return max(2*min(options.Parallel, partitions), partitions) + 2
}

// check returns an [ErrNoRoom] unless there are n sessions left.
func (r room) check(n, partitions int) error {
	if r.taken+n <= r.allowed {
		return nil
	}
	return fmt.Errorf("%w: it allows %d, of which %d are taken, and this takes %d more (a version is fed by a session for each of its %d partitions): retire versions that are kept (`rebuild retire NAME`, or a shorter --keep), or raise max_connections",
		ErrNoRoom, r.allowed, r.taken, n, partitions)
}

// roomPatience is how long sessions are waited for, which come and go while
// programs are deployed.
const roomPatience = 15 * time.Second

// checkRoom makes sure, before anything is made, that what is made can be fed.
func (j *job) checkRoom(ctx context.Context, partitions int) error {
	for deadline := time.Now().Add(roomPatience); ; {
		now, err := j.room(ctx)
		if err != nil {
			return err
		}
		if err = now.check(sessions(partitions, j.rebuild.Options), partitions); err == nil {
			j.meter.wait("")
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		j.meter.wait(err.Error())
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
}
