package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Class is what an error of the database means for the one who asked. Retry
// loops branch on it alone.
type Class int

const (
	// ClassNone is the class of nil.
	ClassNone Class = iota
	// ClassOther is what no repetition mends: wrong SQL, missing rights, a bug.
	ClassOther
	// ClassCanceled means that the caller's own context ended.
	ClassCanceled
	// ClassConnection means that the session is gone or never came to be. What it
	// had sent last may or may not have happened, and may still happen.
	ClassConnection
	// ClassShutdown means that the server or an operator ended the session, or
	// that the server is starting. The session is gone, as with ClassConnection.
	ClassShutdown
	// ClassReadOnly means that the server is a standby, or has become one.
	ClassReadOnly
	// ClassConflict is a serialization failure or a deadlock; nothing happened.
	ClassConflict
	// ClassLockTimeout means that lock_timeout ran out; nothing happened.
	ClassLockTimeout
	// ClassTimeout means that statement_timeout or a cancel request ended the
	// statement; nothing happened.
	ClassTimeout
	// ClassResources means a full disk, no memory or no free connection slot.
	ClassResources
	// ClassMissing means that a schema, table, column or function is not there: the
	// schema is not migrated, or a leaf table was dropped meanwhile.
	ClassMissing
	// ClassConstraint is a violated constraint (SQLSTATE class 23).
	ClassConstraint
	// ClassData is data that the server refuses (SQLSTATE classes 22 and 54).
	ClassData
)

// Classify returns the class of an error of pgx, however deep it is wrapped.
func Classify(err error) Class {
	if err == nil {
		return ClassNone
	}
	// A connection that breaks while the server says why carries both errors; the
	// SQLSTATE is the better witness.
	if code := Code(err); code != "" {
		return classOfCode(code)
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return ClassCanceled
	case isNetwork(err):
		return ClassConnection
	default:
		return ClassOther
	}
}

// classOfCode follows appendix A of the Postgres manual.
func classOfCode(code string) Class {
	switch code {
	case "40001", "40P01":
		return ClassConflict
	case "55P03":
		return ClassLockTimeout
	case "57014", "25P04": // query_canceled, transaction_timeout
		return ClassTimeout
	case "25006":
		return ClassReadOnly
	case "25P03": // idle_in_transaction_session_timeout ends the session
		return ClassShutdown
	case "42P01", "3F000", "42703", "42883":
		return ClassMissing
	case "58030": // io_error
		return ClassResources
	case "40003": // statement_completion_unknown
		return ClassConnection
	}
	switch code[:2] {
	case "08":
		return ClassConnection
	case "57":
		return ClassShutdown
	case "53":
		return ClassResources
	case "23":
		return ClassConstraint
	case "22", "54":
		return ClassData
	default:
		return ClassOther
	}
}

func isNetwork(err error) bool {
	var connecting *pgconn.ConnectError
	var network *net.OpError // not net.Error, which every errno is, those of files too
	return errors.As(err, &connecting) || errors.As(err, &network) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, pgconn.ErrConnClosed)
}

// Transient tells whether the same request can succeed later without anybody
// mending it. The caller's own cancellation is not transient.
func (c Class) Transient() bool {
	switch c {
	case ClassConnection, ClassShutdown, ClassReadOnly, ClassConflict, ClassLockTimeout, ClassTimeout, ClassResources:
		return true
	default:
		return false
	}
}

// SessionLost tells whether the session that returned the error is gone, so
// that whatever was owned through it is owned no longer and the outcome of what
// it sent last is unknown.
func (c Class) SessionLost() bool { return c == ClassConnection || c == ClassShutdown }

// String returns the class as a label for logs and metrics.
func (c Class) String() string {
	switch c {
	case ClassNone:
		return "none"
	case ClassCanceled:
		return "canceled"
	case ClassConnection:
		return "connection"
	case ClassShutdown:
		return "shutdown"
	case ClassReadOnly:
		return "read_only"
	case ClassConflict:
		return "conflict"
	case ClassLockTimeout:
		return "lock_timeout"
	case ClassTimeout:
		return "timeout"
	case ClassResources:
		return "resources"
	case ClassMissing:
		return "missing"
	case ClassConstraint:
		return "constraint"
	case ClassData:
		return "data"
	default:
		return "other"
	}
}

// Transient is Classify(err).Transient().
func Transient(err error) bool { return Classify(err).Transient() }

// ConnectionLost is Classify(err).SessionLost().
func ConnectionLost(err error) bool { return Classify(err).SessionLost() }

// Code returns the SQLSTATE of err, empty when the server did not send one.
func Code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && len(pg.Code) == 5 {
		return pg.Code
	}
	return ""
}

// IsCode tells whether the server answered err with this SQLSTATE.
func IsCode(err error, code string) bool { return code != "" && Code(err) == code }

// SafeToRetry tells whether it is certain that nothing of the failed request
// happened or will happen: nothing was sent, or the server said that it rolled
// back. A session that was lost is not safe, whatever ended it.
func SafeToRetry(err error) bool {
	if pgconn.SafeToRetry(err) {
		return true
	}
	var connecting *pgconn.ConnectError
	if errors.As(err, &connecting) {
		return true
	}
	class := Classify(err)
	return class.Transient() && !class.SessionLost()
}

// RetryAfter says how long a client that is refused because of err should stay
// away, for the Retry-After of an HTTP answer; 0 when err is not transient.
func RetryAfter(err error) time.Duration {
	switch class := Classify(err); {
	case class == ClassResources:
		return 10 * time.Second
	case class.Transient():
		return time.Second
	default:
		return 0
	}
}
