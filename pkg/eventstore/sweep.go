package eventstore

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// KeepKeys is for how long an idempotency key is remembered unless the
// configuration says otherwise; those of a reaction's commands as long as its event
// may be handled again. Event ids are remembered for ever.
const KeepKeys = 24 * time.Hour

// sweepChunk bounds what one statement forgets, so that it is short.
const sweepChunk = 5000

// A key that an append has just met is locked by it, and stays for now.
const sweepSQL = `delete from refold.idempotency_key where key = any(array(
	select key from refold.idempotency_key where recorded < clock_timestamp() - $1::interval and not refold.reaction_needs(key) order by recorded limit $2 for update skip locked))`

// SweepKeys forgets the idempotency keys that are older than age, by the
// database's clock, and returns how many. Several processes may sweep at once. What
// was done under a forgotten key stands; the key may be used for something else.
func (s *Store) SweepKeys(ctx context.Context, pool *pgxpool.Pool, age time.Duration) (swept int64, err error) {
	for {
		tag, err := pool.Exec(ctx, sweepSQL, age, sweepChunk)
		if err != nil {
			return swept, fmt.Errorf("sweeping idempotency keys older than %v: %w", age, err)
		}
		swept += tag.RowsAffected()
		s.metrics.swept.Add(float64(tag.RowsAffected()))
		if tag.RowsAffected() < sweepChunk {
			return swept, nil
		}
	}
}
