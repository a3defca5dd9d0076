package torture

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/test/platform"
)

// world is what a run can break.
type world struct {
	history    *history
	postgres   *devstack.Postgres
	kafka      *devstack.Kafka
	nodes      int
	database   string // the server itself, past every proxy
	disk       *disk  // below the database; nil where none can be mounted
	topic      string
	stack      *platform.Stack
	writers    []*platform.Program
	projectors []*platform.Program
	queries    []*platform.Program
	// The first writer, projector and query server reach the database through one
	// proxy each, and all programs reach the first broker through one.
	toDatabase []*devstack.Proxy
	toBroker   *devstack.Proxy
}

func (w *world) programs() []*platform.Program {
	return slices.Concat(w.writers, w.projectors, w.queries)
}

// fault breaks one thing and returns what heals it again. Two faults of one
// group are never there at once.
type fault struct {
	name  string
	group group
	apply func(*world, context.Context, *rand.Rand) (heal func())
}

type group int

const (
	ofPrograms group = iota
	ofDatabase
	ofBrokers
	ofNetwork
	ofLoad
)

var faults = []fault{
	{"kill a writer", ofPrograms, func(w *world, _ context.Context, rnd *rand.Rand) func() { return kill(w, pick(rnd, w.writers)) }},
	{"kill a projector", ofPrograms, func(w *world, _ context.Context, rnd *rand.Rand) func() { return kill(w, pick(rnd, w.projectors)) }},
	{"kill a query server", ofPrograms, func(w *world, _ context.Context, rnd *rand.Rand) func() { return kill(w, pick(rnd, w.queries)) }},
	{"kill everything", ofPrograms, killAll},
	{"pause a writer", ofPrograms, func(w *world, _ context.Context, rnd *rand.Rand) func() { return stop(w, pick(rnd, w.writers)) }},
	{"pause a projector", ofPrograms, func(w *world, _ context.Context, rnd *rand.Rand) func() { return stop(w, pick(rnd, w.projectors)) }},
	{"end a writer gracefully", ofPrograms, func(w *world, _ context.Context, rnd *rand.Rand) func() { return terminate(w, pick(rnd, w.writers)) }},
	{"end a projector gracefully", ofPrograms, func(w *world, _ context.Context, rnd *rand.Rand) func() { return terminate(w, pick(rnd, w.projectors)) }},
	{"rebalance storm", ofPrograms, rebalanceStorm},
	{"restart Postgres fast", ofDatabase, func(w *world, _ context.Context, _ *rand.Rand) func() { return restart(w, "fast") }},
	{"restart Postgres immediately", ofDatabase, func(w *world, _ context.Context, _ *rand.Rand) func() { return restart(w, "immediate") }},
	{"crash Postgres", ofDatabase, crashPostgres},
	{"cut all database sessions", ofDatabase, cutSessions},
	{"fill the database's disk", ofDatabase, fillDisk},
	{"take all database sessions", ofDatabase, takeSessions},
	{"long transaction", ofLoad, longTransaction},
	{"kill a broker", ofBrokers, killBroker},
	{"pause a broker", ofBrokers, pauseBroker},
	{"restart all brokers", ofBrokers, restartBrokers},
	{"produce junk", ofLoad, produceJunk},
	{"slow network", ofNetwork, slowNetwork},
	{"half-open network", ofNetwork, halfOpen},
	{"lost answers of the database", ofNetwork, loseAnswers},
	{"late transactions", ofNetwork, lateTransactions},
}

func pick[T any](rnd *rand.Rand, list []T) T { return list[rnd.IntN(len(list))] }

// breakThings applies one fault after another, some of them while another
// lasts, heals each after a while, and returns when ctx ends, with everything
// healed.
func (w *world) breakThings(ctx context.Context, rnd *rand.Rand, only []string) {
	pause(ctx, 2*time.Second)
	for ctx.Err() == nil {
		f := choose(rnd, func(f fault) bool { return len(only) == 0 || slices.Contains(only, f.name) })
		heal := f.apply(w, ctx, rnd)
		pause(ctx, time.Duration(500+rnd.IntN(3000))*time.Millisecond)
		if rnd.IntN(3) == 0 && len(only) != 1 {
			second := choose(rnd, func(g fault) bool {
				return g.group != f.group && (len(only) == 0 || slices.Contains(only, g.name))
			})
			w.history.fault("and at the same time: %s", second.name)
			healSecond := second.apply(w, ctx, rnd)
			pause(ctx, time.Duration(500+rnd.IntN(2000))*time.Millisecond)
			healSecond()
			w.history.fault("healed: %s", second.name)
		}
		heal()
		w.history.fault("healed: %s", f.name)
		pause(ctx, time.Duration(1000+rnd.IntN(3000))*time.Millisecond)
	}
}

// choose returns a fault that may be chosen; any, where none may.
func choose(rnd *rand.Rand, may func(fault) bool) fault {
	for range 1000 {
		if f := pick(rnd, faults); may(f) {
			return f
		}
	}
	return faults[0]
}
