package service

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// syncBuffer takes what several goroutines log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestPanicsOfHandlersAreSeen(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	reg := prometheus.NewRegistry()
	s := &Service{Log: slog.New(slog.NewTextHandler(&log, nil)), Health: &Health{}, Panics: newPanics(reg)}
	half := false
	server := httptest.NewUnstartedServer(s.recovering(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if half {
			io.WriteString(w, "half of an ans")
		}
		panic("a mistake of ours")
	})))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server.Start()
	defer server.Close()

	res, err := http.Get(server.URL)
	require.NoError(t, err)
	raw, err := io.ReadAll(res.Body)
	res.Body.Close()
	require.NoError(t, err)
	require.Equal(t, http.StatusInternalServerError, res.StatusCode)
	require.Contains(t, string(raw), "/problems/internal")
	require.NotContains(t, string(raw), "a mistake of ours")

	half = true
	res, err = http.Get(server.URL)
	if err == nil {
		_, err = io.ReadAll(res.Body)
		res.Body.Close()
	}
	require.Error(t, err, "half of an answer must not look whole")
	families, err := reg.Gather()
	require.NoError(t, err)
	require.GreaterOrEqual(t, families[0].GetMetric()[0].GetCounter().GetValue(), 2.0)                                              // the client may have asked again
	require.Eventually(t, func() bool { return strings.Count(log.String(), "level=ERROR") >= 2 }, 30*time.Second, time.Millisecond) // it may be said after the answer
	require.Contains(t, log.String(), "a mistake of ours")
	require.Contains(t, log.String(), "panics_test.go", "the stack")
}
