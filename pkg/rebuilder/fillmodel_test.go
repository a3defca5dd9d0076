package rebuilder

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A model of how new fields are filled into rows of one stream while the version
// is fed, see fields.go: every interleaving of an engine of the former plan, one of
// the new plan, the job, which is killed anywhere and may be cancelled, and the log,
// which grows. Each step of the model is what one transaction, or one read outside
// of any, does in the code; a lock that is held makes several of them one step.
//
// The log has one slot. Of stream 0 both plans make rows; of stream 1 only the new
// plan does, from events of a new type. A row is how many events each kind of its
// fields has counted.

const (
	modelStreams = 2
	modelEvents  = 4
)

// modelLog is the stream of each event by seq, from 1 on.
var modelLog = [modelEvents + 1]int8{-1, 0, 1, 0, 0}

const absent = int8(-1) // a row that is not there, or fields that it lacks

type modelRow struct{ old, new int8 }

// modelEngine is one feeder. What it has in memory goes with its claim.
type modelEngine struct {
	claimed bool
	epoch   int8
	seq     int8
	cache   [modelStreams]modelRow
	cached  [modelStreams]bool
	loaded  int8     // how far it is with the next event: 0 nothing, 1 the row is read, 2 it is complete
	row     modelRow // of the next event
}

type modelState struct {
	events    int8 // that are appended
	seq       int8 // applied, by the progress in the database
	epoch     int8
	next      bool // the version is fed by the new plan
	published bool
	rows      [modelStreams]modelRow
	engines   [2]modelEngine // of the former plan, and of the new one
	step      int8           // of the job: 0 before, 1 missing rows, 2 filling, 3 done, 4 cancelling, 5 cancelled
	page      int8           // the next stream that the job looks at
	read      modelRow       // planted: what a fill without the lock has folded
	reading   bool
}

// modelBugs are mechanisms that are left out.
type modelBugs struct{ epoch, completing, fillLock, cacheGoes, abandonEpoch bool }

// made is the row that a plan makes of a stream up to a seq.
func made(stream int, seq int8, next bool) modelRow {
	var n int8
	for at := int8(1); at <= seq; at++ {
		if int(modelLog[at]) == stream {
			n++
		}
	}
	switch {
	case n == 0 || stream == 1 && !next:
		return modelRow{absent, absent}
	case stream == 1:
		return modelRow{0, n}
	case next:
		return modelRow{n, n}
	}
	return modelRow{n, absent}
}

// wrong says which promise a state breaks.
func (s *modelState) wrong() string {
	for stream := range s.rows {
		row, full, former := s.rows[stream], made(stream, s.seq, true), made(stream, s.seq, false)
		switch {
		case former.old != absent && row.old != former.old:
			return fmt.Sprintf("the former fields of row %d are %d, the log makes %d", stream, row.old, former.old)
		case s.step < 4 && row.new != absent && row.new != full.new:
			return fmt.Sprintf("the new fields of row %d are %d, the log makes %d", stream, row.new, full.new)
		case s.published && row != full:
			return fmt.Sprintf("row %d is shown as %v, the log makes %v", stream, row, full)
		case s.step == 5 && row != former:
			return fmt.Sprintf("row %d is left as %v, the log makes %v", stream, row, former)
		}
	}
	return ""
}

// successors calls to with every state that one step leads to.
func (s modelState) successors(bugs modelBugs, to func(string, modelState)) {
	if s.events < modelEvents {
		n := s
		n.events++
		to("append", n)
	}
	for e := range s.engines {
		s.feed(e, bugs, to)
	}
	s.job(bugs, to)
}

func (s modelState) feed(e int, bugs modelBugs, to func(string, modelState)) {
	name := [2]string{"former ", "newer "}[e]
	isNew := e == 1
	if isNew == s.next && s.epoch < 6 { // claims compare the plan
		n := s
		n.epoch++
		before := n.engines[e]
		n.engines[e] = modelEngine{claimed: true, epoch: n.epoch, seq: n.seq}
		if bugs.cacheGoes {
			n.engines[e].cache, n.engines[e].cached = before.cache, before.cached
		}
		to(name+"claims", n)
	}
	engine := s.engines[e]
	if !engine.claimed || engine.seq >= s.events {
		return
	}
	stream := modelLog[engine.seq+1]
	n := s
	m := &n.engines[e]
	switch engine.loaded {
	case 0:
		m.loaded, m.row = 1, s.rows[stream]
		if engine.cached[stream] {
			m.loaded, m.row = 2, engine.cache[stream]
		}
		to(name+"reads the row", n)
	case 1:
		m.loaded = 2
		if isNew && m.row.new == absent && !bugs.completing {
			if full := made(int(stream), engine.seq, true); full.old != absent {
				m.row.new = full.new
				if m.row.old == absent {
					m.row.old = full.old
				}
			}
		}
		to(name+"completes the row", n)
	case 2:
		if engine.epoch != s.epoch && !(bugs.epoch && e == 0) { // refused by the database
			*m = modelEngine{}
			to(name+"is fenced", n)
			return
		}
		if stream == 0 || isNew { // else it is of no use to the plan
			row := modelRow{max(m.row.old, 0), max(m.row.new, 0) + 1}
			if stream == 0 {
				row.old++
			}
			if !isNew {
				row.new = absent // the former plan writes its own fields only
			}
			n.rows[stream], m.cache[stream], m.cached[stream] = row, row, true
		}
		m.seq, m.loaded = m.seq+1, 0
		n.seq = m.seq
		to(name+"commits", n)
	}
}

func (s modelState) job(bugs modelBugs, to func(string, modelState)) {
	n := s
	switch s.step {
	case 0: // BeginCompletion, one transaction
		n.next, n.step, n.page = true, 1, 0
		if !bugs.epoch {
			n.epoch++
		}
		to("the plan is changed", n)
	case 1, 2:
		if s.page > 0 || s.reading {
			k := s
			k.page, k.reading = 0, false
			to("the job is killed", k)
		}
		s.fill(bugs, to)
		c := s
		c.next, c.step, c.page, c.reading = false, 4, 0, false
		if !bugs.abandonEpoch {
			c.epoch++
		}
		to("cancel", c)
	case 4:
		if s.page == modelStreams {
			n.step = 5
			to("cancelled", n)
			return
		}
		n.page++
		if s.rows[s.page].new != absent {
			n.rows[s.page] = modelRow{s.rows[s.page].old, absent}
			if made(int(s.page), s.seq, false).old == absent {
				n.rows[s.page] = modelRow{absent, absent}
			}
		}
		to("the job strips a row", n)
	}
}

// fill makes missing rows in the step 1, completes rows in the step 2, a stream at
// a time, under the lock of the progress.
func (s modelState) fill(bugs modelBugs, to func(string, modelState)) {
	n := s
	if s.page == modelStreams {
		if n.page = 0; s.step == 1 {
			n.step = 2
			to("missing rows are made", n)
			return
		}
		n.step, n.published = 3, true
		to("the fields are offered", n)
		return
	}
	row := s.rows[s.page]
	missing := row.old == absent && row.new == absent
	n.page++
	if !s.reading && (s.step == 1 && !missing || s.step == 2 && (missing || row.new != absent)) {
		to("the job passes a row", n)
		return
	}
	full := made(int(s.page), s.seq, true)
	if bugs.fillLock {
		if !s.reading {
			n.page, n.reading, n.read = s.page, true, full
			to("the job folds a stream", n)
			return
		}
		full, n.reading = s.read, false
	}
	if s.step == 1 {
		n.rows[s.page] = full
	} else {
		n.rows[s.page].new = full.new // the new fields only
	}
	to("the job fills a row", n)
}

// explore walks all states, and returns how many there are and the way to the first
// that breaks a promise.
func explore(bugs modelBugs) (states int, wrong string) {
	type from struct {
		state modelState
		step  string
	}
	first := modelState{}
	for i := range first.rows {
		first.rows[i] = modelRow{absent, absent}
	}
	seen := map[modelState]from{first: {}}
	queue := []modelState{first}
	for len(queue) > 0 && wrong == "" {
		s := queue[0]
		queue = queue[1:]
		s.successors(bugs, func(step string, n modelState) {
			if _, known := seen[n]; known || wrong != "" {
				return
			}
			seen[n] = from{s, step}
			queue = append(queue, n)
			if what := n.wrong(); what != "" {
				var way []string
				for at := n; at != first; at = seen[at].state {
					way = append([]string{seen[at].step}, way...)
				}
				wrong = strings.Join(way, "; ") + ": " + what
			}
		})
	}
	return len(seen), wrong
}

// Filling new fields keeps its promises in every interleaving, and each of its
// mechanisms is needed for that.
func TestEveryInterleavingOfFillingKeepsRowsRight(t *testing.T) {
	t.Parallel()
	states, wrong := explore(modelBugs{})
	require.Empty(t, wrong)
	require.Greater(t, states, 10_000)
	t.Logf("%d states", states)
	for name, bugs := range map[string]modelBugs{
		"the change of plan fences nobody": {epoch: true}, "rows are not completed before they are written": {completing: true},
		"a fill does not hold the progress": {fillLock: true}, "what is in memory outlives a claim": {cacheGoes: true},
		"going back fences nobody": {abandonEpoch: true},
	} {
		_, wrong := explore(bugs)
		require.NotEmpty(t, wrong, name)
		t.Logf("%s: %s", name, wrong)
	}
}
