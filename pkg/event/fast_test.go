package event_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/refoldhq/refold/pkg/event"
)

// The short way through our own forms gives what packages time and uuid give.
func TestOwnFormsAreReadAsTheStandardLibraryReadsThem(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		us := rapid.Int64Range(int64(event.MinTime), int64(event.MaxTime)).Draw(t, "time")
		text := event.Time(us).String()
		if at := rapid.IntRange(0, 2*len(text)).Draw(t, "damage"); at < len(text) {
			text = text[:at] + string(rapid.SampledFrom([]rune("0123456789-:TZ.,+")).Draw(t, "by")) + text[at+1:]
		}
		got, err := event.ParseTime(text)
		want, wantErr := time.Parse(time.RFC3339Nano, text)
		if err == nil {
			require.NoError(t, wantErr, text)
			require.Equal(t, want.UnixMicro(), int64(got), text)
		}
		id := uuid.New().String()
		if at := rapid.IntRange(0, 2*len(id)).Draw(t, "damage of id"); at < len(id) {
			id = id[:at] + string(rapid.SampledFrom([]rune("0123456789abcdefABCDEFg-")).Draw(t, "by")) + id[at+1:]
		}
		gotID, err := event.ParseID(id)
		wantID, wantErr := uuid.Parse(id)
		require.Equal(t, wantErr == nil, err == nil, id)
		if err == nil {
			require.Equal(t, [16]byte(wantID), [16]byte(gotID))
		}
	})
	for _, day := range []string{"0001-01-01T00:00:00Z", "1600-02-29T23:59:59.999999Z", "1900-02-28T00:00:00Z", "2000-02-29T12:00:00.1Z", "2024-12-31T23:59:59Z", "9999-12-31T23:59:59.999999Z", "1969-12-31T23:59:59.5Z"} {
		want, err := time.Parse(time.RFC3339Nano, day)
		require.NoError(t, err)
		got, err := event.ParseTime(day)
		require.NoError(t, err)
		require.Equal(t, want.UnixMicro(), int64(got), day)
	}
	for _, bad := range []string{"1900-02-29T00:00:00Z", "2023-04-31T00:00:00Z", "2023-13-01T00:00:00Z", "2023-01-01T24:00:00Z", "2023-01-01T00:00:00.Z", "0000-01-01T00:00:00Z"} {
		_, err := event.ParseTime(bad)
		require.Error(t, err, bad)
	}
}
