package devstack

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// process is a child that ends with us.
type process struct {
	cmd  *exec.Cmd
	log  tail
	done chan struct{} // closed at its end
}

// startProcess starts cmd. The signal that a child gets at its parent's death is
// bound to the thread that started it (prctl(2), PR_SET_PDEATHSIG), so one
// thread stays for each child.
func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the child
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait() // how it ended is in cmd.ProcessState
		}
		close(p.done)
	}()
	return p, <-started
}

// end signals the process and waits for its end; after within it is killed.
func (p *process) end(signal syscall.Signal, within time.Duration) error {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signalling %s: %w", p.cmd.Path, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(within):
		p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s did not end within %v of %v and was killed", p.cmd.Path, within, signal)
	}
}

func (p *process) output() string { return p.log.String() }

// tail keeps the end of what a process prints.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailBytes = 16 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if over := len(t.buf) - tailBytes; over > 0 {
		t.buf = append([]byte(nil), t.buf[over:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
