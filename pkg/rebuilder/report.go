package rebuilder

import (
	"context"
	"time"
)

// Report is what a verification found. It is kept with the rebuild.
type Report struct {
	Projection string    `json:"projection"`
	Version    int       `json:"version"`
	At         time.Time `json:"at"`
	// OK tells whether every check passed.
	OK     bool    `json:"ok"`
	Checks []Check `json:"checks"`
	// Forced is the reason why a failed report did not matter.
	Forced string `json:"forced,omitempty"`
}

// Check is one line of a report.
type Check struct {
	// Name is definition, coverage, storage, parked, sample, difference, full or
	// deterministic.
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Detail says what was compared, or what is wrong.
	Detail string `json:"detail"`
	// Fields counts rows that differ from the serving version, by field.
	Fields  map[string]int64 `json:"fields,omitempty"`
	Samples []Sample         `json:"samples,omitempty"`
	Took    string           `json:"took,omitempty"`

	took time.Duration // before the check itself
}

// Sample is one row that differs.
type Sample struct {
	Key  string `json:"key"`
	What string `json:"what"` // lost, extra or differs
	Got  string `json:"got,omitempty"`
	Want string `json:"want,omitempty"`
}

// make makes a check, and reports it if there was something to check.
func (r *Report) make(ctx context.Context, check func(context.Context) (Check, error)) error {
	began := time.Now()
	c, err := check(ctx)
	if err != nil || c.Name == "" {
		return err
	}
	c.Took = (c.took + time.Since(began)).Round(time.Millisecond).String()
	r.Checks, r.OK = append(r.Checks, c), r.OK && c.OK
	return nil
}

// Failed returns the checks that failed.
func (r *Report) Failed() (failed []Check) {
	for _, c := range r.Checks {
		if !c.OK {
			failed = append(failed, c)
		}
	}
	return failed
}
