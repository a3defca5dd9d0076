package devstack

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// folder is a temporary folder that is gone when we are. A test binary has no
// last moment in which it could clean up, so a shell waits for that moment: it
// reads from a pipe whose other end only we hold.
type folder struct {
	path  string
	alive *os.File // the kernel closes it with us
	shell *exec.Cmd
}

// janitor removes $1 when the pipe closes. The server in the folder ends at the
// same moment and may write for a little longer.
const janitor = `read -r _
tries=0
while [ -e "$1" ] && [ $tries -lt 50 ]; do
	rm -rf "$1" 2>/dev/null
	tries=$((tries + 1))
	sleep 0.2
done`

// newFolder makes a folder whose name begins with prefix. It also removes those
// of processes that were killed together with their janitor.
func newFolder(prefix string) (*folder, error) {
	removeAbandoned(prefix)
	path, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", prefix, os.Getpid()))
	if err != nil {
		return nil, fmt.Errorf("making a temporary folder: %w", err)
	}
	f := &folder{path: path}
	if err := f.startJanitor(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(path))
	}
	return f, nil
}

func (f *folder) startJanitor() error {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	defer theirs.Close()
	shell := exec.Command("/bin/sh", "-c", janitor, "janitor", f.path)
	shell.Dir = "/"
	shell.Stdin = theirs
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := shell.Start(); err != nil {
		return errors.Join(fmt.Errorf("starting the janitor of %s: %w", f.path, err), ours.Close())
	}
	f.shell, f.alive = shell, ours
	return nil
}

func (f *folder) remove() error {
	if f == nil {
		return nil
	}
	err := os.RemoveAll(f.path)
	f.alive.Close()
	f.shell.Wait() // it has nothing left to do; its exit code says nothing
	return err
}

// removeAbandoned removes temporary folders of processes that are gone.
func removeAbandoned(prefix string) {
	found, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range found {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		n, err := strconv.Atoi(pid)
		if err == nil && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			os.RemoveAll(dir) // another process may be doing the same
		}
	}
}
