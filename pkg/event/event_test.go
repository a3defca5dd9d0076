package event_test

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/refoldhq/refold/pkg/event"
)

func TestIDsOfOneProcessAscendAndDoNotRepeat(t *testing.T) {
	t.Parallel()
	const perWorker = 20_000
	lists := make([][]event.ID, 4)
	var wg sync.WaitGroup
	for w := range lists {
		wg.Go(func() {
			for range perWorker {
				lists[w] = append(lists[w], event.NewID())
			}
		})
	}
	wg.Wait()
	seen := make(map[event.ID]bool)
	for _, list := range lists {
		for i, id := range list {
			require.False(t, seen[id], "id %s twice", id)
			seen[id] = true
			if i > 0 {
				require.Less(t, list[i-1].String(), id.String())
			}
		}
	}
	one := lists[0][0]
	require.Equal(t, byte('7'), one.String()[14], "version of RFC 9562")
	require.Contains(t, "89ab", string(one.String()[19]), "variant of RFC 9562")
}

func TestParseIDTakesTheCanonicalFormOnly(t *testing.T) {
	t.Parallel()
	id := event.NewID()
	got, err := event.ParseID(id.String())
	require.NoError(t, err)
	require.Equal(t, id, got)
	for _, bad := range []string{"", "{" + id.String() + "}", "urn:uuid:" + id.String(), id.String()[1:],
		"00000000-0000-0000-0000-000000000000", "zzzzzzzz-0000-7000-8000-000000000000"} {
		_, err := event.ParseID(bad)
		require.ErrorIs(t, err, event.ErrMalformedID, bad)
	}
}

func TestTimeKeepsMicrosecondsAndShowsNoTrailingZeros(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"2023-11-08T16:12:44Z":             "2023-11-08T16:12:44Z",
		"2023-11-08T16:12:44.100Z":         "2023-11-08T16:12:44.1Z",
		"2023-11-08T16:12:44.123456+02:00": "2023-11-08T14:12:44.123456Z",
		"0001-01-01T00:00:00Z":             "0001-01-01T00:00:00Z",
		"9999-12-31T23:59:59.999999Z":      "9999-12-31T23:59:59.999999Z",
		"1969-12-31T23:59:59.5Z":           "1969-12-31T23:59:59.5Z",
	} {
		got, err := event.ParseTime(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got.String())
	}
	for _, bad := range []string{"", "2023-11-08", "2023-11-08T16:12:44", "2023-11-08 16:12:44Z", "2023-11-08T16:12:44.1234567Z",
		"2023-11-08T16:12:44.0000000Z", "2023-11-08T16:12:44,5Z", "2023-02-30T00:00:00Z", "10000-01-01T00:00:00Z", "9999-12-31T23:59:59-01:00"} {
		_, err := event.ParseTime(bad)
		require.ErrorIs(t, err, event.ErrMalformedTime, bad)
	}
}

func TestTimeSurvivesItsText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		us := event.Time(rapid.Int64Range(int64(event.MinTime), int64(event.MaxTime)).Draw(t, "us"))
		got, err := event.ParseTime(us.String())
		require.NoError(t, err)
		require.Equal(t, us, got)
		require.Equal(t, us, event.TimeOf(us.Std()))
	})
	require.Equal(t, event.Time(1), event.TimeOf(time.Unix(0, 1999)))
}

// The vectors are those of Kafka's own UtilsTest.testMurmur2 (apache/kafka,
// clients module), made positive as the default partitioner does.
func TestSlotIsKafkasPartitionOfTheKey(t *testing.T) {
	t.Parallel()
	for key, hash := range map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		want := int(uint32(hash)&0x7fffffff) % 64
		require.Equal(t, want, event.SlotOf(key, 64), key)
		require.Equal(t, int(uint32(hash)&0x7fffffff)%8, event.PartitionOf(event.SlotOf(key, 64), 8), "partitions divide slots")
	}
}

func TestStreamIDs(t *testing.T) {
	t.Parallel()
	long := string(make([]byte, event.MaxStreamID+1))
	for _, ok := range []string{"a", "...", "A-z_0.9:~", "4d1e"} {
		require.NoError(t, event.CheckStreamID(ok), ok)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a b", "ä", "a\x00", "a%", long} {
		require.Error(t, event.CheckStreamID(bad), bad)
	}
}

func TestCategoryNames(t *testing.T) {
	t.Parallel()
	for _, ok := range []string{"U", "User", "A1"} {
		require.NoError(t, event.CheckCategory(ok), ok)
	}
	for _, bad := range []string{"", "user", "1A", "User_", "Ü", string(make([]byte, 65))} {
		require.Error(t, event.CheckCategory(bad), bad)
	}
}
