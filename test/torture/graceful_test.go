package torture

import (
	"context"
	"fmt"
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

// balancer sends requests to the writers that say they are ready, as a Service
// of Kubernetes does: it learns of it by asking, some time later.
type balancer struct {
	writers []*platform.Program
	clients []*platform.Client
	ready   []atomic.Bool
}

func newBalancer(writers []*platform.Program, clients []*platform.Client) *balancer {
	return &balancer{writers, clients, make([]atomic.Bool, len(writers))}
}

// watch asks /readyz of a writer until ctx ends.
func (b *balancer) watch(ctx context.Context, i int) {
	client := &http.Client{Timeout: time.Second}
	for ctx.Err() == nil {
		res, err := client.Get(b.writers[i].AdminURL() + "/readyz")
		if err == nil {
			res.Body.Close()
		}
		b.ready[i].Store(err == nil && res.StatusCode == http.StatusOK)
		pause(ctx, 100*time.Millisecond)
	}
}

// pick returns a writer that was ready when it was asked last.
func (b *balancer) pick(rnd *rand.Rand) *platform.Client {
	first := rnd.IntN(len(b.clients))
	for i := range b.clients {
		if n := (first + i) % len(b.clients); b.ready[n].Load() {
			return b.clients[n]
		}
	}
	return b.clients[first]
}

// A writer that is told to end under load exits 0 within 10 s of the end of its
// drain delay (2 s), and no request fails that goes to writers which say that
// they are ready. REFOLD_STOPS says how often each of two writers is ended, 3 by
// default; `make torture` sets 100.
func TestGracefulStopUnderLoad(t *testing.T) {
	stops := 3
	if s := os.Getenv("REFOLD_STOPS"); s != "" {
		var err error
		stops, err = strconv.Atoi(s)
		require.NoError(t, err)
	}
	_, seed, _ := settings(t)
	run := start(t, 1)
	balance := newBalancer(run.world.writers, run.clients.writers)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i := range balance.writers {
		all.Go(func() { balance.watch(ctx, i) })
	}
	allReady := func() bool { return balance.ready[0].Load() && balance.ready[1].Load() }
	require.True(t, platform.Eventually(20*time.Second, allReady))

	var answered atomic.Int64
	for id := range 16 {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(id)))
			for n := 0; ctx.Err() == nil; n++ {
				r := run.clients.next(rnd, fmt.Sprintf("g%d-%d", id, n))
				run.world.history.invoke(r)
				answer, err := r.postTo(balance.pick(rnd))
				run.world.history.settle(r, func(r *request) { r.learn(answer, err) })
				if err != nil || answer.Status >= http.StatusInternalServerError {
					t.Errorf("a request failed during a graceful stop: %v %d %s", err, answer.Status, answer.Body)
				}
				answered.Add(1)
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
			require.True(t, platform.Eventually(20*time.Second, func() bool { return allReady() && answered.Load() > before }))
		}
	}
	cancel()
	all.Wait()
	run.heal()
	run.check()
	t.Logf("%d stops, %d answers", 2*stops, answered.Load())
}
