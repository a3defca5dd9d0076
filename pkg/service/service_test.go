package service

import (
	"context"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// While a program drains it answers, and tells clients to go elsewhere.
func TestConnectionsArePartedWithWhileDraining(t *testing.T) {
	s := &Service{Log: slog.New(slog.DiscardHandler), Health: &Health{}, DrainDelay: time.Hour}
	addr, err := s.Serve("API server", "127.0.0.1:0", nil, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	require.NoError(t, err)
	failed := make(chan struct{})
	s.Add("part", func(ctx context.Context) error {
		select {
		case <-failed: // ends the drain
			return http.ErrServerClosed
		case <-ctx.Done():
			return nil
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	closes := func() bool {
		answer, err := http.Get("http://" + addr.String())
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		require.Equal(t, http.StatusOK, answer.StatusCode)
		return answer.Close
	}
	require.False(t, closes())
	stop()
	require.Eventually(t, closes, 10*time.Second, time.Millisecond)
	close(failed)
	require.NoError(t, <-done)
}
