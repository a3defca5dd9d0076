// Package devstack starts what refold stands on, for `writer dev`, the tests and
// the benchmarks: a real Postgres ([StartPostgres]), the in-process Kafka broker
// kfake ([StartBroker]), real Kafka brokers in KRaft mode ([StartKafka]), and a
// TCP proxy that fails on demand ([StartProxy]).
//
// Everything listens on the loopback interface, ends with the process that
// started it, even when that is killed, and can be stopped, killed and started
// again on the same data and ports, which is what the fault suites do.
//
// Tests take [Database], [MigratedDatabase], [FakeKafka] and [RealKafka], which
// share servers within a test process, or use those that DATABASE_URL and
// KAFKA_BOOTSTRAP_SERVERS name. The program in the folder run starts both once
// for all packages of `go test ./...`.
//
// Nothing here is for production: servers trust everybody on this machine.
package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// PostgresConfig says which server to start. The zero value is a temporary one
// on a free port.
type PostgresConfig struct {
	// Dir holds the data; empty makes a temporary folder that Close removes. It may
	// be missing, empty, or hold the data of an earlier server.
	Dir string
	// Port is where it listens; 0 takes a free one.
	Port int
	// Settings are those of postgresql.conf and come before our own.
	Settings map[string]string
	// Fsync makes commits durable against a crash of the machine, as production
	// has it. A crash of Postgres alone loses nothing either way.
	Fsync bool
	// Binaries is the folder of initdb and postgres; empty takes the newest ones on
	// the machine, and fetches some where there are none.
	Binaries string
}

// Postgres is a server of our own. Its methods are not safe for concurrent use.
type Postgres struct {
	cfg       PostgresConfig
	account   *account
	temporary *folder
	process   *process
	primary   *Postgres // of a standby
}

// StartPostgres starts a server and waits until it answers. As root it runs
// under another user, because initdb and postgres refuse root.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	p := &Postgres{cfg: cfg}
	var err error
	if p.cfg.Binaries == "" {
		if p.cfg.Binaries, err = postgresBinaries(); err != nil {
			return nil, err
		}
	}
	if p.account, err = serverAccount(); err != nil {
		return nil, err
	}
	if err := p.begin(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Postgres) begin(ctx context.Context) error {
	if err := p.choosePlace(); err != nil {
		return err
	}
	if err := p.account.checkReach(p.cfg.Dir); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(p.cfg.Dir, "PG_VERSION")); errors.Is(err, os.ErrNotExist) {
		if err := p.initialize(ctx); err != nil {
			return err
		}
	}
	return p.start(ctx)
}

// choosePlace settles the data folder and the port.
func (p *Postgres) choosePlace() (err error) {
	if p.cfg.Port == 0 {
		if p.cfg.Port, err = freePort(); err != nil {
			return err
		}
	}
	if p.cfg.Dir != "" {
		if p.cfg.Dir, err = filepath.Abs(p.cfg.Dir); err != nil {
			return err
		}
		return os.MkdirAll(filepath.Dir(p.cfg.Dir), 0o755) // the account passes through it
	}
	if p.temporary, err = newFolder("refold-postgres-"); err != nil {
		return err
	}
	p.cfg.Dir = filepath.Join(p.temporary.path, "data")
	return os.Chmod(p.temporary.path, 0o711) // the account passes through it
}

// initialize runs initdb beside the data folder and moves the result there, so
// that a data folder is complete or not there at all.
func (p *Postgres) initialize(ctx context.Context) error {
	fresh := p.cfg.Dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("clearing what an earlier start left: %w", err)
	}
	if err := p.makeFolder(fresh); err != nil {
		return err
	}
	args := []string{"-D", fresh, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"}
	if !p.cfg.Fsync {
		args = append(args, "--no-sync")
	}
	if err := p.run(ctx, fresh, "initdb", args...); err != nil {
		return err
	}
	if err := os.Remove(p.cfg.Dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the data folder holds something that is no Postgres data: %w", err)
	}
	if err := os.Rename(fresh, p.cfg.Dir); err != nil {
		return fmt.Errorf("moving the new data into place: %w", err)
	}
	return nil
}

func (p *Postgres) makeFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	return p.account.give(dir)
}

// run runs one of Postgres's programs to its end.
func (p *Postgres) run(ctx context.Context, dir, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(p.cfg.Binaries, program), args...)
	p.account.apply(cmd)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running %s: %w\n%s", program, err, out)
	}
	return nil
}

// errEnded is returned by awaitReady when the server ended instead.
var errEnded = errors.New("postgres ended while it was starting")

// start starts the server. A predecessor that was killed may take a moment to
// give back the folder, its shared memory and the port.
func (p *Postgres) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("postgres did not come up within a minute"))
	defer cancel()
	patience := time.Now().Add(15 * time.Second)
	for {
		if err := p.launch(); err != nil {
			return err
		}
		err := p.awaitReady(ctx)
		if err == nil || !errors.Is(err, errEnded) || !p.isPredecessors() || time.Now().After(patience) {
			return err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// isPredecessors tells whether the server ended because of one that is still
// ending.
func (p *Postgres) isPredecessors() bool {
	out := p.process.output()
	for _, sign := range []string{"postmaster.pid", "shared memory block", "could not create any TCP/IP sockets"} {
		if strings.Contains(out, sign) {
			return true
		}
	}
	return false
}

func (p *Postgres) launch() (err error) {
	args := []string{"-D", p.cfg.Dir}
	for name, value := range p.settings() {
		args = append(args, "-c", name+"="+value)
	}
	cmd := exec.Command(filepath.Join(p.cfg.Binaries, "postgres"), args...)
	p.account.apply(cmd)
	cmd.Dir = p.cfg.Dir
	// SIGQUIT is an immediate shutdown, which takes the children along.
	if p.process, err = startProcess(cmd, filepath.Join(p.cfg.Dir, "server.log"), syscall.SIGQUIT, p.temporary); err != nil {
		return fmt.Errorf("starting postgres: %w", err)
	}
	return nil
}

func (p *Postgres) settings() map[string]string {
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(p.cfg.Port),
		"unix_socket_directories": "",
		"max_connections":         "200",
		"shared_buffers":          "256MB",
		"max_wal_size":            "2GB",
		"fsync":                   "off",
		"full_page_writes":        "off",
		"log_min_messages":        "fatal",
		"logging_collector":       "off",
		"wal_level":               "replica",
		"max_wal_senders":         "4",
		"autovacuum_naptime":      "5s",
	}
	if p.cfg.Fsync {
		settings["fsync"], settings["full_page_writes"] = "on", "on"
	}
	for name, value := range p.cfg.Settings {
		settings[name] = value
	}
	return settings
}

// awaitReady waits until the server takes statements.
func (p *Postgres) awaitReady(ctx context.Context) error {
	for {
		conn, err := pgx.Connect(ctx, p.URL("postgres"))
		if err == nil && p.process.running() { // else it was a predecessor that answered
			return conn.Close(ctx)
		}
		if err == nil {
			err = conn.Close(ctx)
		}
		select {
		case <-p.process.done:
			return fmt.Errorf("%w: %s", errEnded, p.process.output())
		case <-ctx.Done():
			return fmt.Errorf("%w: %w\n%s", context.Cause(ctx), err, p.process.output())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// URL returns the connection string of a database of the server.
func (p *Postgres) URL(database string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", p.cfg.Port, database)
}

// Dir returns the data folder.
func (p *Postgres) Dir() string { return p.cfg.Dir }

// Port returns the port that it listens on.
func (p *Postgres) Port() int { return p.cfg.Port }

// Pid returns the postmaster's process id, 0 while the server is stopped.
func (p *Postgres) Pid() int {
	if !p.process.running() {
		return 0
	}
	return p.process.cmd.Process.Pid
}

// Stop ends the server in one of pg_ctl's modes: smart, fast or immediate. A
// server that is stopped already is fine.
func (p *Postgres) Stop(mode string) error {
	signal, ok := map[string]syscall.Signal{"smart": syscall.SIGTERM, "fast": syscall.SIGINT, "immediate": syscall.SIGQUIT}[mode]
	if !ok {
		return fmt.Errorf("stopping postgres: the mode %q is none of smart, fast, immediate", mode)
	}
	return p.process.end(signal, time.Minute)
}

// Kill ends the postmaster as kill -9 does. Its children notice and end.
func (p *Postgres) Kill() error { return p.process.end(syscall.SIGKILL, 10*time.Second) }

// Start starts the server again after Stop or Kill, on the same data and port.
func (p *Postgres) Start() error {
	if p.process.running() {
		return errors.New("starting postgres: it is running")
	}
	return p.start(context.Background())
}

// Close stops the server and removes the data if it is temporary.
func (p *Postgres) Close() error {
	return errors.Join(p.Stop("fast"), p.temporary.remove())
}

func (p *Postgres) exec(ctx context.Context, statements ...string) error {
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return fmt.Errorf("connecting to postgres: %w", err)
	}
	defer conn.Close(ctx)
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// pause waits, and ends early with the context.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
