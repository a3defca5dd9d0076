// Rebuild fills new fields of a projection, or builds a fresh version of it from the
// beginning of the log, checks it and lets it serve. It is one process that runs to its end, equally
// from a shell and as a Kubernetes Job.
package main

import (
	"github.com/refoldhq/refold/pkg/service"
	"github.com/refoldhq/refold/schemas"
)

// cli is the command line.
type cli struct {
	service.Settings
	service.RebuildCommands `embed:""`
}

func main() {
	service.Program{Name: "rebuild", Description: "Builds a fresh version of a projection from the beginning of the log, checks it and lets it serve.",
		Contracts: schemas.FS}.Main(&cli{})
}
