package readmodel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
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
	byKey   *pgxpool.Pool // likewise, for rows by key
	models  *models
	watcher *Watcher
	cache   *cache
	fills   *fills
	signer  *signer
	exports chan struct{} // of the size of maxExports: a place for each

	strictRows int64
	patience   time.Duration // with the database, for what a query asks of it at once
}

// NewReader returns a reader on the database of a pool, with sessions of its own.
// The caller closes it.
func NewReader(ctx context.Context, cfg Config, from *pgxpool.Pool, plans *Plans, watcher *Watcher) (*Reader, error) {
	cfg = cfg.withDefaults()
	sessions := from.Config()
	sessions.ConnConfig.RuntimeParams["enable_seqscan"] = "off" // see [listing.read]
	pool, err := openSessions(ctx, sessions, cfg.StatementTimeout)
	if err != nil {
		return nil, err
	}
	sessions = from.Config()
	postgres.ByKey(sessions.ConnConfig.RuntimeParams)
	byKey, err := openSessions(ctx, sessions, cfg.StatementTimeout)
	if err != nil {
		pool.Close()
		return nil, err
	}
	answers, err := newCache(watcher.validity, watcher, cfg.CacheBytes, cfg.CacheTTL)
	if err != nil {
		pool.Close()
		byKey.Close()
		return nil, err
	}
	r := &Reader{pool: pool, byKey: byKey, models: newModels(byKey, plans, watcher.validity), watcher: watcher, cache: answers,
		fills: &fills{timeout: 2 * cfg.StatementTimeout, running: make(map[cacheKey]*fill)}, signer: &signer{pool: from}, exports: make(chan struct{}, maxExports),
		strictRows: cfg.StrictRows, patience: 2*cfg.StatementTimeout + time.Second}
	if len(cfg.CursorKey) > 0 {
		r.signer.key = cfg.CursorKey
	}
	return r, nil
}

// openSessions opens a pool of sessions that only read.
func openSessions(ctx context.Context, sessions *pgxpool.Config, timeout time.Duration) (*pgxpool.Pool, error) {
	p := sessions.ConnConfig.RuntimeParams
	p["default_transaction_isolation"] = "repeatable read"
	p["statement_timeout"] = fmt.Sprint(timeout.Milliseconds())
	before := sessions.AfterConnect
	sessions.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if before != nil {
			if err := before(ctx, conn); err != nil {
				return err
			}
		}
		// Not with the parameters of the start: target_session_attrs=read-write, by
		// which a primary is found among several hosts, would refuse the session.
		_, err := conn.Exec(ctx, `set default_transaction_read_only = on`)
		return err
	}
	pool, err := pgxpool.NewWithConfig(ctx, sessions)
	if err != nil {
		return nil, fmt.Errorf("opening the sessions of queries: %w", err)
	}
	return pool, nil
}

// Close ends the reader's sessions.
func (r *Reader) Close() {
	r.pool.Close()
	r.byKey.Close()
}

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
	// ErrLost says that a failover of the database has lost an event of the token,
	// or that the rows come from what it has lost.
	ErrLost = errors.New("a failover has lost an event of the token")
	// ErrTooExpensive says that a query ran out of time.
	ErrTooExpensive = errors.New("the query took too long")
	// ErrNoAnswer says that nothing was heard of the database in time: it cannot be
	// reached, or all sessions with it are busy.
	ErrNoAnswer = errors.New("the database has not answered in time")
	// ErrBusy says that too much of its kind is under way; try again.
	ErrBusy = errors.New("as many exports are under way as may be: try again")
	// ErrTooMany says that a filter selects more rows than can be returned at once.
	ErrTooMany = errors.New("more rows than can be returned at once")
	// ErrBadKey says that a key holds what no key can.
	ErrBadKey = errors.New("a key is valid UTF-8 without NUL")

	errStopped   = errors.New("the iteration was ended")
	errNotActive = errors.New("the version is not active any more")
	errUnproven  = fmt.Errorf("%w: a mark of it was not looked up in the log", ErrNotCaughtUp)
)

func isNotActive(err error) bool { return errors.Is(err, errNotActive) }

// Get returns the row with a key as JSON, or [ErrNoRow], for which the answer is
// valid too.
func (r *Reader) Get(ctx context.Context, name, key string, fresh Fresh) (row []byte, from Answer, err error) {
	if !utf8.ValidString(key) || strings.IndexByte(key, 0) >= 0 {
		return nil, from, ErrBadKey
	}
	var e *entry
	from, err = r.answer(ctx, r.current(name), fresh, func(m *Model, doubts []event.Mark, fromCache bool) (*snapshot, error) {
		k := cacheKey{leaf: m.Version.Leaf, query: key}
		if fromCache {
			if e = r.cache.find(m, k, fresh.Token); e != nil {
				return e.of, nil
			}
		}
		c, err := m.getter.get(ctx, key, doubts)
		if err != nil {
			return nil, err
		}
		e = &entry{row: c.row, keys: []uint32{HashKey(key)}, of: c.of}
		if !m.Plan.Shared() {
			e.token = Answer{progress: c.of.progress, stream: key, byStream: true}.TokenText()
		}
		if c.of.serves(m) {
			r.cache.keep(m, k, e)
		}
		return e.of, nil
	})
	from.stream = key
	if e != nil && len(fresh.Token) == 0 {
		from.text = e.token
	}
	if err == nil && e.row == nil {
		err = ErrNoRow
	}
	if e != nil {
		row = e.row
	}
	return row, from, err
}
