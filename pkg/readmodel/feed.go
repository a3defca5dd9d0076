package readmodel

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/registry"
)

// Feeds tells subscribers about changes of read models: one reader of the log for
// each read model that somebody follows, however many follow it. It is safe for
// concurrent use.
type Feeds struct {
	reader  *Reader
	log     Log
	schemas registry.Schemas
	pool    *pgxpool.Pool
	logger  *slog.Logger

	followers atomic.Int64

	mu      sync.Mutex
	feeds   map[string]*feed
	ctx     context.Context // of all feeds, nil once closed
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// Limits of feeds.
const (
	subscriberBytes = 1 << 20                // that wait for one subscriber; those who are told the same share them
	maxBehind       = 1_000_000              // events that a resumption may lie back
	nearby          = maxStep                // events behind which a feed itself brings somebody up
	feedPause       = 10 * time.Millisecond  // between two looks, so that one statement reads many changes
	feedPoll        = 500 * time.Millisecond // while announcements cannot be relied on
	aliveEvery      = 15 * time.Second
)

// NewFeeds returns feeds of a reader's models. The caller closes them.
func NewFeeds(reader *Reader, pool *pgxpool.Pool, log Log, schemas registry.Schemas, logger *slog.Logger) *Feeds {
	ctx, cancel := context.WithCancel(context.Background())
	return &Feeds{reader: reader, log: log, schemas: schemas, pool: pool, logger: logger, feeds: make(map[string]*feed), ctx: ctx, cancel: cancel}
}

// Close ends all subscriptions with [ErrClosed] and waits for the feeds.
func (f *Feeds) Close() {
	f.cancel()
	f.running.Wait()
}

// Subscribe follows a read model: from now on, or without a gap behind the change
// with an id; then changes may be told again. Changes of one key come in order.
// The ready function is called when something is to be taken after nothing was;
// it must not block. Errors: [ErrUnknownProjection], [ErrChangeID],
// [ErrChangesTooOld], a [*QueryError].
func (f *Feeds) Subscribe(ctx context.Context, name, after string, where Condition, ready func()) (*Subscriber, error) {
	ctx, cancel := context.WithTimeout(ctx, f.reader.patience)
	defer cancel()
	s := &Subscriber{name: name, where: where, budget: subscriberBytes, ready: ready}
	m, now, err := f.standing(ctx, name)
	if err != nil {
		return nil, classify(err)
	}
	if err := where.check(m.Plan); err != nil {
		return nil, err
	}
	j := &joiner{subscriber: s}
	if after != "" {
		if j.at, err = parseStanding(after); err != nil {
			return nil, err
		}
		events, err := j.at.movedTo(now).progress.distance(now.progress)
		if err != nil {
			return nil, err
		}
		if events > maxBehind {
			return nil, ErrChangesTooOld
		}
	}
	return s, f.join(name, j, now)
}

// standing reads the active version and its progress from one snapshot.
func (f *Feeds) standing(ctx context.Context, name string) (*Model, standing, error) {
	for attempt := 0; ; attempt++ {
		m, err := f.reader.models.current(ctx, name)
		if err != nil {
			return nil, standing{}, err
		}
		_, of, err := m.getter.read(ctx, nil, nil)
		if err == nil && of.serves(m) {
			return m, standingAt(m.Version, of.requests.in(of.progress.branch), of.progress), nil
		}
		f.reader.models.forget(m)
		if err != nil && !isGone(err) || attempt == maxFlips {
			return nil, standing{}, errors.Join(err, errNotActive)
		}
	}
}

func (f *Feeds) join(name string, j *joiner, now standing) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx.Err() != nil {
		return ErrClosed
	}
	one := f.feeds[name]
	if one == nil {
		one = &feed{feeds: f, name: name, wake: make(chan struct{}, 1), at: now, told: make(map[answered]bool),
			subscribers: make(map[*Subscriber]struct{}), deriver: f.deriver()}
		f.feeds[name] = one
		f.running.Go(func() { one.run(f.ctx) })
	}
	one.mu.Lock()
	one.joiners = append(one.joiners, j)
	one.mu.Unlock()
	one.nudge()
	return nil
}

// Followers returns how many subscribers there are, those that are being caught up
// apart.
func (f *Feeds) Followers() int { return int(f.followers.Load()) }

func (f *Feeds) deriver() *deriver {
	return &deriver{log: f.log, schemas: f.schemas, folders: make(map[*Model]*projection.Folder)}
}

// feed tells all subscribers of one read model. Its goroutine alone touches what
// is not under mu.
type feed struct {
	feeds   *Feeds
	name    string
	wake    chan struct{}
	deriver *deriver

	model       *Model
	at          standing          // what subscribers were told of
	told        map[answered]bool // of the requests behind it
	asked       time.Time         // when requests were looked at last
	subscribers map[*Subscriber]struct{}

	mu      sync.Mutex
	joiners []*joiner
}

func (f *feed) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// run tells until nobody listens any more.
func (f *feed) run(ctx context.Context) {
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	defer f.end()
	for {
		moved := f.feeds.reader.watcher.Moved()
		if err := f.advance(ctx); err != nil && ctx.Err() == nil {
			f.feeds.logger.Warn("following changes is interrupted", "projection", f.name, "err", err)
		}
		timer := time.NewTimer(feedPause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		timer.Reset(feedPoll)
		select {
		case <-ctx.Done():
		case <-moved:
		case <-f.wake:
		case <-timer.C:
		case <-alive.C:
			f.tell(&Batch{Alive: true})
		}
		timer.Stop()
		if ctx.Err() != nil || f.retire() {
			return
		}
	}
}

// retire ends a feed that nobody listens to.
func (f *feed) retire() bool {
	for s := range f.subscribers {
		if s.gone() {
			delete(f.subscribers, s)
			f.feeds.followers.Add(-1)
		}
	}
	f.feeds.mu.Lock()
	defer f.feeds.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.subscribers)+len(f.joiners) > 0 {
		return false
	}
	if f.feeds.feeds[f.name] == f {
		delete(f.feeds.feeds, f.name)
	}
	return true
}

func (f *feed) end() {
	f.feeds.mu.Lock()
	if f.feeds.feeds[f.name] == f {
		delete(f.feeds.feeds, f.name)
	}
	f.feeds.mu.Unlock()
	f.mu.Lock()
	joiners := f.joiners
	f.joiners = nil
	f.mu.Unlock()
	for _, j := range joiners {
		j.subscriber.end(ErrClosed)
	}
	for s := range f.subscribers {
		s.end(ErrClosed)
		f.feeds.followers.Add(-1)
	}
}

func (f *feed) tell(b *Batch) {
	for s := range f.subscribers {
		s.tell(b)
	}
}

// advance tells what has changed since the last time, and takes in joiners.
func (f *feed) advance(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := f.deriver.prepare(ctx, f.feeds.pool); err != nil {
		return err
	}
	f.mu.Lock()
	joiners := f.joiners
	f.joiners = nil
	f.mu.Unlock()
	current := len(joiners) == 0 && f.current()
	if current && time.Since(f.asked) < feedPoll {
		return nil
	}
	err := error(nil)
	if !current {
		err = f.follow(ctx)
	}
	if err == nil {
		err = f.followRequests(ctx)
	}
	if err != nil {
		f.mu.Lock()
		f.joiners = append(f.joiners, joiners...)
		f.mu.Unlock()
		return err
	}
	for _, j := range joiners {
		f.admit(ctx, j)
	}
	return nil
}

// current tells whether the watcher knows of nothing that was not told.
func (f *feed) current() bool {
	w := f.feeds.reader.watcher
	if f.model == nil || !w.serves(f.model) {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.positions[f.model.id]
	return p != nil && f.at.progress.branch == w.validity.branch.Load() && f.at.progress.Covers(p.progress.Token())
}

// follow brings all subscribers up to the present.
func (f *feed) follow(ctx context.Context) error {
	m, now, err := f.feeds.standing(ctx, f.name)
	if err != nil {
		return err
	}
	f.model = m
	to := now.progress
	if !f.at.isOf(now) {
		f.at = f.at.movedTo(now)
		clear(f.told) // a failover gives the ids of requests that it has lost again
		f.flip()
	}
	if _, err := f.at.progress.distance(to); err != nil {
		f.restart(to, err)
	}
	for !f.at.progress.reaches(to) {
		changes, reached, err := f.deriver.step(ctx, m, f.at, to)
		if errors.Is(err, ErrChangesTooOld) {
			f.restart(to, err)
			continue
		}
		if err != nil {
			return err
		}
		f.at = reached
		if len(changes) > 0 {
			f.tell(newBatch(m, changes))
		}
	}
	return nil
}

// flip tells that any row may differ from here on.
func (f *feed) flip() {
	f.tell(flipped(f.model, f.at))
}

// followRequests tells what came of requests about parked streams. All of those up
// to the low-water mark that is read first are in the statement that follows.
func (f *feed) followRequests(ctx context.Context) error {
	f.asked = time.Now()
	done := max(f.at.requests, f.feeds.reader.watcher.validity.requests.Load().in(f.at.progress.branch))
	changes, err := f.deriver.answered(ctx, f.feeds.pool, f.model, f.at, f.told)
	switch {
	case errors.Is(err, errTooManyAnswered):
		f.flip()
	case err != nil:
		return err
	case len(changes) > 0:
		f.tell(newBatch(f.model, changes))
	}
	f.at.requests = done
	maps.DeleteFunc(f.told, func(a answered, _ bool) bool { return a.id <= done })
	return nil
}

// restart begins anew where the log cannot be followed: it has lost its tail, or
// was archived beyond us. Nobody can go on.
func (f *feed) restart(at *Progress, err error) {
	for s := range f.subscribers {
		s.end(err)
	}
	f.at.progress = at
}

func (p *Progress) reaches(to *Progress) bool {
	events, err := p.distance(to)
	return err == nil && events == 0
}

func flipped(m *Model, at standing) *Batch {
	return newBatch(m, []Change{{Kind: Flipped, Token: at.progress.TokenText(), ID: at.id(), Version: m.Version.Number}})
}

// started tells a new subscriber where it stands, so that it can resume before
// anything has changed.
func started(m *Model, at standing) *Batch {
	return &Batch{Model: m, Alive: true, Changes: []Change{{ID: at.id(), Version: m.Version.Number}}}
}

func isGone(err error) bool { return postgres.IsCode(err, "42P01") }

func (d *deriver) prepare(ctx context.Context, pool *pgxpool.Pool) error {
	if d.categories != nil {
		return nil
	}
	list, err := eventstore.ReadCategories(ctx, pool)
	if err != nil {
		return err
	}
	d.categories = make(map[string]eventstore.Category)
	for _, c := range list {
		d.categories[c.Name] = c
	}
	return nil
}
