package aggregate_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/schemas/user"
)

// BenchmarkExecute runs commands of 256 callers, each on a warm account of its own.
func BenchmarkExecute(b *testing.B) {
	w := open(b, devstack.MigratedDatabase(b), aggregate.Config{})
	const callers = 256
	for i := range callers {
		_, err := w.accounts.Create(ctx, fmt.Sprint(i), create(fmt.Sprintf("%d@example.com", i)))
		require.NoError(b, err)
		_, err = w.accounts.Execute(ctx, fmt.Sprint(i), (*user.Account).Activate)
		require.NoError(b, err)
	}
	var next atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	b.SetParallelism(callers / 2)
	b.RunParallel(func(pb *testing.PB) {
		id := fmt.Sprint(next.Add(1) % callers)
		for pb.Next() {
			if _, err := w.accounts.Execute(ctx, id, logIn(true)); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkFold folds stored events, which is what a load costs besides the database.
func BenchmarkFold(b *testing.B) {
	codec, err := aggregate.NewCodec(user.Define(), contracts(b), aggregate.LocalIDs(contracts(b)))
	require.NoError(b, err)
	stored, err := codec.Encode(user.UserEmailChanged{NewEmail: "somebody@example.com"})
	require.NoError(b, err)
	category, _ := contracts(b).Category("User")
	typ, _ := category.Type("UserEmailChanged")
	a := codec.New("1")
	e := event.Event{Category: "User", Stream: "1", Type: stored.Type, Value: stored.Value}
	b.ReportAllocs()
	for b.Loop() {
		e.Version++
		if err := codec.Apply(a, &e, typ.Newest()); err != nil {
			b.Fatal(err)
		}
	}
}
