package readmodel

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
)

// Watcher knows how far every version has come and which one is active, so that
// those who wait for progress need not ask the database, and invalidates what is
// kept of rows that changed. One session listens to announcements and looks at
// the database itself every half second; with that look it finds announcements
// that were lost on the way or never sent.
//
// What it says is a hint: it may be behind, and after a failover that lost the
// tail of the log it may be ahead until the session is found broken. So an answer
// is always judged by the progress in its own snapshot.
//
// How old a kept answer can be: the time an announcement takes, a few
// milliseconds. Where announcements are lost although the session lives (their
// sender died after its commit), two looks: one second. Where the session is cut,
// nothing kept is given any more from the moment it is known, and at the latest
// 3 s after the last look that succeeded, however the session fails: [MaxUnseen].
//
// It is safe for concurrent use.
type Watcher struct {
	url      string
	log      *slog.Logger
	validity *validity
	active   atomic.Pointer[map[string]activeVersion] // as the last look found them; nil while nobody listens

	mu        sync.Mutex
	up        bool
	looked    time.Time // when the last look that succeeded began
	positions map[versionID]*position
	moved     chan struct{} // closed at the next move of anything, then replaced
	inspected chan struct{} // closed at the next look that succeeds, then replaced
	interrupt context.CancelFunc
	asked     bool // a look was asked for
}

// MaxUnseen bounds how long kept answers are given without a sign of life of the
// session that announces changes.
const MaxUnseen = 3 * time.Second

const (
	lookEvery   = 500 * time.Millisecond
	lookPause   = 10 * time.Millisecond // between looks that were asked for
	lookTimeout = 2 * time.Second
	overdue     = 700 * time.Millisecond
)

// activeVersion is a number and the revision of the catalogue's entry.
type activeVersion struct {
	number   int
	revision string
}

// position is what is known of a version.
type position struct {
	progress   *Progress
	partitions map[partitionKey]*partitionPosition
	behind     time.Duration // the age of the oldest event that was not applied, at the last look
}

type partitionKey struct {
	category              string
	generation, partition int
}

type partitionPosition struct {
	slots     []int16
	seqs      []int64
	announced int64 // the offset up to which all changes were announced
	seen      int64 // the offset at the last look
}

// NewWatcher returns a watcher of a database. Run makes it work.
func NewWatcher(url string, log *slog.Logger) *Watcher {
	return &Watcher{url: url, log: log, validity: newValidity(), positions: make(map[versionID]*position), moved: make(chan struct{}), inspected: make(chan struct{})}
}

// Moved returns a channel that is closed when anything may have moved after the
// call.
func (w *Watcher) Moved() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.moved
}

// serves tells whether the last look found that this model is the one to answer
// from; false while nobody listens.
func (w *Watcher) serves(m *Model) bool {
	active := w.active.Load()
	return active != nil && (*active)[m.id.projection] == activeVersion{m.id.number, m.revision}
}

// expect tells whether it is worth asking the database for rows that contain a
// token; where not, the channel is closed when something has moved. It is always
// worth it while looks are overdue: then whoever waits asks every so often.
func (w *Watcher) expect(id versionID, token event.Token) (worth bool, moved <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.positions[id]
	return !w.up || p == nil || time.Since(w.looked) > overdue || p.progress.Covers(token), w.moved
}

// lag returns how far behind the log the version was and when that was seen.
func (w *Watcher) lag(id versionID) (behind time.Duration, at time.Time, known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.positions[id]
	if p == nil || !w.up {
		return 0, time.Time{}, false
	}
	return p.behind, w.looked, true
}

// look asks for a look at the database soon; the channel is closed after one.
func (w *Watcher) look() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = true
	if w.interrupt != nil {
		w.interrupt()
	}
	return w.inspected
}

// wake tells all who wait. The caller holds mu.
func (w *Watcher) wake() {
	close(w.moved)
	w.moved = make(chan struct{})
}

// Run listens until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		// Readers go on without: they ask the database themselves.
		if err := w.listen(ctx); err != nil && ctx.Err() == nil {
			w.log.Warn("listening to changes is interrupted: nothing is kept meanwhile", "err", err)
		}
		w.lose()
		timer := time.NewTimer(100 * time.Millisecond)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// lose forgets what depends on hearing of every change.
func (w *Watcher) lose() {
	w.validity.lost()
	w.active.Store(nil)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.up = false
	clear(w.positions)
	w.wake()
}

// listen ends when its session does.
func (w *Watcher) listen(ctx context.Context) error {
	conn, err := postgres.Connect(ctx, postgres.Config{URL: w.url, AppName: "refold-queries-listen", ByKey: true, StatementTimeout: lookTimeout})
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		conn.Close(ctx)
	}()
	listening, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	// The other channel tells of flips and retirements, see [Announce].
	if _, err := conn.Exec(listening, `listen `+Channel+`; listen refold_catalogue`); err != nil {
		return err
	}
	for due, earliest := time.Now(), time.Now(); ; {
		if w.takeAsked() {
			due = earliest
		}
		if !time.Now().Before(due) {
			due, earliest = time.Now().Add(lookEvery), time.Now().Add(lookPause)
			if err := w.inspect(ctx, conn); err != nil {
				return err
			}
		}
		if err := w.hear(ctx, conn, due); err != nil {
			return err
		}
	}
}

func (w *Watcher) takeAsked() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	asked := w.asked
	w.asked = false
	return asked
}

// hear takes in notifications until due, or until a look is asked for.
func (w *Watcher) hear(ctx context.Context, conn *pgx.Conn, due time.Time) error {
	waiting, cancel := context.WithDeadline(ctx, due)
	defer cancel()
	w.mu.Lock()
	w.interrupt = cancel
	w.mu.Unlock()
	for {
		n, err := conn.WaitForNotification(waiting)
		switch {
		case err == nil:
			w.take(n.Payload)
		case ctx.Err() != nil || waiting.Err() == nil || conn.IsClosed():
			return err
		default:
			return nil
		}
	}
}

// take takes in a notification.
func (w *Watcher) take(payload string) {
	a, err := ParseAnnouncement(payload)
	if err != nil { // of the catalogue, or of somebody else
		w.active.Store(nil) // which version serves is to be looked up
		w.mu.Lock()
		w.asked = true
		w.interrupt()
		w.mu.Unlock()
		return
	}
	id := versionID{a.Projection, a.Version}
	w.validity.changed(id, a.Keys, a.Many)
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.positions[id]; p != nil {
		w.move(p, a)
	}
	w.wake()
}

// move brings a position forward. One that does not follow on what was announced
// leaves a hole, which the next looks find.
func (w *Watcher) move(p *position, a Announcement) {
	part := p.partitions[partitionKey{a.Category, a.Generation, a.Partition}]
	if part == nil {
		return
	}
	if a.From <= part.announced {
		part.announced = max(part.announced, a.To)
	}
	if len(a.Seqs) != len(part.slots) {
		w.asked = true
		w.interrupt()
		return
	}
	for i, seq := range a.Seqs {
		part.seqs[i] = max(part.seqs[i], seq)
	}
	p.progress = p.join()
}

func (p *position) join() *Progress {
	var b progressBuilder
	for key, part := range p.partitions {
		b.add(key.category, part.slots, part.seqs, nil)
	}
	return &b.p
}

const lookSQL = `select v.projection, v.version, v.state = 'active', v.xmin::text, p.category, p.generation, p.partition, p.next_offset, p.slots, p.seqs,
		coalesce((select extract(epoch from clock_timestamp() - min((select e.recorded from refold.event e where e.category = c.id and e.slot = u.slot and e.seq = u.seq + 1)))::float8
			from refold.category c cross join unnest(p.slots, p.seqs) u (slot, seq) where c.name = p.category), 0),
		coalesce((select min(id) - 1 from refold.row_request where done is null), (select max(id) from refold.row_request where requested < clock_timestamp() - interval '10 s'), 0), ` + branchSQL + `
	from refold.projection_version v join refold.progress p on p.projection = v.projection and p.version = v.version
	where v.state <> 'retired' and p.phase <> 'loading'`

// inspect looks at the database: it is the sign of life of the session, and finds
// what was not announced.
func (w *Watcher) inspect(ctx context.Context, conn *pgx.Conn) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	rows, err := conn.Query(ctx, lookSQL)
	if err != nil {
		return err
	}
	positions, active := make(map[versionID]*position), make(map[string]activeVersion)
	var id versionID
	var isActive bool
	var revision string
	var key partitionKey
	var next int64
	var slots []int16
	var seqs []int64
	var behind float64
	var branch []int64
	var requests int64 // an insertion that is not seen yet has a later id, within 10 s
	_, err = pgx.ForEachRow(rows, []any{&id.projection, &id.number, &isActive, &revision, &key.category, &key.generation, &key.partition, &next, &slots, &seqs, &behind, &requests, &branch}, func() error {
		p := positions[id]
		if p == nil {
			p = &position{partitions: make(map[partitionKey]*partitionPosition)}
			positions[id] = p
		}
		if isActive {
			active[id.projection] = activeVersion{id.number, revision}
		}
		p.behind = max(p.behind, time.Duration(behind*float64(time.Second)))
		p.partitions[key] = &partitionPosition{slots: slots, seqs: seqs, announced: next, seen: next}
		slots, seqs = nil, nil
		return nil
	})
	if err != nil {
		return fmt.Errorf("looking at progress: %w", err)
	}
	w.validity.requests.Store(&carriedOut{requests, branchOf(branch)})
	w.validity.branch.Store(branchOf(branch))
	w.compare(began, positions, active)
	return nil
}

// compare takes in what a look has found. A partition that had come farther by
// the look before than all announcements since then has changed rows unheard.
func (w *Watcher) compare(began time.Time, found map[versionID]*position, active map[string]activeVersion) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, p := range found {
		was := w.positions[id]
		for key, part := range p.partitions {
			if was == nil || was.partitions[key] == nil {
				continue // its announcements count from here on
			}
			old := was.partitions[key]
			if old.announced < old.seen {
				w.validity.changed(id, nil, true)
				old.announced = old.seen
			}
			if part.seen < old.announced { // the database has lost its tail: what was heard before had been committed before
				w.validity.flush()
				continue
			}
			part.announced = old.announced
		}
		p.progress = p.join()
	}
	for id := range w.positions {
		if found[id] == nil {
			w.validity.changed(id, nil, true)
		}
	}
	before := w.active.Swap(&active)
	moved := before == nil || !maps.Equal(*before, active) || !maps.EqualFunc(w.positions, found, func(a, b *position) bool { return a.progress.TokenText() == b.progress.TokenText() })
	if !w.validity.reliable(time.Now()) {
		w.validity.flush() // what is kept may be older than what was read meanwhile
	}
	w.positions, w.up, w.looked = found, true, began
	w.validity.rely(began.Add(MaxUnseen))
	close(w.inspected)
	w.inspected = make(chan struct{})
	if moved {
		w.wake()
	}
}
