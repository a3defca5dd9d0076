package torture

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/refoldhq/refold/pkg/devstack"
)

func slowNetwork(w *world, _ context.Context, rnd *rand.Rand) func() {
	by := time.Duration(20+rnd.IntN(200)) * time.Millisecond
	w.history.fault("every way through the proxies takes %v longer", by)
	for _, p := range w.proxies() {
		p.Delay(devstack.ToServer, by)
		p.Delay(devstack.ToClient, by)
	}
	return w.healNetwork
}

// halfOpen leaves connections standing through which nothing comes, and cuts
// them off in the end.
func halfOpen(w *world, ctx context.Context, rnd *rand.Rand) func() {
	p := pick(rnd, w.proxies())
	w.history.fault("nothing comes through the proxy at %s", p.Addr())
	p.Blackhole()
	pause(ctx, time.Duration(rnd.IntN(3000))*time.Millisecond)
	return func() {
		p.Cut()
		p.Heal()
	}
}

// loseAnswers lets statements through and swallows what the database says.
func loseAnswers(w *world, ctx context.Context, rnd *rand.Rand) func() {
	p := pick(rnd, w.toDatabase)
	w.history.fault("the database's answers through %s are lost", p.Addr())
	p.Discard(devstack.ToClient)
	pause(ctx, 200*time.Millisecond)
	p.Cut()
	return p.Heal
}

// lateTransactions keeps statements back, from a commit on where one comes,
// cuts their senders off, and delivers the statements later: a transaction that
// arrives when everybody has given it up.
func lateTransactions(w *world, ctx context.Context, rnd *rand.Rand) func() {
	p := pick(rnd, w.toDatabase)
	w.history.fault("statements through %s arrive after their senders gave up", p.Addr())
	var reads atomic.Int32
	after := rnd.Int32N(40)
	p.HoldWhen(devstack.ToServer, func(read []byte) bool {
		return bytes.Contains(bytes.ToLower(read), []byte("commit")) || reads.Add(1) > after
	})
	pause(ctx, time.Duration(100+rnd.IntN(400))*time.Millisecond)
	p.Sever()
	pause(ctx, time.Duration(rnd.IntN(2000))*time.Millisecond)
	return p.Heal
}

func (w *world) proxies() []*devstack.Proxy {
	return append([]*devstack.Proxy{w.toBroker}, w.toDatabase...)
}

func (w *world) healNetwork() {
	for _, p := range w.proxies() {
		p.Heal()
	}
}
