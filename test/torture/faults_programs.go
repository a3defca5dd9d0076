package torture

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/refoldhq/refold/test/platform"
)

func kill(w *world, p *platform.Program) func() {
	w.history.fault("kill -9 %s", p.Name)
	p.Kill()
	return p.Launch
}

func killAll(w *world, _ context.Context, _ *rand.Rand) func() {
	w.history.fault("kill -9 every program")
	for _, p := range w.programs() {
		p.Kill()
	}
	return func() {
		for _, p := range w.programs() {
			p.Launch()
		}
	}
}

func stop(w *world, p *platform.Program) func() {
	w.history.fault("SIGSTOP %s", p.Name)
	p.Pause()
	return p.Resume
}

func terminate(w *world, p *platform.Program) func() {
	code, took := p.Stop()
	w.history.fault("SIGTERM %s: exit %d after %v", p.Name, code, took.Round(time.Millisecond))
	return p.Launch
}

// rebalanceStorm makes a member join and leave the groups again and again.
func rebalanceStorm(w *world, ctx context.Context, rnd *rand.Rand) func() {
	w.history.fault("a projector joins and leaves, three times")
	p := pick(rnd, w.projectors)
	for range 3 {
		p.Stop()
		pause(ctx, 300*time.Millisecond)
		p.Launch()
		pause(ctx, time.Duration(500+rnd.IntN(1500))*time.Millisecond)
	}
	return func() {}
}
