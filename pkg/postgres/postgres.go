// Package postgres holds what every part of refold that talks to Postgres needs
// and that is not about events or rows: opening pools and sessions with the
// settings that refold relies on, applying the schema's migrations, classing
// errors, telling one incarnation of a server from another, and leases kept by
// database time.
//
// It stands near the top of the import order and knows no table but its own,
// [Lease]'s. The migrations of all packages are embedded here because they are
// applied as one sequence; each file belongs to the package that uses its
// tables.
//
// It refuses to hide the database: callers write their own SQL and use pgx
// directly. There is no query builder, no retry loop and no second pool type.
package postgres

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Config says where the database is and how sessions behave. The zero value
// means what DATABASE_URL, or else PGHOST and the other PG* variables say.
type Config struct {
	// URL is a connection URL or a keyword/value string. Empty: DATABASE_URL,
	// and when that is empty too, the PG* variables.
	URL string
	// MaxConns bounds the pool; 0 leaves it to pgx or to pool_max_conns in the URL.
	MaxConns int
	// AppName is the session's application_name; empty means "refold".
	AppName string
	// StatementTimeout, LockTimeout and IdleInTransactionTimeout are set for each
	// session when they are not 0. The server looks at the last only between
	// messages, never inside a pipeline before its Sync.
	StatementTimeout         time.Duration
	LockTimeout              time.Duration
	IdleInTransactionTimeout time.Duration
	// ByKey is for sessions that look up single rows, see [ByKey].
	ByKey bool
	// ConnectTimeout bounds dialing and the handshake; 0 means 5 s.
	ConnectTimeout time.Duration
}

// A connection that is silent for 15 s is probed, and given up 10 s later; what
// was sent and is not acknowledged by the peer's kernel within 20 s ends it too.
// So a half-open connection is found within 30 s.
const (
	keepAliveIdle     = 15 * time.Second
	keepAliveInterval = 5 * time.Second
	keepAliveCount    = 2
	userTimeout       = 20 * time.Second
)

// Open returns a pool. It validates and allocates and does not dial, so it
// succeeds while the server is down. Every session has an empty search_path
// (names in SQL must be qualified), the time zone UTC, READ COMMITTED as its
// isolation level and TCP keepalive on both sides. The caller closes the pool.
func Open(ctx context.Context, cfg Config) (*pgxpool.Pool, error) {
	pool, err := pgxpool.ParseConfig(cfg.url())
	if err != nil {
		return nil, fmt.Errorf("reading the database settings: %w", err)
	}
	if cfg.MaxConns < 0 {
		return nil, fmt.Errorf("opening a pool: %d connections", cfg.MaxConns)
	}
	if cfg.MaxConns > 0 {
		pool.MaxConns = int32(cfg.MaxConns)
		pool.MinConns = min(pool.MinConns, pool.MaxConns)
	}
	cfg.apply(pool.ConnConfig)
	p, err := pgxpool.NewWithConfig(ctx, pool)
	if err != nil {
		return nil, fmt.Errorf("opening a pool: %w", err)
	}
	return p, nil
}

// Connect opens one session with the same settings, for what must not share a
// pool: listening, leases, health.
func Connect(ctx context.Context, cfg Config) (*pgx.Conn, error) {
	conn, err := pgx.ParseConfig(cfg.url())
	if err != nil {
		return nil, fmt.Errorf("reading the database settings: %w", err)
	}
	cfg.apply(conn)
	c, err := pgx.ConnectConfig(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s:%d: %w", conn.Host, conn.Port, err)
	}
	return c, nil
}

func (c Config) url() string {
	if c.URL != "" {
		return c.URL
	}
	return os.Getenv("DATABASE_URL") // pgx reads the PG* variables where it is empty
}

func (c Config) apply(conn *pgx.ConnConfig) {
	conn.ConnectTimeout = c.ConnectTimeout
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = 5 * time.Second
	}
	conn.DialFunc = dialer().DialContext
	p := conn.RuntimeParams
	p["application_name"] = c.AppName
	if c.AppName == "" {
		p["application_name"] = "refold"
	}
	p["search_path"] = ""
	p["timezone"] = "UTC"
	p["default_transaction_isolation"] = "read committed"
	// Our statements touch few rows, whatever the planner expects of a function in
	// FROM; compiling such a plan took 1 to 2 s on a busy machine.
	p["jit"] = "off"
	if c.ByKey {
		ByKey(p)
	}
	p["tcp_keepalives_idle"] = seconds(keepAliveIdle)
	p["tcp_keepalives_interval"] = seconds(keepAliveInterval)
	p["tcp_keepalives_count"] = strconv.Itoa(keepAliveCount)
	p["tcp_user_timeout"] = milliseconds(userTimeout)
	setTimeout(p, "statement_timeout", c.StatementTimeout)
	setTimeout(p, "lock_timeout", c.LockTimeout)
	setTimeout(p, "idle_in_transaction_session_timeout", c.IdleInTransactionTimeout)
}

// ByKey sets the parameters of sessions that look up single rows. They read no
// table whole where an index serves, not even one that was small when the statement
// was planned: a session keeps its plans until somebody analyzes the table. And
// they keep the plan of each statement from its first execution on: for one that
// takes arrays the server expects ten elements, finds those plans dearer than one
// made for the single element that there is, and so would plan anew each time,
// which takes longer than what is planned.
func ByKey(params map[string]string) {
	params["enable_seqscan"] = "off"
	params["plan_cache_mode"] = "force_generic_plan"
}

func setTimeout(params map[string]string, name string, d time.Duration) {
	if d > 0 {
		params[name] = milliseconds(d)
	}
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

// milliseconds rounds up, because 0 would switch a time-out off.
func milliseconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Millisecond-1)/time.Millisecond), 10)
}

func dialer() *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
		},
		Control: setUserTimeout,
	}
}
