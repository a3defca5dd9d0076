package devstack

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// process is a server of ours that ends when we do.
type process struct {
	cmd  *exec.Cmd
	log  string        // the file that it writes to
	from int64         // where in the file this run begins
	done chan struct{} // closed at its end
	// home is the temporary folder that it works in, if any. A server that nobody
	// refers to any more runs on, and a garbage-collected folder would be removed.
	home *folder
}

// startProcess starts cmd in a process group of its own, which keeps the
// terminal's Ctrl-C away from it, and appends what it prints to the file log.
// At our death, however it comes, the kernel sends it the signal orphaned.
func startProcess(cmd *exec.Cmd, log string, orphaned syscall.Signal, home *folder) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	defer out.Close()
	from, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	dieWithParent(cmd.SysProcAttr, orphaned)
	cmd.Stdout, cmd.Stderr = out, out
	p := &process{cmd: cmd, log: log, from: from, done: make(chan struct{}), home: home}
	started := make(chan error)
	go p.keep(started)
	return p, <-started
}

// keep starts the process and waits for its end. The signal at the parent's
// death is that of the thread which started it (prctl(2), PR_SET_PDEATHSIG), so
// this goroutine keeps its thread as long as the process lives.
func (p *process) keep(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.done)
	err := p.cmd.Start()
	started <- err
	if err == nil {
		p.cmd.Wait() // a server that ends is told by done; how, by its log
	}
	runtime.KeepAlive(p.home)
}

func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// end signals the process and waits for its end; after within it is killed,
// which is an error. A process that has ended, or was never started, is fine.
func (p *process) end(signal syscall.Signal, within time.Duration) error {
	if !p.running() {
		return nil
	}
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signalling %s: %w", p.cmd.Path, err)
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		err := p.cmd.Process.Kill()
		<-p.done
		return errors.Join(fmt.Errorf("%s did not end within %v of %v and was killed", p.cmd.Path, within, signal), err)
	}
}

const outputBytes = 16 << 10

// output returns the end of what this run of the process has printed.
func (p *process) output() string {
	f, err := os.Open(p.log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err.Error()
	}
	out := make([]byte, min(end-p.from, outputBytes))
	n, err := f.ReadAt(out, end-int64(len(out)))
	if err != nil {
		return err.Error()
	}
	return string(out[:n])
}
