package postgres_test

import (
	"fmt"
	"io/fs"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/postgres"
)

// grown is the order in which migrations were added while refold was built: each
// database of a program from between has a beginning of this list.
var grown = []string{"00060_aggregates", "00050_rebuild", "00040_secret", "00030_engine", "00010_append", "00051_complete", "00020_relay_slots"}

// A database made by a program that had later migrations, and not yet all earlier
// ones, becomes the same as one that got them in order.
func TestMigrationsThatWereAddedBelowOthersAreApplied(t *testing.T) {
	t.Parallel()
	all, err := postgres.Migrations()
	require.NoError(t, err)
	want := catalogue(t, devstack.MigratedDatabase(t))
	require.Contains(t, want, "function append_one")
	for n := range grown {
		t.Run(fmt.Sprint("before ", grown[n]), func(t *testing.T) {
			t.Parallel()
			older := fstest.MapFS{}
			require.NoError(t, fs.WalkDir(all, ".", func(name string, entry fs.DirEntry, err error) error {
				if err == nil && !entry.IsDir() && name < "00010" {
					older[name] = file(t, all, name)
				}
				return err
			}))
			for _, name := range grown[:n] {
				older[name+".sql"] = file(t, all, name+".sql")
			}
			pool, err := postgres.Open(t.Context(), postgres.Config{URL: devstack.Database(t)})
			require.NoError(t, err)
			defer pool.Close()
			require.NoError(t, postgres.MigrateFrom(t.Context(), pool, older))
			missing, err := postgres.Missing(t.Context(), pool)
			require.NoError(t, err)
			require.GreaterOrEqual(t, len(missing), len(grown)-n, "programs do not take it for complete")
			require.NoError(t, postgres.Migrate(t.Context(), pool))
			missing, err = postgres.Missing(t.Context(), pool)
			require.NoError(t, err)
			require.Empty(t, missing)
			require.Equal(t, want, catalogue(t, pool))
		})
	}
}

func file(t *testing.T, from fs.FS, name string) *fstest.MapFile {
	data, err := fs.ReadFile(from, name)
	require.NoError(t, err)
	return &fstest.MapFile{Data: data}
}

// catalogue returns what the schema refold holds, but for the order of columns.
func catalogue(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	var text string
	require.NoError(t, pool.QueryRow(t.Context(), `
		select string_agg(said, e'\n' order by said) from (
			select format('function %s %s', p.proname, pg_get_functiondef(p.oid)) from pg_proc p where p.pronamespace = 'refold'::regnamespace and p.prokind = 'f'
			union all select format('column %s.%s %s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
				from pg_attribute a join pg_class c on c.oid = a.attrelid left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
				where c.relnamespace = 'refold'::regnamespace and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped
			union all select format('index %s', indexdef) from pg_indexes where schemaname = 'refold'
			union all select format('constraint %s %s %s', o.conrelid::regclass, o.conname, pg_get_constraintdef(o.oid)) from pg_constraint o where o.connamespace = 'refold'::regnamespace
			union all select format('settings %s %s', c.relname, c.reloptions) from pg_class c where c.relnamespace = 'refold'::regnamespace and c.reloptions is not null
		) x (said)`).Scan(&text))
	return text
}
