package service

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/api"
	"github.com/refoldhq/refold/pkg/reaction"
	"github.com/refoldhq/refold/schemas"
	"github.com/refoldhq/refold/schemas/user"
)

// mounted copies the contracts to a folder, but for some files.
func mounted(t *testing.T, without ...string) string {
	t.Helper()
	dir := t.TempDir()
	events, err := fs.Sub(schemas.FS, "events")
	require.NoError(t, err)
	require.NoError(t, os.CopyFS(filepath.Join(dir, "events"), events))
	for _, name := range without {
		require.NoError(t, os.RemoveAll(filepath.Join(dir, "events", name)))
	}
	return dir
}

// Reactions run on contracts of --schemas as on those compiled in, and the writer does
// not start without one that does not fit them: what it leaves out would be history.
func TestReactionsRunOnMountedContractsOrNothingDoes(t *testing.T) {
	t.Parallel()
	wake := func(rt *aggregate.Runtime) (*reaction.Consumer, error) {
		accounts, err := aggregate.Open(rt, user.Define())
		c := reaction.New(rt, reaction.Config{Name: "wake", Category: "User"})
		reaction.On(c, func(context.Context, reaction.Event[user.UserEmailVerified]) error {
			_ = accounts
			return nil
		})
		return c, err
	}
	begin := func(schemas string, types ...aggregate.Type) (*Aggregates, error) {
		s := &Settings{Schemas: schemas}
		contracts, err := s.Contracts()
		require.NoError(t, err)
		w := &Writer{contracts: contracts, deps: api.Deps{Contracts: contracts, SchemaIDs: aggregate.LocalIDs(contracts)}}
		a := NewAggregates(w, aggregate.Config{}, types, []Reaction{wake})
		return a, a.make(&Host{Settings: s, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry()})
	}
	a, err := begin(mounted(t), user.Define())
	require.NoError(t, err)
	require.Len(t, a.consumers, 1)

	for want, without := range map[string]string{"the contracts have no category User": "User", "the category User has no event UserEmailVerified": "User/UserEmailVerified.v1.avsc"} {
		_, err := begin(mounted(t, without))
		var refused *Failure
		require.True(t, errors.As(err, &refused), err)
		require.Equal(t, ExitUsage, refused.Code)
		require.ErrorContains(t, err, "the reaction wake cannot be run: ")
		require.ErrorContains(t, err, want)
	}
}
