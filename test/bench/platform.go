package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/devstack"
)

// platform is refold's programs as processes of their own.
type platform struct {
	bench     *bench
	url       string // of the database
	prefix    string // of topics and groups
	schemas   string
	processes map[string]*exec.Cmd
	writerURL string
	queryURL  string
}

// platform starts the named programs (writer, relay, projector, queries) on a
// fresh database.
func (b *bench) platform(ctx context.Context, database string, programs ...string) (*platform, error) {
	_, url, err := freshDatabase(ctx, b.postgres, database)
	if err != nil {
		return nil, err
	}
	p := &platform{bench: b, url: url, prefix: strings.ReplaceAll(database, "_", "-"), processes: make(map[string]*exec.Cmd)}
	return p, p.start(ctx, programs...)
}

func (p *platform) start(ctx context.Context, programs ...string) error {
	bin, err := binaries()
	if err != nil {
		return err
	}
	for _, name := range programs {
		addr, admin := freeAddr(), freeAddr()
		var args []string
		switch name {
		case "writer":
			p.writerURL, args = "http://"+addr, []string{"writer", "serve", "--addr", addr}
		case "writer-without-relay":
			p.writerURL, args = "http://"+addr, []string{"writer", "serve", "--addr", addr, "--relay=off"}
		case "relay":
			args = []string{"writer", "relay"}
		case "projector":
			args = []string{"projector", "run"}
		case "queries-without-cache":
			p.queryURL, args = "http://"+addr, []string{"projector", "serve", "--addr", addr, "--cache-mib=0"}
		case "queries":
			p.queryURL, args = "http://"+addr, []string{"projector", "serve", "--addr", addr}
		}
		if err := p.launch(ctx, name, bin, admin, args); err != nil {
			return err
		}
	}
	return nil
}

func (p *platform) launch(ctx context.Context, name, bin, admin string, args []string) error {
	cmd := exec.Command(filepath.Join(bin, args[0]), append(args[1:], "--admin-addr", admin)...)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+p.url, "KAFKA_BOOTSTRAP_SERVERS="+strings.Join(p.bench.kafka.Brokers(), ","), "REFOLD_PREFIX="+p.prefix)
	if p.schemas != "" {
		cmd.Env = append(cmd.Env, "REFOLD_SCHEMAS="+p.schemas)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.CreateTemp("", "bench-"+name)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	p.processes[name] = cmd
	return await(ctx, 60*time.Second, name+" is not ready, see "+log.Name(), func() bool {
		res, err := http.Get("http://" + admin + "/readyz")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

// end stops one program.
func (p *platform) end(name string) {
	if cmd := p.processes[name]; cmd != nil {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		delete(p.processes, name)
	}
}

func (p *platform) close() {
	for name := range p.processes {
		p.end(name)
	}
}

// usage is what a process has used so far.
type usage struct {
	cpu      time.Duration
	rss, hwm int64 // bytes
}

func (u usage) String() string {
	return fmt.Sprintf("%d MiB at most, %d MiB now", u.hwm>>20, u.rss>>20)
}

// usage reads /proc.
func (p *platform) usage(name string) (u usage, err error) {
	pid := strconv.Itoa(p.processes[name].Process.Pid)
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return u, err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	for _, f := range fields[11:13] { // utime and stime, in ticks of 10 ms (proc(5))
		ticks, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return u, err
		}
		u.cpu += time.Duration(ticks) * 10 * time.Millisecond
	}
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return u, err
	}
	u.rss, u.hwm = kilobytes(string(status), "VmRSS:"), kilobytes(string(status), "VmHWM:")
	return u, nil
}

func kilobytes(status, name string) int64 {
	_, rest, _ := strings.Cut(status, name)
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	n, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return 0
	}
	return n << 10
}

var errTimeout = errors.New("timed out")

// await polls condition every 5 ms.
func await(ctx context.Context, within time.Duration, what string, condition func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, errTimeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}

func binaries() (string, error) {
	dir, err := filepath.Abs(filepath.Join("..", "..", ".cache", "bench-bin"))
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "./writer", "./projector", "./rebuild")
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the programs: %w\n%s", err, out)
	}
	return dir, nil
}

func freeAddr() string {
	addr, err := devstack.FreeAddr()
	if err != nil {
		panic(err) // a machine without loopback
	}
	return addr
}

// freshDatabase makes an empty database.
func freshDatabase(ctx context.Context, server *devstack.Postgres, name string) (*pgxpool.Pool, string, error) {
	admin, err := pgxpool.New(ctx, server.URL("postgres"))
	if err != nil {
		return nil, "", err
	}
	defer admin.Close()
	if _, err := admin.Exec(ctx, "drop database if exists "+name+" with (force)"); err != nil {
		return nil, "", err
	}
	if _, err := admin.Exec(ctx, "create database "+name); err != nil {
		return nil, "", err
	}
	pool, err := pgxpool.New(ctx, server.URL(name))
	return pool, server.URL(name), err
}
