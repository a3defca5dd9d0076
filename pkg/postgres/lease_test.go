package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/postgres"
)

// short is a lease that expires before the next statement of the test.
const short = time.Millisecond

type leases struct {
	a, b *pgx.Conn // the sessions of two owners
}

func setupLeases(t *testing.T) leases {
	t.Helper()
	url := migrated(t)
	return leases{session(t, postgres.Config{URL: url}), session(t, postgres.Config{URL: url})}
}

func acquire(t *testing.T, conn *pgx.Conn, owner string, ttl time.Duration) *postgres.Lease {
	t.Helper()
	var lease *postgres.Lease
	require.Eventually(t, func() bool {
		var err error
		lease, err = postgres.AcquireLease(t.Context(), conn, "job", owner, ttl)
		return err == nil
	}, 10*time.Second, time.Millisecond)
	return lease
}

func TestLeaseIsHeldByOne(t *testing.T) {
	t.Parallel()
	s := setupLeases(t)
	lease := acquire(t, s.a, "a", time.Minute)
	require.True(t, lease.Valid(30*time.Second))
	require.False(t, lease.Valid(2*time.Minute))
	_, err := postgres.AcquireLease(t.Context(), s.b, "job", "b", time.Minute)
	var held *postgres.LeaseHeld
	require.ErrorAs(t, err, &held)
	require.Equal(t, "a", held.Owner)
	require.Greater(t, held.Left, 50*time.Second)
	_, err = postgres.AcquireLease(t.Context(), s.b, "another job", "b", time.Minute)
	require.NoError(t, err)
}

func TestReleasedLeaseIsFreeAtOnceAndItsFenceRises(t *testing.T) {
	t.Parallel()
	s := setupLeases(t)
	first := acquire(t, s.a, "a", time.Minute)
	require.NoError(t, first.Release(t.Context(), s.a))
	require.False(t, first.Valid(0))
	second, err := postgres.AcquireLease(t.Context(), s.b, "job", "b", time.Minute)
	require.NoError(t, err)
	require.Greater(t, second.Fence, first.Fence)
	require.ErrorIs(t, first.Release(t.Context(), s.a), postgres.ErrLeaseLost, "it is not first's to give back")
	require.NoError(t, second.Verify(t.Context(), s.b))
}

func TestExpiredLeaseIsTakenOverAndItsHolderIsFenced(t *testing.T) {
	t.Parallel()
	s := setupLeases(t)
	zombie := acquire(t, s.a, "a", short)
	heir := acquire(t, s.b, "b", time.Minute)
	require.Greater(t, heir.Fence, zombie.Fence)
	require.ErrorIs(t, zombie.Renew(t.Context(), s.a), postgres.ErrLeaseLost)

	tx, err := s.a.Begin(t.Context())
	require.NoError(t, err)
	require.ErrorIs(t, zombie.Verify(t.Context(), tx), postgres.ErrLeaseLost)
	require.NoError(t, tx.Rollback(t.Context()))
	require.NoError(t, heir.Renew(t.Context(), s.b))
}

func TestExpiredLeaseThatNobodyTookIsRenewed(t *testing.T) {
	t.Parallel()
	s := setupLeases(t)
	lease := acquire(t, s.a, "a", short)
	require.NoError(t, lease.Renew(t.Context(), s.a))
	require.NoError(t, lease.Verify(t.Context(), s.a))
}

// A pipeline must stop at the check: what stands behind it may not run.
func TestZombiesPipelineLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	s := setupLeases(t)
	zombie := acquire(t, s.a, "a", short)
	acquire(t, s.b, "b", time.Minute)
	batch := &pgx.Batch{}
	batch.Queue(postgres.VerifyLeaseSQL, zombie.Name, zombie.Fence, zombie.Nonce)
	batch.Queue(`insert into refold.lease (name, owner, fence, nonce, expires) values ('ghost', 'z', 1, gen_random_uuid(), now())`)
	err := s.a.SendBatch(t.Context(), batch).Close()
	require.True(t, postgres.LeaseLost(err), "%v", err)
	var ghosts int
	require.NoError(t, s.b.QueryRow(t.Context(), `select count(*) from refold.lease where name = 'ghost'`).Scan(&ghosts))
	require.Zero(t, ghosts)
}

// The same fence after a lost tail is not the same holder.
func TestNonceTellsHoldersWithOneFenceApart(t *testing.T) {
	t.Parallel()
	s := setupLeases(t)
	lost := acquire(t, s.a, "a", time.Minute)
	_, err := s.a.Exec(t.Context(), `delete from refold.lease`) // as if a failover had lost the row
	require.NoError(t, err)
	heir := acquire(t, s.b, "b", time.Minute)
	require.Equal(t, lost.Fence, heir.Fence)
	require.ErrorIs(t, lost.Verify(t.Context(), s.a), postgres.ErrLeaseLost)
	require.NoError(t, heir.Verify(t.Context(), s.b))
}

// A verified transaction and a takeover never overlap: the heir waits for it.
func TestTakeoverWaitsForVerifiedTransactions(t *testing.T) {
	t.Parallel()
	s := setupLeases(t)
	lease := acquire(t, s.a, "a", short)
	tx, err := s.a.Begin(t.Context())
	require.NoError(t, err)
	require.NoError(t, lease.Verify(t.Context(), tx))

	_, err = s.b.Exec(t.Context(), `set lock_timeout = '50ms'`)
	require.NoError(t, err)
	_, err = postgres.AcquireLease(t.Context(), s.b, "job", "b", time.Minute)
	require.Equal(t, postgres.ClassLockTimeout, postgres.Classify(err), "%v", err)
	_, err = s.b.Exec(t.Context(), `reset lock_timeout`)
	require.NoError(t, err)

	taken := make(chan error, 1)
	go func() {
		_, err := postgres.AcquireLease(context.Background(), s.b, "job", "b", time.Minute)
		taken <- err
	}()
	require.NoError(t, tx.Commit(t.Context()), "it was verified in time")
	require.NoError(t, <-taken)
}

func TestLeaseNeedsANameAndATime(t *testing.T) {
	t.Parallel()
	s := setupLeases(t)
	_, err := postgres.AcquireLease(t.Context(), s.a, "", "a", time.Minute)
	require.Error(t, err)
	_, err = postgres.AcquireLease(t.Context(), s.a, "job", "a", 0)
	require.Error(t, err)
}
