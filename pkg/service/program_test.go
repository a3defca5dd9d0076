package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// commands is a program with one command, which notes what it got.
type commands struct {
	Settings
	Serve serveCommand `cmd:""`
	Other otherCommand `cmd:""`
}

type serveCommand struct {
	Admin `embed:"" set:"admin_port=9080"`
	Addr  string `default:"here"`
	Fail  string
}

type otherCommand struct{}

func (otherCommand) Run() error { return nil }

func (c *serveCommand) Run(ctx context.Context, s *Settings) error {
	if c.Fail != "" {
		return errors.New(c.Fail)
	}
	return nil
}

func parse(t *testing.T, args ...string) (*commands, error) {
	t.Helper()
	c := &commands{}
	err := Program{Name: "writer", Contracts: fstest.MapFS{}}.command(t.Context(), c, args)
	return c, err
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "refold.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// withoutServers unsets, for the test, the variables that name the suites' servers.
func withoutServers(t *testing.T) {
	t.Helper()
	for _, name := range []string{"DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS"} {
		t.Setenv(name, "") // restores it at the end
		require.NoError(t, os.Unsetenv(name))
	}
}

func TestConfigFileEnvironmentAndFlagsHaveTheSameNames(t *testing.T) {
	withoutServers(t)
	path := file(t, `
log-level: debug
kafka-bootstrap-servers: [a:1, b:2]
addr: top
prefix: |-
  text
rebuild:
  whatever: 1
writer:
  drain-delay: 3s
  serve:
    admin-addr: ":9"
`)
	c, err := parse(t, "serve", "--config", path)
	require.NoError(t, err)
	require.Equal(t, "DEBUG", c.LogLevel.String())
	require.Equal(t, []string{"a:1", "b:2"}, c.Kafka.BootstrapServers)
	require.Equal(t, "top", c.Serve.Addr)
	require.Equal(t, "text", c.Prefix)
	require.Equal(t, "3s", c.Serve.DrainDelay.String())
	require.Equal(t, ":9", c.Serve.AdminAddr)

	t.Setenv("REFOLD_ADDR", "environment")
	t.Setenv("REFOLD_CONFIG", path)
	c, err = parse(t, "serve", "--admin-addr=flag")
	require.NoError(t, err)
	require.Equal(t, "environment", c.Serve.Addr)
	require.Equal(t, "flag", c.Serve.AdminAddr)
}

func TestUnknownAndWrongSettingsAreRefusedWithTheirPlace(t *testing.T) {
	for text, want := range map[string]string{
		"log-levl: debug":                 `:1:1: unknown setting "log-levl": did you mean "log-level"?`,
		"\nwriter:\n  serve:\n    adr: x": `:4:5: unknown setting "adr": did you mean "addr"?`,
		"serve: {quite-another-thing: 1}": `:1:9: unknown setting "quite-another-thing": see writer --help`,
		"help: true":                      `unknown setting "help"`,
		"serve:\n  drain-delay: soon":     `:2:16: --drain-delay: expected duration`,
		"addr: {a: 1}":                    "want a value or a list of values",
		"serve: 7":                        "want settings as key: value",
		"addr: x\nwriter: {addr: y}":      "addr is set already",
		"addr: x\naddr: y":                "already defined",
		"kafka-security-protocol: CARRIER\nkafka-bootstrap-servers: a:1": "CARRIER",
		"kafka-ssl-cert-file: /x": "belong together",
	} {
		_, err := parse(t, "serve", "--config", file(t, text))
		require.ErrorContains(t, err, want, "in %q", text)
		require.Equal(t, ExitUsage, explain(err).Code, "in %q", text)
	}
	_, err := parse(t, "serve", "--config", "/not/there.yaml")
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Equal(t, ExitUsage, explain(err).Code)
}

func TestSecretsComeFromFiles(t *testing.T) {
	withoutServers(t)
	t.Setenv("DATABASE_URL_FILE", file(t, "postgres://secret\n"))
	t.Setenv("KAFKA_SASL_PASSWORD_FILE", file(t, "pass word\r\n"))
	c, err := parse(t, "serve")
	require.NoError(t, err)
	require.Equal(t, "postgres://secret", c.DatabaseURL)
	require.Equal(t, "pass word", c.Brokers("x").SASLPassword)

	t.Setenv("DATABASE_URL", "postgres://other")
	_, err = parse(t, "serve")
	require.ErrorContains(t, err, "both set")
	t.Setenv("DATABASE_URL", "")
	t.Setenv("DATABASE_URL_FILE", file(t, "\n"))
	_, err = parse(t, "serve")
	require.ErrorContains(t, err, "is empty")
}

func TestErrorsDecideTheExitCode(t *testing.T) {
	p := Program{Name: "writer", Contracts: fstest.MapFS{}}
	require.Equal(t, ExitOK, p.run(t.Context(), &commands{}, []string{"serve"}))
	require.Equal(t, ExitFailed, p.run(t.Context(), &commands{}, []string{"serve", "--fail=x"}))
	require.Equal(t, ExitUsage, p.run(t.Context(), &commands{}, []string{"nothing"}))

	for want, errs := range map[int][]error{
		ExitNotFound: {NotFound(errors.New("x")), readmodel.ErrUnknownProjection, eventstore.ErrUnknownCategory},
		ExitConflict: {Conflict(errors.New("x")), &eventstore.VersionConflict{}},
		ExitTryAgain: {TryAgain(errors.New("x")), &pgconn.PgError{Code: "57P03"}, context.Canceled},
		ExitFailed:   {errors.New("x"), &pgconn.PgError{Code: "42P01"}, &pgconn.PgError{Code: "28P01"}},
	} {
		for _, err := range errs {
			require.Equal(t, want, explain(fmt.Errorf("doing: %w", err)).Code, "%v", err)
		}
	}
}

func TestFailuresSayWhatToDo(t *testing.T) {
	var b bytes.Buffer
	explain(fmt.Errorf("reading rows: %w", &pgconn.PgError{Severity: "ERROR", Code: "42P01", Message: "no table"})).print(&b, "projector")
	require.Equal(t, "projector: reading rows: ERROR: no table (SQLSTATE 42P01)\n  likely cause: the schema refold is missing or older than this program\n  next: run `writer migrate`\n", b.String())
	b.Reset()
	explain(fmt.Errorf("retrying: %w", Conflict(errors.New("taken")).Because("another did it").Try("look"))).print(&b, "projector")
	require.Equal(t, "projector: retrying: taken\n  likely cause: another did it\n  next: look\n", b.String())
}
