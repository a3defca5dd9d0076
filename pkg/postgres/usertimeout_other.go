//go:build !linux

package postgres

import "syscall"

// setUserTimeout does nothing where TCP_USER_TIMEOUT does not exist: there a
// half-open connection with data under way is found by the caller's deadline.
func setUserTimeout(string, string, syscall.RawConn) error { return nil }
