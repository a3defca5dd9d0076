package rebuilder

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Progress is how far a rebuild is, for people. Done never falls.
type Progress struct {
	// Events of the pinned total that were folded, and the bytes of their records.
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
	Bytes int64 `json:"bytes"`
	// Rate is in events per second, of late.
	Rate float64 `json:"rate"`
	// ETASeconds is how long the load will still take; -1 when nobody can tell.
	ETASeconds float64 `json:"etaSeconds"`
	// Lag is how many events the version is behind the event table, once it is fed.
	Lag int64 `json:"lag"`
	// Why says what is waited for, empty when the rebuild gets on.
	Why        string              `json:"why,omitempty"`
	Partitions []PartitionProgress `json:"partitions,omitempty"`
}

// PartitionProgress is how far one partition is loaded.
type PartitionProgress struct {
	Category  string `json:"category"`
	Partition int    `json:"partition"`
	Source    Source `json:"source"`
	Done      int64  `json:"done"`
	Total     int64  `json:"total"`
	Passes    int    `json:"passes"`
	Loaded    bool   `json:"loaded"`
}

// meter collects progress from the workers of one load. It is safe for
// concurrent use.
type meter struct {
	parts []*partMeter

	mu       sync.Mutex // guards what follows
	why      string
	lag      int64
	last     int64 // events, at the time lastAt
	lastAt   time.Time
	window   time.Duration // that rate is averaged over
	rate     float64
	greatest Progress // what was shown of events and bytes
	check    *meter   // of a fold that a check makes; nil when there is none
}

// partMeter is the meter of one partition.
type partMeter struct {
	category  string
	partition int
	total     int64
	source    atomic.Value // Source
	done      atomic.Int64 // of total, whatever the number of passes
	bytes     atomic.Int64
	passes    atomic.Int64
	loaded    atomic.Bool
}

// reach notes that done of the total are folded; what is less than before is ignored.
func (p *partMeter) reach(done int64) {
	if done = min(done, p.total); done > p.done.Load() {
		p.done.Store(done)
	}
}

func (m *meter) wait(why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.why = why
}

func (m *meter) setLag(events int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lag = events
}

// follow tells of the fold that a check makes as what is waited for, until done is
// called.
func (m *meter) follow(check *meter) (done func()) {
	set := func(to *meter) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.check = to
	}
	set(check)
	return func() { set(nil) }
}

// rateWindow is how long rates are averaged over, about.
const rateWindow = 3 * time.Second

// read returns the progress at the time now.
func (m *meter) read(now time.Time) Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := Progress{Lag: m.lag, Why: m.why, ETASeconds: -1}
	if m.check != nil {
		check := m.check.read(now)
		if p.Why = check.Why; p.Why == "" {
			p.Why = fmt.Sprintf("folding to compare with: %d of %d events", check.Done, check.Total)
		}
	}
	for _, part := range m.parts {
		source, _ := part.source.Load().(Source)
		one := PartitionProgress{Category: part.category, Partition: part.partition, Source: source, Done: part.done.Load(), Total: part.total,
			Passes: int(part.passes.Load()), Loaded: part.loaded.Load()}
		p.Partitions = append(p.Partitions, one)
		p.Done, p.Total, p.Bytes = p.Done+one.Done, p.Total+one.Total, p.Bytes+part.bytes.Load()
	}
	p.Done, p.Bytes = max(m.greatest.Done, p.Done), max(m.greatest.Bytes, p.Bytes)
	m.greatest.Done, m.greatest.Bytes = p.Done, p.Bytes
	if since := now.Sub(m.lastAt); m.lastAt.IsZero() {
		m.last, m.lastAt = p.Done, now
	} else if since >= 200*time.Millisecond {
		m.window = min(rateWindow, m.window+since)
		weight := min(1, since.Seconds()/m.window.Seconds())
		m.rate = weight*float64(p.Done-m.last)/since.Seconds() + (1-weight)*m.rate
		m.last, m.lastAt = p.Done, now
	}
	p.Rate = m.rate
	if left := p.Total - p.Done; left == 0 {
		p.ETASeconds = 0
	} else if m.rate > 1 {
		p.ETASeconds = float64(left) / m.rate
	}
	return p
}

// limiter holds events to a rate, and everything while it is paused. It is safe
// for concurrent use.
type limiter struct {
	mu     sync.Mutex
	rate   float64 // events per second; 0 for no bound
	ready  time.Time
	paused chan struct{} // closed when it is not paused; nil when it never was
}

// take returns how long the caller has to wait for n events that it has read.
func (l *limiter) take(n int, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return 0
	}
	if l.ready.Before(now) {
		l.ready = now
	}
	l.ready = l.ready.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	return l.ready.Sub(now)
}

// step returns after how many events a reader has to take them: a twentieth of a
// second's, so that the rate holds at every moment and not on average only.
func (l *limiter) step() int {
	if l.rate == 0 {
		return math.MaxInt
	}
	return max(1, int(l.rate/20))
}

// pause holds everything up until resume.
func (l *limiter) pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paused == nil {
		l.paused = make(chan struct{})
	}
}

func (l *limiter) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paused != nil {
		close(l.paused)
		l.paused = nil
	}
}

func (l *limiter) held() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.paused
}
