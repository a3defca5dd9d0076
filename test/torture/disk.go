package torture

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// disk is a small file system of the database's own, so that it can be filled
// without hurting anybody else.
type disk struct{ path string }

const diskBytes = 1 << 30

// mountDisk mounts one for the length of the test; nil where this process may
// not mount, which it says.
func mountDisk(t *testing.T) *disk {
	t.Helper()
	path := t.TempDir()
	for dir := path; dir != os.TempDir() && len(dir) > 1; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755) // the server's account passes through; where it cannot, starting says so
	}
	if err := syscall.Mount("tmpfs", path, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0711", diskBytes)); err != nil {
		fmt.Fprintf(os.Stderr, "\n*** %s runs without the fault of a full disk: mounting one: %v\n\n", t.Name(), err)
		return nil
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(path, 0); err != nil {
			t.Errorf("unmounting the disk: %v", err)
		}
	})
	return &disk{path}
}

// fill takes all space that is left.
func (d *disk) fill() error {
	f, err := os.Create(d.ballast())
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = io.CopyN(f, zeros{}, diskBytes); errors.Is(err, syscall.ENOSPC) {
		return nil
	}
	return fmt.Errorf("the disk is not full: %w", err)
}

func (d *disk) free() error { return os.Remove(d.ballast()) }

func (d *disk) ballast() string { return filepath.Join(d.path, "ballast") }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
