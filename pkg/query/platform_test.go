package query_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/rebuilder"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/pkg/relay"
)

// platform is a world in which nothing is done by the test: the store appends, the
// relay carries, engines fold, and versions come from rebuilds.
type platform struct {
	*world
	brokers     []string
	store       *eventstore.Store
	definitions []*projection.Definition
}

func startPlatform(t testing.TB, definitions ...string) *platform {
	t.Helper()
	p := &platform{world: newWorld(t), brokers: devstack.FakeKafka(t)}
	for _, text := range definitions {
		list, err := projection.ParseDefinitions("test.yaml", []byte(text))
		require.NoError(t, err)
		p.definitions = append(p.definitions, list...)
	}
	p.store = eventstore.New(eventstore.Config{DatabaseURL: p.url()}, p.log(), prometheus.NewRegistry())
	require.NoError(t, p.store.EnsureCategories(ctx, p.pool, []eventstore.CategorySpec{{Name: "Item", Slots: slots, Partitions: partitions, Topic: "refold.item"}}))
	carrier := relay.New(relay.Config{DatabaseURL: p.url(), Kafka: kafka.Config{Brokers: p.brokers}}, p.log(), prometheus.NewRegistry())
	p.store.OnCommit(func(string, []int) { carrier.Wake() })
	p.run(p.store.Run)
	p.run(carrier.Run)
	return p
}

// run runs something until the test ends or stop is called, which waits for it.
func (p *platform) run(what func(context.Context) error) (stop func()) {
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := what(running); err != nil {
			p.t.Errorf("running: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	p.t.Cleanup(stop)
	return stop
}

func (p *platform) log() *slog.Logger { return slog.New(slog.NewTextHandler(p.t.Output(), nil)) }

// member adds an engine to those that share the partitions of every version.
func (p *platform) member(name string) (stop func()) {
	p.t.Helper()
	e := engine.New(engine.Config{DatabaseURL: p.url(), Kafka: kafka.Config{Brokers: p.brokers}, Prefix: "refold", Owner: name}, p.pool, registry.New(p.pool),
		eventstore.NewReader(p.pool), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	return p.run(func(ctx context.Context) error {
		return e.Follow(ctx, func(ctx context.Context) ([]engine.Feed, error) {
			return engine.Setup(ctx, p.pool, p.contracts, p.definitions, nil)
		})
	})
}

// storm has a second engine come and go until stop is called, which returns how
// often it came, so that partitions move all the time.
func (p *platform) storm() (stop func() int) {
	ended, counted := make(chan struct{}), make(chan int, 1)
	go func() {
		for n := 1; ; n++ {
			leave := p.member(fmt.Sprintf("guest-%d", n))
			over := waitOr(ended, 2*time.Second+rand.N(2*time.Second))
			leave()
			if over || waitOr(ended, rand.N(time.Second)) {
				counted <- n
				return
			}
		}
	}()
	return func() int { close(ended); return <-counted }
}

func waitOr(ended <-chan struct{}, d time.Duration) (over bool) {
	select {
	case <-ended:
		return true
	case <-time.After(d):
		return false
	}
}

// append appends one event to the stream of a row: its new members, or its end
// for nil.
func (p *platform) append(key string, data *string) (event.Token, error) {
	typ, body := "ItemGone", `{}`
	if data != nil {
		typ, body = "ItemSet", *data
	}
	value, err := p.encode[typ](body)
	if err != nil {
		return nil, err
	}
	done, err := p.store.Append(ctx, &eventstore.Request{Appends: []eventstore.Append{{Category: "Item", Stream: key, Events: []eventstore.NewEvent{{Type: typ, Value: value}}}}})
	if err != nil {
		return nil, err
	}
	return done.Token(), nil
}

func (p *platform) put(key string, n int) event.Token {
	p.t.Helper()
	data := row(fmt.Sprintf(`{"n": %d, "color": "RED"}`, n))
	token, err := p.append(key, &data)
	require.NoError(p.t, err)
	return token
}

// settle is put that waits until it can be read.
func (p *platform) settle(r *replica, key string, n int) {
	p.t.Helper()
	a := r.get(items+"/"+key, "Refold-Token", p.put(key, n).String(), "Refold-Wait", "30s")
	require.Equal(p.t, http.StatusOK, a.status, a.body)
}

func (p *platform) rebuilder() *rebuilder.Rebuilder {
	return rebuilder.New(rebuilder.Config{DatabaseURL: p.url(), Kafka: kafka.Config{Brokers: p.brokers}, Prefix: "refold", Owner: "test", LeaseTime: 2 * time.Second},
		rebuilder.Deps{Pool: p.pool, Schemas: registry.New(p.pool), Contracts: p.contracts, Definitions: p.definitions, Logger: slog.New(slog.DiscardHandler)})
}

// rebuild builds the next version and has it serve.
func (p *platform) rebuild() {
	p.t.Helper()
	_, err := p.rebuilder().Run(ctx, "items", rebuilder.Options{Verify: rebuilder.VerifySample}, nil)
	require.NoError(p.t, err)
}

// rollBack has the version serve that did before, and returns its number.
func (p *platform) rollBack() int {
	p.t.Helper()
	former, err := p.rebuilder().RollBack(ctx, "items")
	require.NoError(p.t, err)
	return former
}

// served waits until there is a version at all.
func (p *platform) served() {
	p.t.Helper()
	eventually(p.t, "version 1 serves", func() bool {
		_, err := readmodel.NewCatalogue(p.pool).Active(ctx, "items")
		return err == nil
	})
}
