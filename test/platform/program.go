package platform

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Program is one process of refold. It is stopped at the end of its test.
type Program struct {
	Name string

	t           testing.TB
	path        string
	args, env   []string
	addr, admin string

	mu   sync.Mutex
	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{}
}

// URL returns where the program's API listens.
func (p *Program) URL() string { return "http://" + p.addr }

// AdminURL returns where its health and metrics are.
func (p *Program) AdminURL() string { return "http://" + p.admin }

// Start starts the process, for the first time or again on the same ports, and
// waits until it is ready.
func (p *Program) Start() {
	p.t.Helper()
	p.Launch()
	p.AwaitReady(60 * time.Second)
}

// Launch starts the process and does not wait.
func (p *Program) Launch() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	first := p.log == nil
	if first {
		p.log = &logBuffer{}
	}
	cmd := exec.Command(p.path, p.args...)
	cmd.Env = p.env
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(p.t, cmd.Start(), "starting %s", p.Name)
	p.cmd, p.done = cmd, make(chan struct{})
	done := p.done
	go func() {
		cmd.Wait() // the exit code is read from cmd.ProcessState by Stop
		close(done)
	}()
	if first {
		p.t.Cleanup(p.cleanup)
	}
}

func (p *Program) cleanup() {
	p.signal(syscall.SIGCONT)
	p.signal(syscall.SIGKILL)
	<-p.exited()
	if p.t.Failed() {
		p.t.Logf("---- %s %v\n%s", p.Name, p.args, p.log.Tail(20_000))
	}
}

// Log returns what the program has printed so far.
func (p *Program) Log() string { return p.log.String() }

// Running tells whether the process lives.
func (p *Program) Running() bool {
	select {
	case <-p.exited():
		return false
	default:
		return true
	}
}

func (p *Program) exited() chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// Kill ends the process as kill -9 does, and waits for its end.
func (p *Program) Kill() {
	p.signal(syscall.SIGCONT)
	p.signal(syscall.SIGKILL)
	<-p.exited()
}

// Pause stops the process where it is; Resume lets it go on.
func (p *Program) Pause()  { p.signal(syscall.SIGSTOP) }
func (p *Program) Resume() { p.signal(syscall.SIGCONT) }

func (p *Program) signal(sig os.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("signalling %s: %v", p.Name, err)
	}
}

// Stop asks the program to end, as Kubernetes does, and returns its exit code
// and how long it took.
func (p *Program) Stop() (code int, took time.Duration) {
	p.t.Helper()
	start := time.Now()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.exited():
	case <-time.After(30 * time.Second):
		p.t.Errorf("%s did not end within 30 s of SIGTERM", p.Name)
		p.signal(syscall.SIGQUIT)
		p.Kill()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.ProcessState.ExitCode(), time.Since(start)
}

// AwaitReady waits until /readyz answers 200.
func (p *Program) AwaitReady(within time.Duration) {
	p.t.Helper()
	last := "no answer yet"
	ok := Eventually(within, func() bool {
		if !p.Running() {
			last = "the process has ended"
			return true
		}
		res, err := http.Get(p.AdminURL() + "/readyz?verbose")
		if err != nil {
			last = err.Error()
			return false
		}
		defer res.Body.Close()
		var body bytes.Buffer
		body.ReadFrom(res.Body)
		last = fmt.Sprintf("%d %s", res.StatusCode, body.String())
		return res.StatusCode == http.StatusOK
	})
	if !ok || !p.Running() {
		p.t.Fatalf("%s is not ready after %v: %s\n%s", p.Name, within, last, p.log.Tail(8000))
	}
}

// Eventually calls condition every 20 ms until it holds or the time is over.
func Eventually(within time.Duration, condition func() bool) bool {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if condition() {
			return true
		}
		select {
		case <-deadline.C:
			return condition()
		case <-tick.C:
		}
	}
}

// logBuffer keeps the last megabyte of what a program prints.
type logBuffer struct {
	mu  sync.Mutex
	buf []byte
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = append(b.buf, p...)
	if over := len(b.buf) - 1<<20; over > 1<<18 {
		b.buf = append([]byte(nil), b.buf[over:]...)
	}
	return len(p), nil
}

func (b *logBuffer) String() string { return b.Tail(1 << 21) }

// Tail returns at most the last n bytes.
func (b *logBuffer) Tail(n int) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.buf[max(0, len(b.buf)-n):])
}
