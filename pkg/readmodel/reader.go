package readmodel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
)

// Config bounds a reader. The zero value of each field takes its default.
type Config struct {
	// StatementTimeout ends a statement that takes too long, with
	// [ErrTooExpensive]; 5 s.
	StatementTimeout time.Duration
	// CacheBytes bounds the answers that are kept; 64 MiB, none when negative.
	CacheBytes int
	// StrictRows is the size of a version, in rows, from which on a query that no
	// index serves is refused; 10,000, never when negative.
	StrictRows int64
	// CursorKey signs cursors, the same on all replicas; when empty, one that is
	// kept in the database.
	CursorKey []byte
	// CacheTTL is the longest that an answer is kept, whatever is heard of it; a
	// minute.
	CacheTTL time.Duration
}

func (c Config) withDefaults() Config {
	if c.StatementTimeout == 0 {
		c.StatementTimeout = 5 * time.Second
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = 64 << 20
	}
	if c.StrictRows == 0 {
		c.StrictRows = 10_000
	}
	if c.CacheTTL == 0 {
		c.CacheTTL = time.Minute
	}
	return c
}

// Reader answers queries from the active versions of projections. Every answer
// comes from one snapshot of the database, in which the version was active; its
// token tells what it contains. It is safe for concurrent use.
type Reader struct {
	pool    *pgxpool.Pool // read only, every statement or pipeline in one snapshot
	models  *models
	watcher *Watcher
	cache   *cache
	fills   *fills
	signer  *signer
	exports chan struct{} // of the size of maxExports: a place for each

	strictRows int64
}

// NewReader returns a reader on the database of a pool, with sessions of its own.
// The caller closes it.
func NewReader(ctx context.Context, cfg Config, from *pgxpool.Pool, plans *Plans, watcher *Watcher) (*Reader, error) {
	cfg = cfg.withDefaults()
	sessions := from.Config()
	p := sessions.ConnConfig.RuntimeParams
	p["default_transaction_isolation"], p["default_transaction_read_only"] = "repeatable read", "on"
	p["statement_timeout"] = fmt.Sprint(cfg.StatementTimeout.Milliseconds())
	pool, err := pgxpool.NewWithConfig(ctx, sessions)
	if err != nil {
		return nil, fmt.Errorf("opening the pool of queries: %w", err)
	}
	answers, err := newCache(watcher.validity, watcher, cfg.CacheBytes, cfg.CacheTTL)
	if err != nil {
		pool.Close()
		return nil, err
	}
	r := &Reader{pool: pool, models: newModels(pool, plans, watcher.validity), watcher: watcher, cache: answers,
		fills: &fills{timeout: 2 * cfg.StatementTimeout, running: make(map[cacheKey]*fill)}, signer: &signer{pool: from}, exports: make(chan struct{}, maxExports), strictRows: cfg.StrictRows}
	if len(cfg.CursorKey) > 0 {
		r.signer.key = cfg.CursorKey
	}
	return r, nil
}

// Close ends the reader's sessions.
func (r *Reader) Close() { r.pool.Close() }

// CacheStats returns how many answers were given from what is kept, and how many
// had to be read, since the reader was made.
func (r *Reader) CacheStats() (hits, misses uint64) {
	return r.cache.hits.Load(), r.cache.misses.Load()
}

// Fresh says what an answer must contain, and how long to wait for it.
type Fresh struct {
	Token event.Token
	Wait  time.Duration
	// MaxStaleness bounds how old an answer may be; 0 is no bound.
	MaxStaleness time.Duration
}

// Errors of reading.
var (
	ErrNoRow = errors.New("no such row")
	// ErrNotCaughtUp says that the rows do not contain the token yet.
	ErrNotCaughtUp = errors.New("the rows do not contain the token yet")
	// ErrTooStale says that the rows are older than the client allows.
	ErrTooStale = errors.New("the rows are older than the client allows")
	// ErrParked says that an event of the token waits in a parked stream.
	ErrParked = errors.New("an event of the token waits in a parked stream")
	// ErrTooExpensive says that a query ran out of time.
	ErrTooExpensive = errors.New("the query took too long")
	// ErrBusy says that too much of its kind is under way; try again.
	ErrBusy = errors.New("as many exports are under way as may be: try again")
	// ErrTooMany says that a filter selects more rows than can be returned at once.
	ErrTooMany = errors.New("more rows than can be returned at once")
	// ErrBadKey says that a key holds what no key can.
	ErrBadKey = errors.New("a key is valid UTF-8 without NUL")

	errStopped   = errors.New("the iteration was ended")
	errNotActive = errors.New("the version is not active any more")
)

// Answer says where an answer comes from.
type Answer struct {
	Version Version
	// AsOf is a moment up to which all that was recorded is contained; zero when
	// it is not known.
	AsOf time.Time

	progress *Progress
	requests int64 // see [standing]
	asked    event.Token
	stream   string // the row's key, when one stream feeds it
	byStream bool
}

// Token returns what the answer contains: a client that sends it with the next
// request never goes back in time. Of a row that one stream feeds it names the
// slot of that stream alone, and what was asked for.
func (a Answer) Token() event.Token {
	mark, ok := a.progress.ofStream(a.stream)
	if !a.byStream || !ok {
		return a.progress.Token()
	}
	marks := make([]event.Mark, 0, 1+len(a.asked))
	if mark.Seq > 0 {
		marks = append(marks, mark)
	}
	for _, m := range a.asked {
		if m.Category == mark.Category && m.Slot != mark.Slot {
			m.Written = false
			marks = append(marks, m)
		}
	}
	return event.NewToken(marks...)
}

// TokenText is Token().String().
func (a Answer) TokenText() string {
	if !a.byStream {
		return a.progress.TokenText()
	}
	return a.Token().String()
}

// ChangeID returns the id behind which [Feeds.Subscribe] goes on from the answer
// without a gap.
func (a Answer) ChangeID() string { return standingAt(a.Version, a.requests, a.progress).id() }

func isNotActive(err error) bool { return errors.Is(err, errNotActive) }

// Get returns the row with a key as JSON, or [ErrNoRow], for which the answer is
// valid too.
func (r *Reader) Get(ctx context.Context, name, key string, fresh Fresh) (row []byte, from Answer, err error) {
	if !utf8.ValidString(key) || strings.IndexByte(key, 0) >= 0 {
		return nil, from, ErrBadKey
	}
	marks := written(fresh.Token)
	var e *entry
	pick := func(ctx context.Context) (*Model, bool, error) {
		m, err := r.models.current(ctx, name)
		return m, false, err
	}
	from, err = r.answer(ctx, pick, fresh, func(m *Model, fromCache bool) (*snapshot, error) {
		k := cacheKey{leaf: m.Version.Leaf, query: key}
		if fromCache {
			if e = r.cache.find(m, k, fresh.Token); e != nil {
				return e.of, nil
			}
		}
		c, err := m.getter.get(ctx, key, marks)
		if err != nil {
			return nil, err
		}
		e = &entry{row: c.row, keys: []uint32{HashKey(key)}, of: c.of}
		if c.of.serves(m) {
			r.cache.keep(m, k, e)
		}
		return e.of, nil
	})
	from.stream = key
	if err == nil && e.row == nil {
		err = ErrNoRow
	}
	if e != nil {
		row = e.row
	}
	return row, from, err
}

// answer asks read for rows of the version that pick finds until their snapshot
// contains what the client wants, within its wait. Unless it is pinned the version
// must be active in that snapshot.
func (r *Reader) answer(ctx context.Context, pick func(context.Context) (m *Model, pinned bool, err error), fresh Fresh,
	read func(m *Model, fromCache bool) (*snapshot, error)) (from Answer, err error) {
	cached, doubted := true, false
	var wrong *QueryError
	var deadline, tick <-chan time.Time // set at the first wait
	for attempt, flips := 0, 0; ; attempt++ {
		m, pinned, err := pick(ctx)
		if err != nil {
			return from, classify(err)
		}
		worth, moved := true, (<-chan struct{})(nil)
		if len(fresh.Token) > 0 {
			worth, moved = r.watcher.expect(m.id, fresh.Token)
		}
		err = ErrNotCaughtUp
		if worth || attempt == 0 && fresh.Wait == 0 {
			moved = r.watcher.Moved() // before reading, so that no move is missed
			var of *snapshot
			of, err = read(m, cached && (pinned || r.watcher.serves(m)))
			if err == nil {
				from = r.from(m, of, fresh)
				err = r.judge(m, of, pinned, from, fresh)
			}
			if pinned {
				err = numberedGone(err)
			}
		}
		switch {
		case errors.Is(err, errNotActive), isGone(err): // flipped or retired: look again
			r.models.forget(m)
			if flips++; flips <= maxFlips {
				continue
			}
			return from, classify(err)
		case errors.As(err, &wrong) && !pinned && !doubted: // by a definition that may have changed in place
			doubted = true
			r.models.forget(m)
			continue
		case errors.Is(err, ErrTooStale):
			cached, moved = false, r.watcher.look()
		case !errors.Is(err, ErrNotCaughtUp):
			return from, classify(err)
		}
		if deadline == nil {
			timer := time.NewTimer(fresh.Wait)
			defer timer.Stop()
			deadline = timer.C
			ticker := time.NewTicker(askEvery)
			defer ticker.Stop()
			tick = ticker.C
		}
		select {
		case <-moved:
		case <-tick: // looks whether it is worth asking, even if nothing is heard
		case <-deadline:
			return from, err
		case <-ctx.Done():
			return from, context.Cause(ctx)
		}
	}
}

// askEvery is how often one who waits asks while nothing can be heard.
const askEvery = 100 * time.Millisecond

// maxFlips bounds how often a query looks for the active version again, however
// often it has waited.
const maxFlips = 10

func (r *Reader) judge(m *Model, of *snapshot, pinned bool, from Answer, fresh Fresh) error {
	switch {
	case pinned && (of.state == "" || of.state == stateRetired):
		return ErrCursorExpired
	case !pinned && !of.serves(m):
		return errNotActive
	}
	if len(fresh.Token) > 0 {
		if err := of.judge(fresh.Token); err != nil {
			return err
		}
	}
	if fresh.MaxStaleness > 0 && (from.AsOf.IsZero() || time.Since(from.AsOf) > fresh.MaxStaleness) {
		return ErrTooStale
	}
	return nil
}

// from says where an answer comes from. It contains all that the version had
// applied when it was read, and what that was is known since the last look.
func (r *Reader) from(m *Model, of *snapshot, fresh Fresh) Answer {
	from := Answer{Version: m.Version, progress: of.progress, requests: of.requests, asked: fresh.Token, byStream: !m.Plan.Shared()}
	if behind, at, known := r.watcher.lag(m.id); known {
		if of.at.Before(at) {
			at = of.at
		}
		from.AsOf = at.Add(-behind)
	}
	return from
}

// classify tells what ran out of time, be it a statement, the wait for a session or
// the whole.
func classify(err error) error {
	if postgres.Classify(err) == postgres.ClassTimeout || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ErrTooExpensive, err)
	}
	return err
}
