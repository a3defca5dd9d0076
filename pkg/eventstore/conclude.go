package eventstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/event"
)

// Seen is a stream as somebody has read it.
type Seen struct {
	Category Category
	Stream   string
	Version  int64
	// Last is the id of the event at Version; zero for a stream without events.
	Last event.ID
}

// Conclusion is the end of a request that appends nothing.
type Conclusion struct {
	// Seen are the streams that it was decided on.
	Seen []Seen
	// Key and Hash are those of the request, to be kept; Key is empty for one that
	// was refused, or has none.
	Key  string
	Hash []byte
	// Version is what a repetition under the key is answered with.
	Version int64
}

// ErrKeyKnown says that something was done under a key before: see [Reader.OutcomeOf].
var ErrKeyKnown = errors.New("something was done under the key before")

// Conclude makes sure, in one trip, that all streams are at one moment during the
// call as they were seen, and keeps the key if so; it waits for a request that
// is under way with the same key. The error is [*VersionConflict], whose Append is
// -1, or [ErrKeyKnown]; no other leaves it open whether the key was kept but one
// of the connection, after which the same may be asked again.
func Conclude(ctx context.Context, pool *pgxpool.Pool, c Conclusion) error {
	n := len(c.Seen)
	categories, streams, versions, last := make([]int16, n), make([]string, n), make([]int64, n), make([]*[16]byte, n)
	for i, s := range c.Seen {
		categories[i], streams[i], versions[i] = s.Category.ID, s.Stream, s.Version
		if !s.Last.IsZero() {
			id := [16]byte(s.Last)
			last[i] = &id
		}
	}
	var verdict string
	var place *int
	var actual *int64
	err := pool.QueryRow(ctx, `select verdict, place, actual from refold.conclude($1, $2, $3, $4, $5, $6, $7)`,
		optional(c.Key), c.Hash, c.Version, categories, streams, versions, last).Scan(&verdict, &place, &actual)
	switch {
	case err != nil:
		return fmt.Errorf("comparing %d streams with the log: %w", n, err)
	case verdict == "known":
		return ErrKeyKnown
	case verdict == "changed":
		s := c.Seen[*place-1]
		return &VersionConflict{Append: -1, Category: s.Category.Name, Stream: s.Stream, Expected: Exactly(s.Version), Actual: *actual}
	default:
		return nil
	}
}
