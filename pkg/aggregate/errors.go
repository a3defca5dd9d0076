package aggregate

import (
	"errors"
	"fmt"

	"github.com/refoldhq/refold/pkg/eventstore"
)

// Broken says that a command would break a rule of the domain. Nothing happened,
// and nothing will by trying again.
type Broken struct {
	// Code is stable, [a-z0-9-]+: HTTP clients get it as the problem's type.
	Code string
	Msg  string
}

// Invariant returns the error of a rule. A package declares one for each, and
// callers compare with errors.Is; Detail says more about one case.
func Invariant(code, msg string) *Broken { return &Broken{Code: code, Msg: msg} }

// Detail returns the error with another message, which is the same to errors.Is.
func (e *Broken) Detail(format string, args ...any) *Broken {
	return &Broken{Code: e.Code, Msg: fmt.Sprintf(format, args...)}
}

func (e *Broken) Error() string { return e.Msg }

// Is compares codes.
func (e *Broken) Is(other error) bool {
	var b *Broken
	return errors.As(other, &b) && b.Code == e.Code
}

// Missing says that an aggregate has no events.
type Missing struct{ Category, ID string }

func (e *Missing) Error() string { return fmt.Sprintf("there is no %s %s", e.Category, e.ID) }

// Exists says that an aggregate that was to be created has events.
type Exists struct {
	Category, ID string
	Version      int64
}

func (e *Exists) Error() string {
	return fmt.Sprintf("%s %s exists, at version %d", e.Category, e.ID, e.Version)
}

// Conflict is a lost race: others changed the aggregate each time before what
// was raised could be stored, or it is not at the version that the caller asked
// for. Nothing happened; it may be tried again.
type Conflict struct {
	Category, ID string
	// Attempts is how often the function was run; 0 if not at all.
	Attempts int
	// Expected and Actual are the versions of the last attempt; Expected is -1 where
	// any was, but not none.
	Expected, Actual int64
}

func (e *Conflict) Error() string {
	if e.Expected < 0 {
		return fmt.Sprintf("%s %s was expected to exist", e.Category, e.ID)
	}
	return fmt.Sprintf("%s %s is at version %d, expected %d, after %d attempts", e.Category, e.ID, e.Actual, e.Expected, e.Attempts)
}

// ClaimTaken says that another aggregate holds a value that the command wanted.
// Nothing happened.
type ClaimTaken = eventstore.ClaimTaken

// UnknownVersion says that an aggregate never had a version, or had none at a time.
type UnknownVersion struct {
	Category, ID string
	// Actual is the present version.
	Actual int64
}

func (e *UnknownVersion) Error() string {
	return fmt.Sprintf("%s %s had no such version; it is at %d", e.Category, e.ID, e.Actual)
}
