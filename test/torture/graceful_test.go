package torture

import (
	"context"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/test/platform"
)

// A program that is told to end under load exits 0 within 10 s of the end of its
// drain delay (2 s), and answers nothing that it has accepted with a 5xx.
// REFOLD_STOPS says how often each of two writers is ended, 3 by default;
// `make torture` sets 100.
func TestGracefulStopUnderLoad(t *testing.T) {
	stops := 3
	if s := os.Getenv("REFOLD_STOPS"); s != "" {
		var err error
		stops, err = strconv.Atoi(s)
		require.NoError(t, err)
	}
	_, seed, _ := settings(t)
	run := start(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var answered, refused atomic.Int64
	for id := range 16 {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(id)))
			for n := 0; ctx.Err() == nil; n++ {
				r := run.clients.next(rnd, "g"+strconv.Itoa(id)+"-"+strconv.Itoa(n))
				run.world.history.invoke(r)
				answer, err := run.clients.post(r, rnd)
				run.world.history.settle(r, func(r *request) { r.learn(answer, err) })
				switch {
				case err != nil:
					pause(ctx, 20*time.Millisecond) // the port is closed: the other writer serves
				case answer.Status >= http.StatusInternalServerError:
					refused.Add(1)
					t.Errorf("a 5xx during a graceful stop: %d %s", answer.Status, answer.Body)
				default:
					answered.Add(1)
				}
			}
		})
	}
	for range stops {
		for _, p := range run.world.writers {
			before := answered.Load()
			code, took := p.Stop()
			require.Zero(t, code, "%s\n%s", p.Name, p.Log())
			require.Less(t, took, 12*time.Second, p.Name)
			p.Start()
			require.True(t, platform.Eventually(20*time.Second, func() bool { return answered.Load() > before }))
		}
	}
	cancel()
	all.Wait()
	run.heal()
	run.check()
	t.Logf("%d stops, %d answers", 2*stops, answered.Load())
}
