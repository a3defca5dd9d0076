// Package devstack starts what refold stands on, for `writer dev`, the tests and
// the benchmarks: a real Postgres, the in-process Kafka broker kfake, real Kafka
// brokers in KRaft mode, and a TCP proxy that fails on demand.
//
// Everything listens on the loopback interface, ends with the process that
// started it, and can be stopped, killed and started again on the same data and
// ports, which is what the fault suites do. Nothing here is for production.
package devstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// PostgresConfig says which server to start. The zero value is a temporary one
// on a free port.
type PostgresConfig struct {
	// Dir holds the data; empty makes a temporary folder that Close removes. A
	// folder that holds data already is started as it is.
	Dir string
	// Port is where it listens; 0 takes a free one.
	Port int
	// Settings are those of postgresql.conf.
	Settings map[string]string
	// Fsync makes commits durable against a crash of the machine, as production
	// has it. A crash of Postgres alone loses nothing either way.
	Fsync bool
}

// Postgres is a server of our own. Its methods are not safe for concurrent use.
type Postgres struct {
	cfg       PostgresConfig
	bin       string
	account   *account // who it runs as; nil: ourselves
	temporary bool
	process   *process
}

// StartPostgres starts a server and waits until it answers. As root it runs
// under another user, for initdb and postgres refuse root.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	bin, err := findPostgres()
	if err != nil {
		return nil, err
	}
	p := &Postgres{cfg: cfg, bin: bin, temporary: cfg.Dir == ""}
	if os.Geteuid() == 0 {
		if p.account, err = unprivileged(); err != nil {
			return nil, err
		}
	}
	if err := p.prepare(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// prepare makes the data folder and picks the port.
func (p *Postgres) prepare() (err error) {
	if p.temporary {
		removeAbandoned("refold-postgres-")
		if p.cfg.Dir, err = os.MkdirTemp("", fmt.Sprintf("refold-postgres-%d-", os.Getpid())); err != nil {
			return err
		}
	} else if err := os.MkdirAll(p.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	if p.cfg.Port == 0 {
		if p.cfg.Port, err = freePort(); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(p.cfg.Dir, "PG_VERSION")); err == nil {
		return nil
	}
	if p.account != nil {
		if err := os.Chown(p.cfg.Dir, p.account.uid, p.account.gid); err != nil {
			return fmt.Errorf("giving the data folder to %s: %w", p.account.name, err)
		}
	}
	return p.run("initdb", "-D", p.cfg.Dir, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
}

// run runs one of Postgres's programs to its end.
func (p *Postgres) run(program string, args ...string) error {
	cmd := exec.Command(filepath.Join(p.bin, program), args...)
	p.account.apply(cmd)
	cmd.Dir = p.cfg.Dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running %s: %w\n%s", program, err, out)
	}
	return nil
}

func (p *Postgres) start(ctx context.Context) error {
	settings := map[string]string{"listen_addresses": "127.0.0.1", "port": strconv.Itoa(p.cfg.Port), "unix_socket_directories": "",
		"max_connections": "200", "shared_buffers": "256MB", "fsync": "off", "full_page_writes": "off", "log_min_messages": "fatal", "logging_collector": "off",
		"wal_level": "replica", "max_wal_senders": "4", "autovacuum_naptime": "5s"}
	if p.cfg.Fsync {
		settings["fsync"], settings["full_page_writes"] = "on", "on"
	}
	for name, value := range p.cfg.Settings {
		settings[name] = value
	}
	args := []string{"-D", p.cfg.Dir}
	for name, value := range settings {
		args = append(args, "-c", name+"="+value)
	}
	cmd := exec.Command(filepath.Join(p.bin, "postgres"), args...)
	p.account.apply(cmd)
	cmd.Dir = p.cfg.Dir
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT // immediate shutdown, which its own children follow
	var err error
	if p.process, err = startProcess(cmd); err != nil {
		return fmt.Errorf("starting postgres: %w", err)
	}
	return p.awaitReady(ctx)
}

// awaitReady waits until the server takes statements.
func (p *Postgres) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("postgres did not come up within a minute"))
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, p.URL("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-p.process.done:
			return fmt.Errorf("postgres ended: %w\n%s", err, p.process.output())
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

// Stop ends the server in one of pg_ctl's modes: smart, fast or immediate.
func (p *Postgres) Stop(mode string) error {
	signal, ok := map[string]syscall.Signal{"smart": syscall.SIGTERM, "fast": syscall.SIGINT, "immediate": syscall.SIGQUIT}[mode]
	if !ok {
		return fmt.Errorf("stopping postgres: the mode %q is none of smart, fast, immediate", mode)
	}
	if p.process == nil {
		return nil
	}
	return p.process.end(signal, time.Minute)
}

// Kill ends the postmaster as kill -9 does. Its children notice and end.
func (p *Postgres) Kill() error { return p.process.end(syscall.SIGKILL, 10*time.Second) }

// Start starts the server again after Stop or Kill, on the same data and port.
func (p *Postgres) Start() error {
	// After a kill the children may still hold the shared memory: postgres says
	// so and ends, and a moment later it starts.
	var err error
	for range 50 {
		if err = p.start(context.Background()); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// Close stops the server and removes the data if it is temporary.
func (p *Postgres) Close() error {
	err := p.Stop("fast")
	if p.temporary && p.cfg.Dir != "" {
		err = errors.Join(err, os.RemoveAll(p.cfg.Dir))
	}
	return err
}

// Standby starts a streaming standby of the server.
func (p *Postgres) Standby(ctx context.Context) (*Postgres, error) {
	s := &Postgres{cfg: p.cfg, bin: p.bin, account: p.account, temporary: true}
	var err error
	if s.cfg.Dir, err = os.MkdirTemp("", fmt.Sprintf("refold-postgres-%d-", os.Getpid())); err != nil {
		return nil, err
	}
	if s.account != nil {
		if err := os.Chown(s.cfg.Dir, s.account.uid, s.account.gid); err != nil {
			return nil, err
		}
	}
	if s.cfg.Port, err = freePort(); err != nil {
		return nil, err
	}
	source := fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", p.cfg.Port)
	if err := s.run("pg_basebackup", "-D", s.cfg.Dir, "-d", source, "-R", "-X", "stream", "-c", "fast", "--no-sync"); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// PauseReplay makes a standby keep still at what it has replayed so far. What
// arrives afterwards is lost at a promotion, as with an asynchronous standby
// that was behind: the standby is cut from its primary too.
func (p *Postgres) PauseReplay(ctx context.Context) error {
	// A paused replay would not notice the new setting, so the receiver goes first.
	if err := p.exec(ctx, `alter system set primary_conninfo = ''`, `select pg_reload_conf()`); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for receiving := true; receiving; {
		if err := conn.QueryRow(ctx, `select exists (select from pg_stat_wal_receiver)`).Scan(&receiving); err != nil {
			return err
		}
	}
	_, err = conn.Exec(ctx, `select pg_wal_replay_pause()`)
	return err
}

// Promote makes a standby the primary.
func (p *Postgres) Promote(ctx context.Context) error {
	return p.exec(ctx, `select pg_wal_replay_resume()`, `select pg_promote(true, 30)`)
}

func (p *Postgres) exec(ctx context.Context, statements ...string) error {
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// account is the user that servers run as when we are root.
type account struct {
	name     string
	uid, gid int
}

func unprivileged() (*account, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err1 == nil && err2 == nil && uid != 0 {
			return &account{name, uid, gid}, nil
		}
	}
	return nil, errors.New("running as root, and neither of the users postgres and nobody exists: postgres refuses to run as root")
}

// apply makes cmd run as the account; of nil, as ourselves. A group of its own
// keeps the terminal's Ctrl-C away from it.
func (a *account) apply(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if a != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("looking for a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// removeAbandoned removes temporary folders of processes that are gone: a test
// binary has no last moment in which it could clean up.
func removeAbandoned(prefix string) {
	found, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range found {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		n, err := strconv.Atoi(pid)
		if err == nil && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			os.RemoveAll(dir)
		}
	}
}

var findPostgres = sync.OnceValues(func() (string, error) {
	for _, dir := range postgresFolders() {
		if isExecutable(filepath.Join(dir, "initdb")) && isExecutable(filepath.Join(dir, "postgres")) {
			return dir, nil
		}
	}
	return fetchPostgres()
})

// postgresFolders lists where binaries may be: the newest of Debian's folders
// first, as the PATH may hold some of them only.
func postgresFolders() []string {
	var dirs []string
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // the pattern is well formed
	for i := len(found) - 1; i >= 0; i-- {
		dirs = append(dirs, found[i])
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	return append(dirs, "/usr/local/pgsql/bin", "/opt/homebrew/bin", "/usr/pgsql-17/bin")
}

func isExecutable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir() && info.Mode()&0o111 != 0
}
