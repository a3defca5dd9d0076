package aggregate

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/event"
)

func TestEachBoundOfAPolicyIsMetWhereItStands(t *testing.T) {
	t.Parallel()
	recorded := event.TimeOf(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	after := func(d time.Duration) event.Time { return recorded + event.Time(d.Microseconds()) }
	age := Policy{Age: 10 * time.Minute}
	require.False(t, age.due(since{events: 5, recorded: recorded}, after(10*time.Minute-time.Microsecond)))
	require.True(t, age.due(since{events: 5, recorded: recorded}, after(10*time.Minute)))
	require.False(t, age.due(since{recorded: recorded}, after(time.Hour)), "there is nothing new to be stored")

	count := Policy{Events: 3}
	require.False(t, count.due(since{events: 2, bytes: 1 << 30, recorded: recorded}, after(time.Hour)))
	require.True(t, count.due(since{events: 3, recorded: recorded}, recorded))
	size := Policy{Bytes: 100}
	require.False(t, size.due(since{events: 1000, bytes: 99, recorded: recorded}, after(time.Hour)))
	require.True(t, size.due(since{events: 1, bytes: 100, recorded: recorded}, recorded))
	require.False(t, NoSnapshots.due(since{events: 1000, bytes: 1 << 30, recorded: recorded}, after(1000*time.Hour)))
}

// A command does not wait for snapshots: when too many are due they are left out,
// and are due again.
func TestSnapshotsThatFindNoRoomAreLeftOut(t *testing.T) {
	t.Parallel()
	jobs := make(chan job, 1)
	r := &Repository[struct{}]{rt: &Runtime{cfg: Config{Snapshots: Policy{Events: 1}}, jobs: jobs}, codec: &Codec[struct{}]{d: &Definition[struct{}]{}}}
	first, second := &Root{since: since{events: 1}}, &Root{since: since{events: 1}}
	r.maybeSnapshot("a", first)
	r.maybeSnapshot("b", second) // would block for ever
	require.Equal(t, "a", (<-jobs).id)
	require.Zero(t, first.since.events)
	require.Equal(t, 1, second.since.events)
}
