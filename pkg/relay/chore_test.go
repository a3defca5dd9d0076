package relay

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// What waits for an answer, or for somebody who is asking already, does not have
// the loop turn until it comes.
func TestTheLoopDoesNotSpinWhileItWaits(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s := &session{Relay: &Relay{}, owned: make(map[key]*partition), leaders: newLeaders(), nextPoll: now.Add(time.Hour), nextRenew: now.Add(time.Hour)}
	for i, phase := range []phase{settling, comparing, flowing} {
		s.owned[key{number: i}] = &partition{phase: phase, retryAt: now.Add(-time.Second)}
	}
	s.flights, s.requested = 1, now.Add(-time.Second)
	require.True(t, s.nextChore().After(time.Now()))

	s.gathering, s.requested = true, now.Add(time.Minute)
	require.WithinDuration(t, now.Add(time.Minute+gather), s.nextChore(), 0)
	s.owned[key{number: 0}].retryAt = now.Add(30 * time.Second)
	require.WithinDuration(t, now.Add(30*time.Second), s.nextChore(), 0)
}

// Writers tell of commits whatever the loop does.
func TestHintsMayComeAtAnyTime(t *testing.T) {
	t.Parallel()
	r := New(Config{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	s := &session{Relay: r, owned: map[key]*partition{{}: {name: "User", slots: []slot{{number: 3}}}}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 10_000 {
			r.Committed("User", []int{3})
		}
	}()
	for looked := 0; ; {
		s.takeHints()
		if at := &s.owned[key{}].slots[0]; at.look {
			at.look = false
			looked++
		}
		select {
		case <-done:
			s.takeHints()
			require.True(t, looked > 0 || s.owned[key{}].slots[0].look)
			return
		default:
		}
	}
}
