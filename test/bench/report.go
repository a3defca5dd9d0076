package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/devstack"
)

// report collects rows of Markdown and shows each as it comes.
type report struct{ text strings.Builder }

func newReport() *report {
	r := &report{}
	r.text.WriteString("# Figures\n\nMade by `make bench`. Each figure stands beside a limit or a peer of the same run; the ratio is what counts.\n\n")
	return r
}

func (r *report) machine(ctx context.Context, postgres *devstack.Postgres) {
	version := "unknown"
	if conn, err := pgx.Connect(ctx, postgres.URL("postgres")); err == nil {
		conn.QueryRow(ctx, "show server_version").Scan(&version)
		conn.Close(ctx)
	}
	commit, _ := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	fmt.Fprintf(&r.text, "%s, commit %s, %s, %d cores shared by Postgres %s (fsync on), Kafka 4.3.1, the load and what is measured.\n",
		time.Now().UTC().Format(time.DateOnly), strings.TrimSpace(string(commit)), runtime.Version(), runtime.NumCPU(), version)
}

func (r *report) section(title string) {
	fmt.Fprintf(&r.text, "\n## %s\n\n| what | figure | goal | limit or peer of this run | ratio |\n|---|---|---|---|---|\n", title)
}

// line adds a row. Ratio is of the figure to the limit or peer; 0 leaves it out.
func (r *report) line(what, figure, goal, peer string, ratio float64) {
	shown := ""
	if ratio > 0 {
		shown = fmt.Sprintf("%.2f", ratio)
	}
	fmt.Fprintf(&r.text, "| %s | %s | %s | %s | %s |\n", what, figure, goal, peer, shown)
	fmt.Fprintf(os.Stderr, "%-60s %-36s %-28s %s %s\n", what, figure, goal, peer, shown)
}

func (r *report) note(format string, args ...any) { fmt.Fprintf(&r.text, "\n"+format+"\n", args...) }

func (r *report) write(out string) error {
	if out == "" {
		_, err := os.Stdout.WriteString(r.text.String())
		return err
	}
	return os.WriteFile(out, []byte(r.text.String()), 0o644)
}

// latencies are durations of single operations.
type latencies []time.Duration

// at returns the q-quantile, 0 when there are none. It sorts l.
func (l latencies) at(q float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	slices.Sort(l)
	return l[min(len(l)-1, int(q*float64(len(l))))]
}

func (l latencies) String() string {
	return fmt.Sprintf("p50 %s, p99 %s", short(l.at(0.5)), short(l.at(0.99)))
}

func short(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

func rate(n int, took time.Duration) float64 { return float64(n) / took.Seconds() }

// thousands shows a rate as people say it.
func thousands(perSecond float64) string {
	if perSecond >= 1e6 {
		return fmt.Sprintf("%.2f M/s", perSecond/1e6)
	}
	return fmt.Sprintf("%.1fk/s", perSecond/1000)
}

// cpu returns the CPU time that this process has used so far.
func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
