package service

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDrainingServerAnswersAndLetsConnectionsGo(t *testing.T) {
	s := &Service{Log: slog.New(slog.DiscardHandler), Health: &Health{}, DrainDelay: time.Minute}
	ended := make(chan struct{})
	addr, err := s.Serve("server", "127.0.0.1:0", nil, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "answer") }))
	require.NoError(t, err)
	stop := make(chan error)
	s.Add("stopper", func(ctx context.Context) error { // ends the drain, which would take a minute
		select {
		case err := <-stop:
			return err
		case <-ctx.Done():
			return nil
		}
	})
	ctx, terminate := context.WithCancel(t.Context())
	go func() {
		defer close(ended)
		s.Run(ctx)
	}()

	client := &http.Client{Transport: &http.Transport{}}
	closes := func() bool {
		answer, err := client.Get("http://" + addr.String())
		require.NoError(t, err, "a request is answered to the end of the drain")
		defer answer.Body.Close()
		_, err = io.Copy(io.Discard, answer.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, answer.StatusCode)
		return answer.Close
	}
	require.False(t, closes(), "connections are kept")
	terminate()
	require.Eventually(t, closes, 30*time.Second, time.Millisecond, "connections are let go")
	stop <- io.EOF
	<-ended
}
