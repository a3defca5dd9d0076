package engine_test

import (
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/schemas"
)

// renamed are the contracts of schemas after UserCreated and its field email got
// other names.
func renamed(t *testing.T) *avro.Contracts {
	t.Helper()
	fsys := fstest.MapFS{}
	files, err := fs.Glob(schemas.FS, "events/*/*")
	require.NoError(t, err)
	for _, file := range files {
		data, err := fs.ReadFile(schemas.FS, file)
		require.NoError(t, err)
		fsys[file] = &fstest.MapFile{Data: data}
	}
	text := string(fsys["events/User/UserCreated.v1.avsc"].Data)
	text = strings.NewReplacer(`"name": "UserCreated"`, `"name": "UserSignedUp", "aliases": ["UserCreated"]`, `"name": "email"`, `"name": "address", "aliases": ["email"]`).Replace(text)
	fsys["events/User/UserSignedUp.v2.avsc"] = &fstest.MapFile{Data: []byte(text)}
	contracts, err := avro.LoadContracts(fsys)
	require.NoError(t, err)
	return contracts
}

// A program with new names of types and fields goes on feeding the versions that
// one without them made.
func TestAVersionIsFedAfterARename(t *testing.T) {
	t.Parallel()
	w := setup(t)
	stop := w.start()
	w.produce(w.event("a", "1"))
	w.await("applied", applied, 1)
	stop()
	definitions, err := projection.ParseDefinitions("p.yaml", []byte(definition))
	require.NoError(t, err)
	feeds, err := engine.Setup(ctx, w.pool, renamed(t), definitions, nil)
	require.NoError(t, err)
	require.Len(t, feeds, 1)
	w.feed = feeds[0]
	require.Equal(t, w.feed.Version.PlanHash, w.feed.Plan.Hash(), "no rebuild is due")
	w.start()
	w.produce(w.event("a", "2"))
	w.await("applied", applied, 2)
	w.await("rows", `select count(*) from refold.projections where data->>'email' = '2'`, 1)
}

// Contracts that make another plan of the definition that a version was made by
// stop it, as rows of two plans would be of neither; it is said, with what helps.
func TestAVersionOfAnotherPlanStandsAloud(t *testing.T) {
	t.Parallel()
	w := setup(t)
	_, err := w.pool.Exec(ctx, `update refold.projection_version set plan = 'former'`)
	require.NoError(t, err)
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	definitions, err := projection.ParseDefinitions("p.yaml", []byte(definition))
	require.NoError(t, err)
	deployment, err := engine.NewDeployment(w.pool, contracts, definitions, nil, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	feeds, err := deployment.Feeds(ctx)
	require.NoError(t, err)
	require.Len(t, feeds, 1)
	w.feed = feeds[0]
	e := w.newEngine()
	require.NoError(t, e.Standing())
	w.startEngine(e)
	w.await("the alarm is written down", "select count(*) from refold.progress where alarm like '%`rebuild run logins`%'", 2)
	require.Eventually(t, func() bool { return e.Standing() != nil }, patience, 20*time.Millisecond)
	require.ErrorContains(t, e.Standing(), "rebuild run logins")
}
