package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"

	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/registry"
)

// Exit codes of all programs.
const (
	ExitOK       = 0
	ExitFailed   = 1
	ExitUsage    = 2  // the command line, the environment or the config file is wrong
	ExitNotFound = 3  // what was named does not exist
	ExitConflict = 4  // somebody else was first
	ExitTryAgain = 75 // the same command may succeed later: EX_TEMPFAIL of sysexits.h
)

// Failure is an error for the person at the command line: besides what failed it
// says why that is likely, what to do next, and how the program exits. Commands
// return one where they know more than the error itself; for the others [Main]
// finds code and advice by what is wrapped.
type Failure struct {
	Err   error
	Code  int
	Cause string // the likely cause, "" where the error says it all
	Next  string // the next command or setting
}

func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns what failed.
func (f *Failure) Unwrap() error { return f.Err }

// Because returns the failure with its likely cause.
func (f *Failure) Because(cause string) *Failure { f.Cause = cause; return f }

// Try returns the failure with what to do next.
func (f *Failure) Try(next string) *Failure { f.Next = next; return f }

// Usage, NotFound, Conflict and TryAgain give an error its exit code.
func Usage(err error) *Failure    { return &Failure{Err: err, Code: ExitUsage} }
func NotFound(err error) *Failure { return &Failure{Err: err, Code: ExitNotFound} }
func Conflict(err error) *Failure { return &Failure{Err: err, Code: ExitConflict} }
func TryAgain(err error) *Failure { return &Failure{Err: err, Code: ExitTryAgain} }

// explain returns err as a failure: the one that it wraps, or one that is made
// from what is known about its kind.
func explain(err error) *Failure {
	var known *Failure
	if errors.As(err, &known) {
		return &Failure{Err: err, Code: known.Code, Cause: known.Cause, Next: known.Next}
	}
	f := &Failure{Err: err, Code: ExitFailed}
	var conflict *eventstore.VersionConflict
	var taken *eventstore.ClaimTaken
	var op *net.OpError
	var asked *url.Error
	var clash *registry.Clash
	class := postgres.Classify(err)
	switch {
	case errors.As(err, &conflict), errors.As(err, &taken):
		f.Code = ExitConflict
	case errors.Is(err, readmodel.ErrUnknownProjection):
		return NotFound(err).Because("no version of it was ever made in this database").Try("start `projector run`, which makes version 1 of every definition, or see GET /v1/projections")
	case errors.Is(err, eventstore.ErrUnknownCategory):
		return NotFound(err).Try("see GET /v1/categories; `writer serve` makes those of --schemas")
	case errors.Is(err, context.Canceled):
		return TryAgain(err).Because("it was interrupted")
	case errors.Is(err, syscall.EADDRINUSE):
		return f.Because("another program listens there").Try("choose another address with --addr or --admin-addr")
	case errors.As(err, &op) && op.Op == "listen":
		return f.Because("the address is not one of this machine, or needs rights").Try("choose another one with --addr or --admin-addr")
	case errors.As(err, &clash):
		return f.Because("it was filled by itself, or another registry stands at its address").Try("give the registry the schemas of the log under their ids before it gives ids itself (Confluent's takes them in the mode IMPORT while it is empty; table refold.schema has them), or unset SCHEMA_REGISTRY_URL")
	case errors.Is(err, registry.ErrUnavailable) && (class == postgres.ClassOther || errors.As(err, &asked)):
		return TryAgain(err).Try("check --schema-registry-url (SCHEMA_REGISTRY_URL), and whether the registry is up")
	case class != postgres.ClassOther && class != postgres.ClassCanceled, postgres.Code(err) != "":
		return explainPostgres(f, class)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return f.Because("a path in the settings names what this user cannot read").Try("check the paths of --config, --schemas and the *_FILE settings")
	}
	return f
}

// explainPostgres is for errors of the database. The codes are those of appendix
// A of the Postgres manual.
func explainPostgres(f *Failure, class postgres.Class) *Failure {
	if class.Transient() {
		f.Code = ExitTryAgain
	}
	const which = "check --database-url (DATABASE_URL), or the PG* variables where it is empty"
	switch code := postgres.Code(f.Err); {
	case errors.Is(f.Err, syscall.ECONNREFUSED), errors.Is(f.Err, syscall.ENOENT):
		return f.Because("no Postgres listens there").Try(which + "; `writer dev` starts one of its own")
	case strings.HasPrefix(code, "28"):
		return f.Because("the server does not let this user in").Try(which + ", or DATABASE_URL_FILE and PGPASSFILE for the password")
	case code == "3D000":
		return f.Because("the database does not exist").Try("create it, for instance with createdb")
	case class == postgres.ClassMissing:
		return f.Because("the schema refold is missing or older than this program").Try("run `writer migrate`")
	case code == "42501":
		return f.Because("the user lacks rights in the database").Try("grant them, or let the owner run `writer migrate`")
	case class == postgres.ClassConnection:
		return f.Because("the database cannot be reached").Try(which)
	}
	return f
}

// print writes the failure for a person.
func (f *Failure) print(w io.Writer, program string) {
	fmt.Fprintf(w, "%s: %v\n", program, f.Err)
	if f.Cause != "" {
		fmt.Fprintf(w, "  likely cause: %s\n", f.Cause)
	}
	if f.Next != "" {
		fmt.Fprintf(w, "  next: %s\n", f.Next)
	}
}

// hostname names this process for people.
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}
