package devstack

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// ErrNoPostgres is wrapped when no Postgres is on this machine and none could be
// fetched.
var ErrNoPostgres = errors.New("no Postgres: install the package postgresql, or set DATABASE_URL")

// postgresBinaries is the folder of the newest Postgres on the machine, or else
// of the one that was fetched.
var postgresBinaries = sync.OnceValues(func() (string, error) {
	for _, dir := range postgresFolders() {
		if isExecutable(filepath.Join(dir, "initdb")) && isExecutable(filepath.Join(dir, "postgres")) {
			return dir, nil
		}
	}
	return FetchPostgres()
})

// postgresFolders lists where binaries may be, the best first. Debian keeps each
// version in a folder of its own, of which the PATH may hold some programs only.
func postgresFolders() []string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // the pattern is well formed
	slices.SortFunc(found, func(a, b string) int { return versionOf(b) - versionOf(a) })
	dirs := found
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	return dirs
}

// versionOf returns the 17 of /usr/lib/postgresql/17/bin.
func versionOf(dir string) int {
	version, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
	if err != nil {
		return 0
	}
	return version
}

func isExecutable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir() && info.Mode()&0o111 != 0
}
