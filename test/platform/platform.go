// Package platform runs refold's programs as users run them, as processes of
// their own against a real Postgres and a Kafka, for the suites under test/.
//
// A [Stack] names the database, the brokers and the contracts; [Stack.Writer],
// [Stack.Projector] and [Stack.Queries] start programs on free ports of the
// loopback interface and wait until they are ready. A [Program] can be stopped,
// killed, paused and resumed, which is what the fault suites do to it. What a
// program logs is kept in memory and printed when its test fails.
//
// The package asserts nothing about events or rows; it only starts, stops and
// speaks HTTP.
package platform

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
)

// Stack is one deployment of refold: a database, brokers, contracts and a topic
// prefix that no other test shares.
type Stack struct {
	DatabaseURL string
	Brokers     []string
	// Schemas is a folder of contracts; empty for those embedded.
	Schemas string
	// Prefix begins the names of topics and groups.
	Prefix string
	// Env is added to the environment of every program.
	Env []string

	t    testing.TB
	bins string
}

// New returns a stack on the given database and brokers and builds the programs
// if this process has not built them yet.
func New(t testing.TB, databaseURL string, brokers []string) *Stack {
	t.Helper()
	var id [4]byte
	rand.Read(id[:]) // never fails, see crypto/rand
	return &Stack{DatabaseURL: databaseURL, Brokers: brokers, Prefix: "t" + hex.EncodeToString(id[:]), t: t, bins: binaries(t)}
}

// Root returns the folder of the module.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

var build = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("REFOLD_TEST_BINARIES"); dir != "" {
		return dir, nil
	}
	dir := filepath.Join(Root(), ".cache", "test-bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "./writer", "./projector", "./rebuild")
	cmd.Dir = Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the programs: %w\n%s", err, out)
	}
	return dir, nil
})

func binaries(t testing.TB) string {
	dir, err := build()
	require.NoError(t, err)
	return dir
}

// UseBinaries has the stack run the programs of a folder, for tests of programs
// that stand in the place of refold's own.
func (s *Stack) UseBinaries(dir string) { s.bins = dir }

// Binary returns the path of a program by its name.
func (s *Stack) Binary(name string) string { return filepath.Join(s.bins, name) }

// Writer starts `writer serve` and waits until it is ready.
func (s *Stack) Writer(args ...string) *Program { return s.start("writer", "serve", args) }

// Dev starts `writer dev`, with servers of its own when the stack names none.
func (s *Stack) Dev(args ...string) *Program {
	return s.start("writer", "dev", append([]string{"--postgres-port=0", "--kafka-port=0"}, args...)) // several may start at one moment
}

// Projector starts `projector run`.
func (s *Stack) Projector(args ...string) *Program { return s.start("projector", "run", args) }

// Queries starts `projector serve`.
func (s *Stack) Queries(args ...string) *Program { return s.start("projector", "serve", args) }

// Rebuild starts `rebuild` with a command, and leaves it running.
func (s *Stack) Rebuild(command string, args ...string) *Program {
	return s.start("rebuild", command, args)
}

// Run runs a program to its end and returns what it printed and its exit code.
func (s *Stack) Run(name string, args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Binary(name), args...)
	cmd.Env = s.environ()
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		require.NoError(s.t, err, "running %s %v", name, args)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func (s *Stack) environ() []string {
	// An empty value counts as unset, so that the caller's own servers are not taken.
	env := append(os.Environ(), "DATABASE_URL="+s.DatabaseURL, "KAFKA_BOOTSTRAP_SERVERS="+strings.Join(s.Brokers, ","),
		"REFOLD_PREFIX="+s.Prefix, "NO_COLOR=1")
	if s.Schemas != "" {
		env = append(env, "REFOLD_SCHEMAS="+s.Schemas)
	}
	return append(env, s.Env...)
}

func (s *Stack) start(name, command string, args []string) *Program {
	s.t.Helper()
	p := &Program{Name: name + " " + command, t: s.t, addr: freeAddr(s.t), admin: freeAddr(s.t)}
	p.args = append([]string{command, "--admin-addr", p.admin}, args...)
	if command == "serve" || command == "dev" {
		p.args = append(p.args, "--addr", p.addr)
	}
	p.path, p.env = s.Binary(name), s.environ()
	p.Start()
	return p
}

// freeAddr returns an address of the loopback interface for a server to start.
func freeAddr(t testing.TB) string {
	addr, err := devstack.FreeAddr()
	require.NoError(t, err)
	return addr
}
