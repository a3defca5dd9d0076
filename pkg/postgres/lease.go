package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// codeLeaseLost is what refold.check_lease raises.
const codeLeaseLost = "RF001"

// ErrLeaseLost is returned by [Lease.Renew], [Lease.Release] and [Lease.Verify]
// when somebody else has taken the lease. The holder stops at once; it is never
// retried.
var ErrLeaseLost = errors.New("the lease is in other hands")

// LeaseHeld is returned by [AcquireLease] while somebody holds the lease.
type LeaseHeld struct {
	Name, Owner string
	// Left is how long the holder has without renewing, by the database's clock.
	Left time.Duration
}

func (e *LeaseHeld) Error() string {
	return fmt.Sprintf("lease %s is held by %s for another %s", e.Name, e.Owner, e.Left.Round(time.Millisecond))
}

// Lease is the right to do what only one may do at a time, kept as a row by the
// database's clock. It is not an advisory lock because the session of a dead host
// can hold one of those for half an hour.
//
// Promised: among the transactions that call [Lease.Verify], those of two holders
// never overlap, and once a later holder has acquired, none of an earlier one
// commits, however long it was paused.
//
// Not promised: that an effect outside the database falls into the lease's time.
// A holder checks [Lease.Valid] before each, and makes the effect harmless if it
// comes late.
//
// The caller renews at about a third of the time to live, verifies inside every
// transaction that must be fenced (late in it, because the row stays share-locked
// until it ends and renewing waits for that), and stops on [ErrLeaseLost].
//
// A crash leaves the row, which another owner takes when it expires. An answer of
// AcquireLease that was lost leaves it too, held by nobody, for the time to live.
//
// A Lease is not safe for concurrent use, but for Verify.
type Lease struct {
	Name, Owner string
	// Fence is greater than that of every earlier holder; Nonce tells holders apart
	// whose fence is the same because a failover lost the row's last state.
	Fence int64
	Nonce uuid.UUID

	ttl   time.Duration
	until time.Time
}

type executor interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

const acquireLease = `
insert into refold.lease as l (name, owner, fence, nonce, expires)
values ($1, $2, 1, $3, clock_timestamp() + $4::interval)
on conflict (name) do update
    set owner = excluded.owner, fence = l.fence + 1, nonce = excluded.nonce, expires = excluded.expires
    where l.expires <= clock_timestamp()
returning fence`

const holderOfLease = `
select owner, greatest(expires - clock_timestamp(), interval '0') from refold.lease where name = $1`

// AcquireLease takes the lease, when it is free or has expired, for ttl. owner is
// for people. It waits for transactions of the last holder that have verified
// the lease and not ended; give the session a lock_timeout, or end them by
// [Backend.Terminate]. While the lease is held it returns *[LeaseHeld].
func AcquireLease(ctx context.Context, q querier, name, owner string, ttl time.Duration) (*Lease, error) {
	if name == "" || ttl <= 0 {
		return nil, fmt.Errorf("acquiring lease %q for %s: name and time must be given", name, ttl)
	}
	nonce, err := uuid.NewRandom()
	if err != nil {
		return nil, fmt.Errorf("acquiring lease %s: %w", name, err)
	}
	l := &Lease{Name: name, Owner: owner, Nonce: nonce, ttl: ttl, until: time.Now().Add(ttl)}
	err = q.QueryRow(ctx, acquireLease, name, owner, nonce, ttl).Scan(&l.Fence)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, leaseHeld(ctx, q, name)
	}
	if err != nil {
		return nil, fmt.Errorf("acquiring lease %s: %w", name, err)
	}
	return l, nil
}

func leaseHeld(ctx context.Context, q querier, name string) error {
	held := &LeaseHeld{Name: name}
	if err := q.QueryRow(ctx, holderOfLease, name).Scan(&held.Owner, &held.Left); err != nil {
		return fmt.Errorf("asking who holds lease %s: %w", name, err)
	}
	return held
}

// Renew gives the lease its whole time again. A lease that has expired and that
// nobody took is renewed too. On any other error than [ErrLeaseLost] the lease
// runs on as it was.
func (l *Lease) Renew(ctx context.Context, q executor) error {
	until := time.Now().Add(l.ttl)
	tag, err := q.Exec(ctx, `update refold.lease set expires = clock_timestamp() + $4::interval
		where name = $1 and fence = $2 and nonce = $3`, l.Name, l.Fence, l.Nonce, l.ttl)
	if err != nil {
		return fmt.Errorf("renewing lease %s: %w", l.Name, err)
	}
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("renewing lease %s: %w", l.Name, ErrLeaseLost)
	}
	l.until = until
	return nil
}

// Release gives the lease back at once. The fence stays, so that the next holder
// gets a greater one.
func (l *Lease) Release(ctx context.Context, q executor) error {
	l.until = time.Time{}
	tag, err := q.Exec(ctx, `update refold.lease set expires = 'epoch'
		where name = $1 and fence = $2 and nonce = $3`, l.Name, l.Fence, l.Nonce)
	if err != nil {
		return fmt.Errorf("releasing lease %s: %w", l.Name, err)
	}
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("releasing lease %s: %w", l.Name, ErrLeaseLost)
	}
	return nil
}

// VerifyLeaseSQL is the statement of [Lease.Verify], for pipelines; its
// parameters are name, fence and nonce. It raises RF001, see [LeaseLost].
const VerifyLeaseSQL = `select refold.check_lease($1, $2, $3)`

// Verify fences the transaction tx: it fails with [ErrLeaseLost] when another
// holder has acquired the lease, and when it succeeds nobody can acquire or renew
// it until tx has ended.
func (l *Lease) Verify(ctx context.Context, tx executor) error {
	_, err := tx.Exec(ctx, VerifyLeaseSQL, l.Name, l.Fence, l.Nonce)
	if LeaseLost(err) {
		return fmt.Errorf("verifying lease %s: %w", l.Name, ErrLeaseLost)
	}
	if err != nil {
		return fmt.Errorf("verifying lease %s: %w", l.Name, err)
	}
	return nil
}

// LeaseLost tells whether err came from a lease that is in other hands, be it
// [ErrLeaseLost] or what a pipeline with [VerifyLeaseSQL] returned.
func LeaseLost(err error) bool {
	return errors.Is(err, ErrLeaseLost) || IsCode(err, codeLeaseLost)
}

// Valid tells whether the lease has at least margin left. It looks at this
// process's monotonic clock, counted from before the request that acquired or
// renewed the lease, so a network delay makes it pessimistic; a clock that runs
// slower than the database's must be covered by margin.
func (l *Lease) Valid(margin time.Duration) bool {
	return time.Until(l.until) > margin
}
