package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// client sends requests and keeps the tally.
type client struct {
	options
	http  *http.Client
	tally *tally
}

// newHTTP keeps connections, as clients do: those are what a rolling update cuts.
func newHTTP(conns int) *http.Client {
	return &http.Client{Timeout: 45 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: conns, IdleConnTimeout: time.Minute,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}}
}

// ask sends a request and decodes the answer. Where it fails, that is counted,
// and a patient client sends it again for up to two minutes. Rows that have not
// caught up with a token yet are no failure: the contract is to ask again.
func (c *client) ask(ctx context.Context, times *series, method, url string, header http.Header, body string, into any) bool {
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		begun := time.Now()
		err := c.once(ctx, method, url, header, body, into)
		if err == nil {
			times.add(time.Since(begun))
			return true
		}
		if errors.Is(err, errNotCaughtUp) && time.Now().Before(deadline) {
			c.tally.wait()
			continue
		}
		c.tally.fail("%s %s after %v: %v", method, url, time.Since(begun).Round(time.Millisecond), err)
		if !c.patient {
			return false
		}
		if time.Now().After(deadline) {
			c.tally.wrong("%s %s: no answer within two minutes", method, url)
			return false
		}
	}
}

var errNotCaughtUp = errors.New("the rows have not caught up with the token within its time")

func (c *client) once(ctx context.Context, method, url string, header http.Header, body string, into any) error {
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	for name, values := range header {
		r.Header[name] = values
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(raw), "/problems/not-caught-up") {
		return errNotCaughtUp
	}
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("status %d: %.300s", answer.StatusCode, raw)
	}
	return json.Unmarshal(raw, into)
}

// fill appends accounts, two events each, by NDJSON.
func fill(ctx context.Context, o options) error {
	var b strings.Builder
	for i := range o.lines {
		stream := fmt.Sprintf("%s-%d", o.prefix, i)
		fmt.Fprintf(&b, `{"appends":[{"category":"User","stream":"%s","events":[{"type":"UserCreated","data":{"id":"%s","email":"%s@refold.test","isActive":true}},{"type":"UserLoggedIn","data":{}}]}]}`+"\n", stream, stream, stream)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, o.writer+"/v1/append", strings.NewReader(b.String()))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/x-ndjson")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	for _, line := range lines[:len(lines)-1] {
		if !strings.Contains(line, `"status":201`) {
			return fmt.Errorf("an account was refused: %s", line)
		}
	}
	fmt.Printf("load: %d accounts\n", len(lines)-1)
	return nil
}

// tally counts what went well and wrong. It is safe for concurrent use.
type tally struct {
	appends, queries series
	mu               sync.Mutex
	failed, mistakes int
	waits            int // for rows to catch up, longer than the client had said
	shown            []string
}

// fail counts a request without a good answer, wrong an answer that is not true.
func (t *tally) fail(format string, args ...any)  { t.note(&t.failed, format, args...) }
func (t *tally) wrong(format string, args ...any) { t.note(&t.mistakes, "WRONG "+format, args...) }

func (t *tally) wait() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waits++
}

func (t *tally) note(count *int, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	*count++
	if len(t.shown) < 12 || count == &t.mistakes {
		t.shown = append(t.shown, time.Now().UTC().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}

// report prints the tally. It is an error if a request failed, unless the client
// was patient, or if anything was wrong.
func (t *tally) report(took time.Duration, patient bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, line := range t.shown {
		fmt.Println("load:", strings.TrimSpace(line))
	}
	fmt.Printf("load: %v: appends %v; queries %v; %d asked again for a row that lagged; %d failed, %d wrong\n",
		took.Round(time.Second), &t.appends, &t.queries, t.waits, t.failed, t.mistakes)
	if t.mistakes > 0 || t.failed > 0 && !patient {
		return errors.New("the load saw what it should not")
	}
	return nil
}

// series are durations.
type series struct {
	mu  sync.Mutex
	all []time.Duration
}

func (s *series) add(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, d)
}

func (s *series) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) == 0 {
		return "0"
	}
	slices.Sort(s.all)
	return fmt.Sprintf("%d (median %v, most %v)", len(s.all), s.all[len(s.all)/2].Round(time.Millisecond), s.all[len(s.all)-1].Round(time.Millisecond))
}
