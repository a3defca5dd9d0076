package relay

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/postgres"
)

// session is one database session and what is owned within it. Its fields belong
// to the loop; other goroutines reach it through Relay.post alone.
type session struct {
	*Relay
	client      *kgo.Client
	admin       *kadm.Client
	compressor  kgo.Compressor
	conn        *pgx.Conn
	incarnation postgres.Incarnation
	owned       map[key]*partition
	leaders     leaders
	inspecting  map[string]bool // topics that are being looked at
	warned      map[string]bool // topics whose warnings were logged
	tail        *tail           // nil while nothing is compared
	free        []*batch
	buffered    int       // bytes read and not acknowledged, roughly
	flights     int       // requests without an answer
	backlog     bool      // the last read left events behind
	gathering   bool      // reading waits for more to come
	requested   time.Time // when the last request left
	restUntil   time.Time // reading waits for more to come after the last answer
	background  sync.WaitGroup
	stopBrokers context.CancelFunc
	brokers     context.Context // of requests to brokers

	nextPoll, nextRenew, nextCursor, oldWarned time.Time
}

func (r *Relay) session(ctx context.Context, client *kgo.Client) (err error) {
	conn, err := postgres.Connect(ctx, postgres.Config{URL: r.cfg.DatabaseURL, AppName: "refold-relay", ByKey: true, StatementTimeout: 20 * time.Second})
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		conn.Close(closing)
	}()
	compressor, err := kgo.DefaultCompressor(kgo.SnappyCompression())
	if err != nil {
		return err
	}
	s := &session{Relay: r, client: client, admin: kadm.NewClient(client), compressor: compressor, conn: conn, owned: make(map[key]*partition),
		leaders: newLeaders(), inspecting: make(map[string]bool), warned: make(map[string]bool)}
	if err := s.prepare(ctx); err != nil {
		return err
	}
	// Requests outlive ctx: a stop waits for what is in flight.
	s.brokers, s.stopBrokers = context.WithCancel(context.WithoutCancel(ctx))
	defer s.metrics.reset()
	defer s.end()

	listening, stop := context.WithCancel(ctx)
	s.background.Go(func() { r.listen(listening) })
	defer stop()
	err = s.loop(ctx)
	if released := s.release(context.WithoutCancel(ctx)); err == nil {
		err = released
	}
	return err
}

// prepare learns whom it speaks to. Cursors, leases and stops do not wait for the
// disk: all that a crash of the server can lose of them are moves that come behind
// the events they speak of, and ownership ends with the server anyway.
func (s *session) prepare(ctx context.Context) (err error) {
	if s.incarnation, err = postgres.ReadIncarnation(ctx, s.conn); err != nil {
		return err
	}
	if _, err := s.conn.Exec(ctx, `set synchronous_commit = off`); err != nil {
		return fmt.Errorf("setting up the relay's session: %w", err)
	}
	if _, err := s.conn.Prepare(ctx, readName, readSQL); err != nil {
		return fmt.Errorf("preparing to read events: %w", err)
	}
	s.mu.Lock()
	s.inbox, s.all = nil, true
	s.mu.Unlock()
	return nil
}

// end waits for all goroutines of the session.
func (s *session) end() {
	s.stopBrokers()
	s.background.Wait()
	if s.tail != nil {
		s.tail.close()
	}
	s.mu.Lock()
	s.inbox = nil
	s.mu.Unlock()
}

// loop reads, sends and moves cursors until ctx ends.
func (s *session) loop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		s.pump(1)
		if err := s.attend(ctx); err != nil {
			return err
		}
		read, err := s.read(ctx)
		if err != nil {
			return err
		}
		s.pump(1)
		if read {
			continue
		}
		timer.Reset(time.Until(s.nextChore()))
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-timer.C:
		}
	}
	return nil
}

// pump takes in what other goroutines have brought and sends the batches of at
// least so many bytes that can be sent. It does no IO, so it runs between two rows
// of a result too.
func (s *session) pump(least int) {
	s.mu.Lock()
	inbox := s.inbox
	s.inbox = nil
	s.mu.Unlock()
	for _, f := range inbox {
		f()
	}
	s.dispatch(time.Now(), least)
}

// attend does what is due.
func (s *session) attend(ctx context.Context) error {
	s.takeHints()
	if err := s.storeStops(ctx); err != nil {
		return err
	}
	if err := s.compareTails(ctx); err != nil {
		return err
	}
	now := time.Now()
	if !now.Before(s.nextPoll) {
		s.nextPoll = now.Add(s.cfg.Poll)
		s.lookEverywhere()
	}
	if !now.Before(s.nextCursor) {
		s.nextCursor = now.Add(s.cfg.CursorEvery)
		if err := s.moveCursors(ctx); err != nil {
			return err
		}
	}
	if !now.Before(s.nextRenew) {
		s.nextRenew = now.Add(s.cfg.Lease / 4)
		if err := s.share(ctx); err != nil {
			return err
		}
	}
	s.inspectTopics(now)
	return nil
}

// nextChore returns when attend has something to do unless it is woken.
func (s *session) nextChore() time.Time {
	now, next := time.Now(), s.nextRenew
	earlier := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	earlier(s.nextPoll)
	for _, p := range s.owned {
		if p.dirty {
			earlier(s.nextCursor)
		}
		if now.Before(p.retryAt) { // where it is past, somebody is asking already
			earlier(p.retryAt)
		}
		if _, ok := s.leaders.of(p); !ok && p.phase == flowing && now.Before(s.leaders.askAt) {
			earlier(s.leaders.askAt)
		}
	}
	if s.gathering {
		earlier(s.gatheredBy())
	}
	if s.tail != nil {
		earlier(time.Now().Add(5 * time.Millisecond))
	}
	return next
}

// takeHints marks the slots that others have told of.
func (s *session) takeHints() {
	s.mu.Lock()
	var hints map[string]map[int]bool // none while others may write into it
	if len(s.hints) > 0 {
		hints, s.hints = s.hints, make(map[string]map[int]bool)
	}
	all := s.all
	s.all = false
	s.mu.Unlock()
	if all {
		s.lookEverywhere()
		return
	}
	if hints == nil {
		return
	}
	for _, p := range s.owned {
		of := hints[p.name]
		for i := range p.slots {
			if of[p.slots[i].number] {
				p.slots[i].look = true
			}
		}
	}
}

func (s *session) lookEverywhere() {
	for _, p := range s.owned {
		for i := range p.slots {
			p.slots[i].look = true
		}
	}
}

// release waits for what is in flight and gives the partitions back, so that
// others need not wait for the leases to expire.
func (s *session) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, p := range s.owned {
		p.leaving = true
	}
	for s.flights > 0 && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-s.wake:
		}
		s.pump(1)
	}
	if s.conn.IsClosed() {
		return nil
	}
	if err := s.moveCursors(ctx); err != nil {
		return err
	}
	for _, p := range maps.Clone(s.owned) {
		if err := s.giveBack(ctx, p); err != nil {
			return err
		}
	}
	_, err := s.conn.Exec(ctx, `delete from refold.relay_member where owner = $1`, s.cfg.Owner)
	return err
}

// listen wakes the loop when another process has committed events. It is only a
// short cut: the loop polls as well.
func (r *Relay) listen(ctx context.Context) {
	for ctx.Err() == nil {
		if err := r.listenOnce(ctx); err != nil && ctx.Err() == nil {
			wait(ctx, time.Second)
		}
	}
}

func (r *Relay) listenOnce(ctx context.Context) error {
	conn, err := postgres.Connect(ctx, postgres.Config{URL: r.cfg.DatabaseURL, AppName: "refold-relay-listen"})
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		conn.Close(closing)
	}()
	if _, err := conn.Exec(ctx, `listen refold_log`); err != nil {
		return err
	}
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		if r.cfg.Beside == "" || n.Payload != r.cfg.Beside {
			r.Wake()
		}
	}
}
