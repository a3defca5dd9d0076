package service

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/postgres"
)

// errSchema is wrapped while the database lacks migrations: the writer applies
// them when it starts.
var errSchema = errors.New("the database's schema is older than this program")

// checkSchema tells whether the database has every migration that this program
// was built with. While a rolling upgrade goes on it may have more.
func checkSchema(ctx context.Context, pool *pgxpool.Pool) error {
	missing, err := postgres.Missing(ctx, pool)
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("%w: it lacks the migrations %v: `writer serve` or `writer migrate` applies them", errSchema, missing)
	}
	return err
}

// checkDatabase adds a line to /readyz for a component's database.
func (h *Host) checkDatabase(pool *pgxpool.Pool) {
	h.Health.Check("postgres", pool.Ping)
	h.Health.Check("schema", func(ctx context.Context) error { return checkSchema(ctx, pool) })
}

// brokersUnreachable says that no broker answers.
type brokersUnreachable struct{ err error }

func (e *brokersUnreachable) Error() string {
	return "no Kafka broker answers: " + e.err.Error()
}

func (e *brokersUnreachable) Unwrap() error { return e.err }

// broker asks the brokers whether they are there. Its client is made at the first
// question and sleeps between questions.
type broker struct {
	cfg kafka.Config

	mu     sync.Mutex
	client *kgo.Client
}

// ping returns an error of the settings, or a *brokersUnreachable.
func (b *broker) ping(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.client == nil {
		options, err := b.cfg.Options()
		if err != nil {
			return Usage(err).Try("set --kafka-bootstrap-servers (KAFKA_BOOTSTRAP_SERVERS)")
		}
		if b.client, err = kgo.NewClient(append(options, kgo.RequestRetries(0))...); err != nil {
			return Usage(fmt.Errorf("making a Kafka client: %w", err))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if err := b.client.Ping(ctx); err != nil {
		return &brokersUnreachable{err}
	}
	return nil
}

func (b *broker) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.client != nil {
		b.client.Close()
	}
}

// wake carries any number of calls of set to one reader, who then pauses for a
// moment, so that many become one.
type wake chan struct{}

func newWake() wake { return make(wake, 1) } // one token stands for any number

func (w wake) set() {
	select {
	case w <- struct{}{}:
	default:
	}
}

// each calls f after every set, at most once in a pause, until ctx ends.
func (w wake) each(ctx context.Context, pause time.Duration, f func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w:
		}
		f()
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}
