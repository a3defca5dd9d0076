package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// importShow shows how an import gets on: a bar on a terminal, else one line of
// JSON every five seconds.
type importShow struct {
	out   *os.File
	began time.Time

	mu      sync.Mutex // guards all below
	size    int64      // of the file, 0 when it is not known
	read    int64      // bytes that are done
	last    time.Time
	outcome importOutcome
	page    *mpb.Progress
	bar     *mpb.Bar
}

func newImportShow(out *os.File, jsonLines bool, size int64) *importShow {
	s := &importShow{out: out, began: time.Now(), last: time.Now(), size: size}
	if jsonLines || !term.IsTerminal(int(out.Fd())) {
		return s
	}
	s.page = mpb.New(mpb.WithOutput(out), mpb.WithWidth(40), mpb.WithRefreshRate(200*time.Millisecond))
	s.bar = s.page.AddBar(size,
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return s.status() })),
		mpb.AppendDecorators(decor.Percentage(decor.WC{W: 5})))
	return s
}

func (s *importShow) status() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := fmt.Sprintf("%d lines %.0f/s", s.outcome.Lines, float64(s.outcome.Lines)/max(time.Since(s.began).Seconds(), 0.001))
	if s.outcome.Replayed > 0 {
		text += fmt.Sprintf(" %d replayed", s.outcome.Replayed)
	}
	if s.outcome.Refused > 0 {
		text += fmt.Sprintf(" %d refused", s.outcome.Refused)
	}
	return text + " "
}

// importProgress is a line of JSON.
type importProgress struct {
	Time       time.Time `json:"time"`
	Lines      int64     `json:"lines"`
	Appended   int64     `json:"appended"`
	Replayed   int64     `json:"replayed"`
	Refused    int64     `json:"refused"`
	Bytes      int64     `json:"bytes"`
	TotalBytes int64     `json:"totalBytes,omitempty"`
}

// importLineEvery is how often a line is written where there is no terminal.
const importLineEvery = 5 * time.Second

// progress takes in that a line of so many bytes has its answer.
func (s *importShow) progress(size int, o importOutcome) {
	s.mu.Lock()
	s.outcome = o
	s.read += int64(size)
	line := s.page == nil && time.Since(s.last) > importLineEvery
	if line {
		s.last = time.Now()
		json.NewEncoder(s.out).Encode(importProgress{time.Now().UTC(), o.Lines, o.Appended, o.Replayed, o.Refused, s.read, s.size})
	}
	s.mu.Unlock()
	if s.bar != nil {
		s.bar.IncrBy(size)
	}
}

// skip takes in bytes that need no answer.
func (s *importShow) skip(size int) {
	s.mu.Lock()
	s.read += int64(size)
	s.mu.Unlock()
	if s.bar != nil {
		s.bar.IncrBy(size)
	}
}

// note says something above the bar.
func (s *importShow) note(text string) {
	if s.page != nil {
		fmt.Fprintln(s.page, text)
		return
	}
	fmt.Fprintln(s.out, text)
}

// end leaves the bar as it is.
func (s *importShow) end() {
	if s.page == nil {
		return
	}
	s.bar.Abort(false) // does nothing to a bar that is full
	s.page.Wait()
}
