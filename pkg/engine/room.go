package engine

import (
	"context"
	"fmt"

	"github.com/refoldhq/refold/pkg/postgres"
)

// takeRoom makes sure that Postgres has a session left for another worker. There is
// one for each partition of each version that is fed, so that versions which are
// kept could take all of them, and nobody could append, query or retire one. taken
// is called when the session is there, or is not.
func (e *Engine) takeRoom(ctx context.Context) (taken func(), err error) {
	connecting := e.connecting.Add(1)
	taken = func() { e.connecting.Add(-1) }
	now, err := postgres.ReadRoom(ctx, e.pool)
	if err == nil && now.Left() < int(connecting) {
		err = &standing{fmt.Sprintf("Postgres has no session left for it: it allows %d, of which %d are taken, a few are left to others, and each partition of each version that is fed takes one: "+
			"retire versions that are kept (`rebuild retire NAME`, or a shorter --keep), or raise max_connections", now.Allowed, now.Taken)}
	}
	if err != nil {
		taken()
	}
	return taken, err
}
