package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/refoldhq/refold/pkg/postgres"
)

// ErrNoRoom says that Postgres has no sessions left for what a rebuild makes.
var ErrNoRoom = errors.New("too few sessions of Postgres are left")

// sessions returns how many sessions a rebuild takes beside its pool: while it
// loads two for each partition at work, later one for each partition of the
// version, which whoever feeds the version keeps.
func sessions(partitions int, options Options) int {
	return max(2*min(options.Parallel, partitions), partitions) + 2
}

// enoughRoom returns an [ErrNoRoom] unless there are n sessions left.
func enoughRoom(now postgres.Room, n, partitions int) error {
	if n <= now.Left() {
		return nil
	}
	return fmt.Errorf("%w: it allows %d, of which %d are taken and a few are left to others, and this takes %d more (a version is fed by a session for each of its %d partitions): retire versions that are kept (`rebuild retire NAME`, or a shorter --keep), or raise max_connections",
		ErrNoRoom, now.Allowed, now.Taken, n, partitions)
}

// roomPatience is how long sessions are waited for, which come and go while
// programs are deployed.
const roomPatience = 15 * time.Second

// checkRoom makes sure, before anything is made, that what is made can be fed.
func (j *job) checkRoom(ctx context.Context, partitions int) error {
	for deadline := time.Now().Add(roomPatience); ; {
		now, err := postgres.ReadRoom(ctx, j.pool)
		if err != nil {
			return err
		}
		if err = enoughRoom(now, sessions(partitions, j.rebuild.Options), partitions); err == nil {
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
