package torture

import (
	"bufio"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/refoldhq/refold/test/platform"
)

// resources are what a program holds, by its own metrics.
type resources struct{ goroutines, files, residentMiB float64 }

func readResources(p *platform.Program) (r resources) {
	res, err := (&http.Client{Timeout: 5 * time.Second}).Get(p.AdminURL() + "/metrics")
	if err != nil {
		return r
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			continue
		}
		switch name {
		case "go_goroutines":
			r.goroutines = value
		case "process_open_fds":
			r.files = value
		case "process_resident_memory_bytes":
			r.residentMiB = value / (1 << 20)
		}
	}
	return r
}

// memoryMiB is the budget of each kind of program.
var memoryMiB = map[string]float64{"writer serve": 256, "projector run": 512, "projector serve": 256}

// checkResources checks invariant 17: what a program held when it had just
// started, and a little for the work that it has seen since.
func (r *run) checkResources() {
	r.t.Helper()
	for _, p := range r.world.programs() {
		before, now := r.baseline[p], resources{}
		settled := platform.Eventually(30*time.Second, func() bool {
			now = readResources(p)
			return now.goroutines > 0 && now.goroutines <= 2*before.goroutines+40 && now.files <= 2*before.files+40
		})
		if !settled {
			r.t.Errorf("17: %s had %v and has %v", p.Name, before, now)
		}
		if now.residentMiB > memoryMiB[p.Name] {
			r.t.Errorf("17: %s takes %.0f MiB, its budget is %.0f", p.Name, now.residentMiB, memoryMiB[p.Name])
		}
	}
}

func (r resources) String() string {
	return fmt.Sprintf("%.0f goroutines, %.0f files, %.0f MiB", r.goroutines, r.files, r.residentMiB)
}
