package eventstore_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/eventstore"
)

// What an append reads does not grow with the log, not before the server has
// statistics, nor after it has those of a small table. With both indexes beginning
// with the category, the one of streams was a level deeper than the primary key from
// some 200 events on, and what was planned then was to read the whole category for
// every append (migration 00011); what was planned for a table of two pages was to read
// it whole. Sessions keep such plans until the table is analyzed again.
func TestAppendsReadLittleWhateverTheStatistics(t *testing.T) {
	t.Parallel()
	for name, analyzed := range map[string]int{"none": -1, "of a small table": 60} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, pool := setup(t)
			_, err := pool.Exec(ctx, `alter table refold.event set (autovacuum_enabled = off)`)
			require.NoError(t, err)
			const events = 2000
			stream := func(i int) string { return fmt.Sprintf("%s-%d", strings.Repeat("x", 40), i) }
			for i := 0; i < events; i += 2 {
				if i == analyzed {
					_, err := pool.Exec(ctx, `analyze refold.event`)
					require.NoError(t, err)
				}
				_, err := store.Append(ctx, request(to(stream(i), eventstore.None, 1), to(stream(i+1), eventstore.None, 1)))
				require.NoError(t, err)
			}
			var inserted, read int64
			require.Eventually(t, func() bool {
				require.NoError(t, pool.QueryRow(ctx, `select n_tup_ins, seq_tup_read + idx_tup_fetch from pg_stat_user_tables where schemaname = 'refold' and relname = 'event'`).Scan(&inserted, &read))
				return inserted == events
			}, time.Minute, 100*time.Millisecond, "the server's counters")
			require.Less(t, read, 10*inserted)
		})
	}
}
