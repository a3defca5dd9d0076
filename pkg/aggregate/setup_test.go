package aggregate_test

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/schemas"
	"github.com/refoldhq/refold/schemas/user"
)

var ctx = context.Background()

// writer is a process of the write side, but for its servers.
type writer struct {
	pool      *pgxpool.Pool
	store     *eventstore.Store
	deps      aggregate.Deps
	runtime   *aggregate.Runtime
	accounts  *aggregate.Repository[user.Account]
	snapshots *eventstore.Snapshots
}

func setup(t testing.TB) *writer {
	return open(t, devstack.MigratedDatabase(t), aggregate.Config{Snapshots: aggregate.NoSnapshots})
}

func contracts(t testing.TB) *avro.Contracts {
	t.Helper()
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	return contracts
}

// open starts a writer on a database, which may have others.
func open(t testing.TB, pool *pgxpool.Pool, cfg aggregate.Config) *writer {
	t.Helper()
	contracts := contracts(t)
	schemaRegistry := registry.New(pool)
	ids, err := schemaRegistry.RegisterContracts(ctx, contracts, func(category string) string { return "refold." + strings.ToLower(category) })
	require.NoError(t, err)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	store := eventstore.New(eventstore.Config{DatabaseURL: pool.Config().ConnString()}, log, prometheus.NewRegistry())
	require.NoError(t, store.EnsureCategories(ctx, pool, []eventstore.CategorySpec{{Name: "User", Slots: 64, Partitions: 8, Topic: "refold.user"}}))
	w := &writer{pool: pool, store: store, snapshots: eventstore.NewSnapshots(pool), deps: aggregate.Deps{Store: store, Pool: pool, Schemas: schemaRegistry,
		Contracts: contracts, SchemaIDs: ids, Logger: log, Metrics: prometheus.NewRegistry()}}
	w.runtime, err = aggregate.NewRuntime(cfg, w.deps, user.Define())
	require.NoError(t, err)
	w.accounts, err = aggregate.Open(w.runtime, user.Define())
	require.NoError(t, err)
	running, stop := context.WithCancel(ctx)
	stored, ran := make(chan struct{}), make(chan struct{})
	go func() { defer close(stored); store.Run(running) }()
	go func() { defer close(ran); w.runtime.Run(running) }()
	t.Cleanup(func() { stop(); <-ran; <-stored })
	return w
}

func create(email string) func(*user.Account) error {
	return func(a *user.Account) error { return a.Create(user.Create{Email: email, Name: "Ada"}) }
}

func changeEmail(email string) func(*user.Account) error {
	return func(a *user.Account) error { return a.ChangeEmail(user.ChangeEmail{Email: email}) }
}

func logIn(succeeded bool) func(*user.Account) error {
	return func(a *user.Account) error { return a.LogIn(user.LogIn{Succeeded: succeeded}) }
}

func (w *writer) category(t testing.TB) eventstore.Category {
	t.Helper()
	c, ok := w.store.Category("User")
	require.True(t, ok)
	return c
}

// forAnother returns the writer's dependencies for a second runtime, which has no metrics of
// its own.
func (w *writer) forAnother() aggregate.Deps {
	deps := w.deps
	deps.Metrics = nil
	return deps
}
