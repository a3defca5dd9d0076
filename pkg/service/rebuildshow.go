package service

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/refoldhq/refold/pkg/rebuilder"
)

// rebuildShow shows how a rebuild gets on: bars on a terminal, else one line of JSON
// every five seconds and at every new step.
type rebuildShow struct {
	out    *os.File
	bars   bool
	mu     sync.Mutex
	last   time.Time
	step   rebuilder.Step
	state  rebuilder.State
	page   *mpb.Progress
	total  *mpb.Bar
	parts  map[string]*mpb.Bar
	name   atomic.Value // string, as status; the version is not known at first
	status atomic.Value // string; the bars read it without the lock that draw holds
}

func newRebuildShow(out *os.File, json bool) *rebuildShow {
	return &rebuildShow{out: out, bars: !json && term.IsTerminal(int(out.Fd())), parts: make(map[string]*mpb.Bar)}
}

// rebuildLineEvery is how often a line is written where there is no terminal.
const rebuildLineEvery = 5 * time.Second

// rebuildLine is one line of JSON.
type rebuildLine struct {
	Time       time.Time           `json:"time"`
	Projection string              `json:"projection"`
	Rebuild    int64               `json:"rebuild,string"`
	Version    int                 `json:"version,omitempty"`
	State      rebuilder.State     `json:"state"`
	Step       rebuilder.Step      `json:"step"`
	Progress   *rebuilder.Progress `json:"progress"`
}

// show takes what is new.
func (s *rebuildShow) show(r rebuilder.Rebuild) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bars {
		s.draw(r)
		return
	}
	if time.Since(s.last) < rebuildLineEvery && r.Step == s.step && r.State == s.state {
		return
	}
	s.last, s.step, s.state = time.Now(), r.Step, r.State
	p := r.Progress
	p.Partitions = nil // they are in `rebuild status -o json`
	json.NewEncoder(s.out).Encode(rebuildLine{time.Now().UTC(), r.Projection, r.ID, r.Version, r.State, r.Step, &p})
}

func (s *rebuildShow) draw(r rebuilder.Rebuild) {
	p := r.Progress
	status := fmt.Sprintf("%-10s %9.0f/s", r.Step, p.Rate)
	if p.ETASeconds > 0 {
		status += " ETA " + (time.Duration(p.ETASeconds) * time.Second).String()
	}
	if r.Step == rebuilder.StepCatchUp {
		status += fmt.Sprintf(" lag %d", p.Lag)
	}
	if p.Why != "" {
		status += "  " + p.Why
	}
	s.status.Store(status)
	name := r.Projection + " "
	if r.Version > 0 {
		name += fmt.Sprintf("v%d ", r.Version)
	}
	s.name.Store(name)
	if s.page == nil { // of no total yet: a bar that has reached its first one is done for good
		s.page = mpb.New(mpb.WithOutput(s.out), mpb.WithAutoRefresh(), mpb.WithRefreshRate(100*time.Millisecond))
		s.total = s.page.AddBar(0, mpb.BarPriority(0), mpb.PrependDecorators(decor.Any(text(&s.name)), decor.Percentage(decor.WCSyncSpace)),
			mpb.AppendDecorators(decor.Any(text(&s.status))))
	}
	s.total.SetTotal(max(1, p.Total), false)
	s.total.SetCurrent(p.Done)
	for _, part := range p.Partitions {
		name := fmt.Sprintf("%s/%d", part.Category, part.Partition)
		bar := s.parts[name]
		if bar == nil && part.Done > 0 && len(s.parts) < 16 {
			bar = s.page.AddBar(0, mpb.BarPriority(1+part.Partition), mpb.PrependDecorators(decor.Name("  "+name+" "), decor.Percentage(decor.WCSyncSpace)),
				mpb.AppendDecorators(decor.CountersNoUnit("%d / %d")))
			s.parts[name] = bar
		}
		if bar != nil {
			bar.SetTotal(part.Total, false)
			bar.SetCurrent(part.Done)
		}
	}
}

// text reads what a bar shows.
func text(of *atomic.Value) func(decor.Statistics) string {
	return func(decor.Statistics) string {
		text, _ := of.Load().(string)
		return text
	}
}

// end leaves the bars as they are.
func (s *rebuildShow) end() {
	s.mu.Lock()
	page := s.page
	bars := []*mpb.Bar{s.total}
	for _, b := range s.parts {
		bars = append(bars, b)
	}
	s.page = nil
	s.mu.Unlock()
	if page == nil {
		return
	}
	for _, b := range bars {
		b.Abort(false) // a complete one stays as it is
	}
	page.Wait()
}

// print writes v as JSON, or calls table.
func (c *RebuildCommands) print(v any, table func()) error {
	if c.Output == "json" {
		return json.NewEncoder(os.Stdout).Encode(v)
	}
	table()
	return nil
}

func (c *RebuildCommands) printRebuild(r rebuilder.Rebuild) error {
	return c.print(r, func() {
		fmt.Printf("rebuild %d of %s: version %d, %s", r.ID, r.Projection, r.Version, r.State)
		if r.State != rebuilder.Done {
			fmt.Printf(" at the step %s", r.Step)
		}
		fmt.Println()
		if r.Error != "" {
			fmt.Println("  " + r.Error)
		}
		if r.State == rebuilder.Waiting {
			fmt.Printf("  next: rebuild promote %s\n", r.Projection)
		}
		printChecks(r.Report)
	})
}

func (c *RebuildCommands) printReport(r *rebuilder.Report) error {
	if r == nil {
		return nil
	}
	return c.print(r, func() { printChecks(r) })
}

func printChecks(r *rebuilder.Report) {
	if r == nil {
		return
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, check := range r.Checks {
		result := "ok"
		if !check.OK {
			result = "FAILED"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", check.Name, result, check.Took, check.Detail)
		for field, n := range check.Fields {
			fmt.Fprintf(w, "\t\t\t  %s differs in %d rows\n", field, n)
		}
		for _, s := range check.Samples {
			fmt.Fprintf(w, "\t\t\t  %s %q: is %s, should be %s\n", s.What, s.Key, s.Got, s.Want)
		}
	}
	w.Flush()
	if r.Forced != "" {
		fmt.Println("  forced: " + r.Forced)
	}
}

func (c *RebuildCommands) printPlan(p rebuilder.Plan) error {
	return c.print(p, func() {
		fmt.Printf("%s: version %d serves; the deployed definition takes: %s\n", p.Projection, p.Serving, p.Change)
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		for _, f := range p.Fields {
			fmt.Fprintf(w, "  %s\t%s\t%s\n", f.Name, f.Change, f.Detail)
		}
		w.Flush()
		if p.Deep {
			fmt.Printf("  all %d events (%d MiB) were read and folded in %s: they make %d rows and park %d streams\n", p.Events, p.Bytes>>20,
				time.Duration(p.Seconds*float64(time.Second)).Round(time.Millisecond), p.Rows, p.Parked)
			return
		}
		fmt.Printf("  a rebuild reads %d events (about %d MiB), makes about %d rows, takes about %s and up to %d MiB\n", p.Events, p.Bytes>>20, p.Rows,
			time.Duration(p.Seconds*float64(time.Second)).Round(time.Second), p.Memory>>20)
		if !p.Complete {
			fmt.Println("  the history is incomplete: " + p.Why)
		}
		for _, warning := range p.Warnings {
			fmt.Println("  warning: " + warning)
		}
	})
}

func (c *RebuildCommands) printStatus(projections []rebuilder.ProjectionInfo, rebuilds []rebuilder.Rebuild) error {
	return c.print(map[string]any{"projections": projections, "rebuilds": rebuilds}, func() {
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "PROJECTION\tVERSION\tSTATE\tROWS\tLAG\tPARKED\tNOTE")
		for _, p := range projections {
			for _, v := range p.Versions {
				note := ""
				switch {
				case v.Due:
					note = "a rebuild is due: the deployed definition is another one"
				case v.KeepUntil != nil && v.State == "ready":
					note = "kept until " + v.KeepUntil.UTC().Format(time.RFC3339)
				}
				fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%d\t%d\t%s\n", p.Name, v.Version, v.State, v.Rows, v.Lag.Events, v.Parked, note)
			}
		}
		w.Flush()
		for _, r := range rebuilds {
			fmt.Printf("\nrebuild %d of %s (version %d): %s, step %s, %d of %d events, %.0f/s", r.ID, r.Projection, r.Version, r.State, r.Step, r.Progress.Done, r.Progress.Total, r.Progress.Rate)
			if r.Owner != "" {
				fmt.Printf(", run by %s", r.Owner)
			}
			fmt.Println()
			why := r.Progress.Why
			if r.State == rebuilder.Requested {
				why = "waits for a process that runs it: projector serve, writer dev, or rebuild run " + r.Projection
			}
			if why != "" {
				fmt.Println("  " + why)
			}
			if r.Error != "" {
				fmt.Println("  " + r.Error)
			}
			printChecks(r.Report)
		}
	})
}
