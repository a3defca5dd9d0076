package eventstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
)

// What refold.reclaim raises.
const (
	codeMoved = "RF114"
	codeTaken = "RF115"
)

// Reclaim has a stream take and release claims without an event: all of it or
// nothing, and only if the stream is as it was seen. The error is [*VersionConflict]
// if it is not, or [*ClaimTaken], without the value.
func Reclaim(ctx context.Context, pool *pgxpool.Pool, seen Seen, take, release []Claim) error {
	takeNamespaces, takeValues := columnsOf(take)
	releaseNamespaces, releaseValues := columnsOf(release)
	slot := event.SlotOf(seen.Stream, seen.Category.Slots)
	_, err := pool.Exec(ctx, `select refold.reclaim($1, $2, $3, $4, $5, $6, $7, $8, $9)`, seen.Category.ID, int16(slot), seen.Stream, seen.Version, [16]byte(seen.Last),
		takeNamespaces, takeValues, releaseNamespaces, releaseValues)
	switch {
	case err == nil:
		return nil
	case postgres.IsCode(err, codeMoved):
		return &VersionConflict{Append: -1, Category: seen.Category.Name, Stream: seen.Stream, Expected: Exactly(seen.Version)}
	case postgres.IsCode(err, codeTaken):
		return takenBy(err)
	default:
		return fmt.Errorf("bringing the claims of %s/%s to their rule: %w", seen.Category.Name, seen.Stream, err)
	}
}

func columnsOf(claims []Claim) (namespaces, values []string) {
	namespaces, values = make([]string, len(claims)), make([]string, len(claims))
	for i, c := range claims {
		namespaces[i], values[i] = c.Namespace, c.Value
	}
	return namespaces, values
}

// takenBy reads the holder that the server named.
func takenBy(err error) error {
	var raised *pgconn.PgError
	errors.As(err, &raised)
	parts := strings.SplitN(raised.Detail, "\n", 3)
	if len(parts) != 3 {
		return fmt.Errorf("reading who holds a claim: %w", err)
	}
	return &ClaimTaken{Claim: Claim{Namespace: parts[0]}, Category: parts[1], Stream: parts[2]}
}
