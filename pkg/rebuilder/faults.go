package rebuilder

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// faults are bugs that are planted in tests, to see that the checks catch them.
// The zero value has none.
type faults struct {
	flip             func(context.Context, pgx.Tx) error // takes the place of the checked flip
	splitTransaction bool                                // rows are committed before the progress that tells of them
	loadAgain        bool                                // what is loaded already is loaded again
	blindDigest      bool                                // the digest leaves out the column state
}
