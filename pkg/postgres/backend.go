package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Backend names one server process for ever: pids are used again, a pid with
// its start time is not.
type Backend struct {
	PID     int32
	Started time.Time
}

// ReadBackend returns the backend that serves q, which must be one session.
func ReadBackend(ctx context.Context, q querier) (Backend, error) {
	var b Backend
	err := q.QueryRow(ctx, `select pid, backend_start from pg_stat_activity where pid = pg_backend_pid()`).
		Scan(&b.PID, &b.Started)
	if err != nil {
		return Backend{}, fmt.Errorf("reading the session's backend: %w", err)
	}
	return b, nil
}

// Terminate ends the backend, whose open transaction is rolled back, and tells
// whether it was still there. It returns when the server has accepted the signal,
// not when the process has gone: a lock that it held may take a moment more.
// The role of q needs to be that of the backend, or a member of pg_signal_backend.
func (b Backend) Terminate(ctx context.Context, q querier) (bool, error) {
	var signalled bool
	err := q.QueryRow(ctx, `select pg_terminate_backend(pid) from pg_stat_activity
		where pid = $1 and backend_start = $2`, b.PID, b.Started).Scan(&signalled)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("terminating backend %d: %w", b.PID, err)
	}
	return signalled, nil
}

// End is Terminate and waits until the process has gone, so that nothing that it
// was sent can take effect any more. It fails when that takes longer than within,
// which is rounded up to milliseconds.
func (b Backend) End(ctx context.Context, q querier, within time.Duration) error {
	var ended bool
	err := q.QueryRow(ctx, `select pg_terminate_backend(pid, $3) from pg_stat_activity
		where pid = $1 and backend_start = $2`, b.PID, b.Started, max(1, within.Milliseconds())).Scan(&ended)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("ending backend %d: %w", b.PID, err)
	case !ended:
		return fmt.Errorf("ending backend %d: it is still there after %v", b.PID, within)
	}
	return nil
}

// Blocking returns the backends that hold or await a lock in front of the one
// with this pid, at this moment. It is asked from another session, because the
// blocked one waits.
func Blocking(ctx context.Context, q interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, pid int32) ([]Backend, error) {
	rows, err := q.Query(ctx, `select pid, backend_start from pg_stat_activity
		where pid = any(pg_blocking_pids($1)) and backend_start is not null order by backend_start, pid`, pid)
	if err != nil {
		return nil, fmt.Errorf("looking for what blocks backend %d: %w", pid, err)
	}
	backends, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Backend])
	if err != nil {
		return nil, fmt.Errorf("looking for what blocks backend %d: %w", pid, err)
	}
	return backends, nil
}
