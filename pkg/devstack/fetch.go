package devstack

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	embedded "github.com/fergusstrange/embedded-postgres"
)

// FetchPostgres fetches the binaries of Postgres 17, once for each user of the
// machine, and returns their folder.
// The library unpacks them and then starts a server, which it cannot do as root;
// we want the binaries only, so what it says of the start does not matter.
func FetchPostgres() (string, error) {
	cache, err := cacheFolder("postgres-17")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(cache, "bin")
	if isExecutable(filepath.Join(bin, "initdb")) {
		return bin, nil
	}
	scratch, err := os.MkdirTemp("", "refold-fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	port, err := freePort()
	if err != nil {
		return "", err
	}
	server := embedded.NewDatabase(embedded.DefaultConfig().Version(embedded.V17).Port(uint32(port)).Logger(io.Discard).
		BinariesPath(cache).RuntimePath(filepath.Join(scratch, "run")).DataPath(filepath.Join(scratch, "data")))
	err = server.Start()
	if err == nil {
		err = server.Stop()
	}
	if !isExecutable(filepath.Join(bin, "initdb")) {
		return "", fmt.Errorf("%w; fetching it: %w", ErrNoPostgres, err)
	}
	return bin, nil
}

// cacheFolder returns a folder of refold's in the user's cache, which every
// account of the machine may read.
func cacheFolder(name string) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	if os.Geteuid() == 0 { // root's home is closed to the account that servers run as
		base = "/var/cache"
	}
	dir := filepath.Join(base, "refold", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the cache folder: %w", err)
	}
	return dir, nil
}
