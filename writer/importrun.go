package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/service"
)

// importRun sends lines and takes answers, by one request after the other: where
// one breaks off, the next begins with the first line that has no answer. What was
// done without an answer is met by its ids and replayed.
type importRun struct {
	command *importCommand
	client  *http.Client
	show    *importShow
	began   time.Time
	lines   chan sentLine // read ahead of the sender; closed at the end
	failed  error         // why reading ended, set before lines is closed

	mu      sync.Mutex
	free    *sync.Cond // unanswered lines have become fewer, or an attempt has ended
	waiting []sentLine // read and not answered, in order
	bytes   int        // of waiting
	gone    int        // lines of this attempt that are answered

	done    int64 // the last line of those that are answered without a gap
	outcome importOutcome
	token   event.Token
	tokens  []string // not merged into token yet
}

type sentLine struct {
	number int64
	text   []byte // stamped, with its newline
	size   int    // as it was read
}

// readAhead is how many lines are read before they are wanted: enough that reading
// and stamping go on beside sending.
const readAhead = 64

// maxWaiting bounds what is kept of lines without an answer.
const maxWaiting = 32 << 20

func newImportRun(c *importCommand, client *http.Client, in io.Reader, show *importShow) *importRun {
	r := &importRun{command: c, client: client, show: show, began: time.Now(), lines: make(chan sentLine, readAhead), done: c.From - 1}
	r.free = sync.NewCond(&r.mu)
	go r.pump(in) // ends with its input, which nobody can wake it from
	return r
}

// all imports until every line has its answer. It gives up when no line gets
// through for as long as the command's patience.
func (r *importRun) all(ctx context.Context) error {
	defer func() {
		r.outcome.Seconds = time.Since(r.began).Seconds()
		r.mergeTokens()
		r.outcome.Token = r.token.String()
	}()
	before, since, pause, said := int64(-1), time.Now(), 100*time.Millisecond, ""
	for {
		if more, err := r.fetch(ctx); err != nil || !more {
			return err
		}
		err := r.attempt(ctx)
		if r.done != before {
			before, since, pause = r.done, time.Now(), 100*time.Millisecond
		}
		switch {
		case ctx.Err() != nil:
			return errors.New("interrupted")
		case err != nil && !mayPass(err):
			return err
		case err != nil && time.Since(since) > r.command.Patience:
			return service.TryAgain(err)
		case err != nil:
			if text := fmt.Sprintf("trying again: %v", err); text != said {
				r.show.note(text)
				said = text
			}
			pause = r.wait(ctx, pause)
		}
	}
}

func (r *importRun) wait(ctx context.Context, pause time.Duration) time.Duration {
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
	return min(2*pause, 5*time.Second)
}

// fetch makes sure that there is a line to send, and tells whether there is: a
// request is begun only when it has something to say.
func (r *importRun) fetch(ctx context.Context) (more bool, err error) {
	r.mu.Lock()
	waiting := len(r.waiting)
	r.mu.Unlock()
	if waiting > 0 {
		return true, nil
	}
	l, err := r.read(ctx)
	switch {
	case errors.Is(err, io.EOF):
		return false, nil
	case ctx.Err() != nil:
		return false, errors.New("interrupted")
	case err != nil:
		return false, err
	}
	r.keep(l)
	return true, nil
}

// pump reads and stamps lines.
func (r *importRun) pump(in io.Reader) {
	defer close(r.lines)
	lines := bufio.NewReaderSize(in, 1<<20)
	for number := int64(1); ; number++ {
		text, err := lines.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			r.failed = fmt.Errorf("reading line %d: %w", number, err)
			return
		}
		size := len(text)
		if text = bytes.TrimSpace(text); len(text) == 0 || number < r.command.From {
			r.show.skip(size)
		} else {
			r.lines <- sentLine{number: number, text: append(stamp(r.command.Name, number, text), '\n'), size: size}
		}
		if err != nil {
			return
		}
	}
}

// read returns the next line that is to be imported, or io.EOF.
func (r *importRun) read(ctx context.Context) (sentLine, error) {
	select {
	case l, open := <-r.lines:
		if open {
			return l, nil
		}
		if r.failed != nil {
			return l, r.failed
		}
		return l, io.EOF
	case <-ctx.Done():
		return sentLine{}, ctx.Err()
	}
}

func (r *importRun) keep(l sentLine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = append(r.waiting, l)
	r.bytes += len(l.text)
}

// attempt is one request.
func (r *importRun) attempt(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.gone = 0
	body, out := io.Pipe()
	var sending sync.WaitGroup
	sending.Go(func() { out.CloseWithError(r.send(ctx, out)) })
	defer sending.Wait()
	defer func() { // a sender that waits for room must see that this attempt is over
		cancel()
		body.CloseWithError(context.Canceled)
		r.mu.Lock()
		r.free.Broadcast()
		r.mu.Unlock()
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(r.command.WriterURL, "/")+"/v1/append", body)
	if err != nil {
		return service.Usage(err)
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	if err := r.command.authorize(req); err != nil {
		return err
	}
	res, err := r.client.Do(req)
	if err != nil {
		return passes{err}
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		raw, _ := io.ReadAll(io.LimitReader(res.Body, 4096)) // what there is of it
		err := &refused{res.StatusCode, strings.TrimSpace(string(raw))}
		if res.StatusCode >= http.StatusInternalServerError || res.StatusCode == http.StatusTooManyRequests {
			return passes{err}
		}
		return err
	}
	return r.receive(res.Body)
}

// send writes the lines that wait for an answer, and then those that follow.
func (r *importRun) send(ctx context.Context, out io.Writer) error {
	for i := 0; ; i++ {
		l, err := r.toSend(ctx, i)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := out.Write(l.text); err != nil {
			return err
		}
	}
}

// toSend returns the i-th line of this attempt.
func (r *importRun) toSend(ctx context.Context, i int) (sentLine, error) {
	if l, there := r.waits(ctx, i); there || ctx.Err() != nil {
		return l, ctx.Err()
	}
	l, err := r.read(ctx)
	if err == nil {
		r.keep(l)
	}
	return l, err
}

// waits returns the i-th line of this attempt if it was read already; else it
// waits until another one may be read. Answered lines have gone from the front of
// waiting, so places are counted from the first of the attempt.
func (r *importRun) waits(ctx context.Context, i int) (l sentLine, there bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at := i - r.gone; at < len(r.waiting) {
		return r.waiting[at], true
	}
	for r.bytes > maxWaiting && ctx.Err() == nil {
		r.free.Wait()
	}
	return l, false
}

// lineAnswer is a line of the answer: of one line, or the last one.
type lineAnswer struct {
	Line    int64
	Lines   *int64
	Status  int
	Token   string
	Problem *struct {
		Type, Title, Detail, Pointer string
		Status                       int
	}
}

// receive takes answers until the last line.
func (r *importRun) receive(body io.Reader) error {
	in := bufio.NewReaderSize(body, 64<<10)
	for {
		raw, err := in.ReadBytes('\n')
		if err != nil {
			return passes{fmt.Errorf("the answer broke off: %w", err)}
		}
		var a lineAnswer
		if err := json.Unmarshal(raw, &a); err != nil {
			return fmt.Errorf("reading the answer: %w", err)
		}
		switch {
		case a.Lines != nil && a.Problem != nil:
			return passes{fmt.Errorf("%s: %s", a.Problem.Title, a.Problem.Detail)}
		case a.Lines != nil:
			return nil
		case a.Status == http.StatusServiceUnavailable: // this line and all behind it are asked again
			return passes{fmt.Errorf("%s: %s", a.Problem.Title, a.Problem.Detail)}
		}
		r.answered(&a)
	}
}

// answered notes the outcome of the first line that waits.
func (r *importRun) answered(a *lineAnswer) {
	r.mu.Lock()
	l := r.waiting[0]
	r.waiting[0] = sentLine{}
	r.waiting = r.waiting[1:]
	r.bytes -= len(l.text)
	r.gone++
	r.free.Broadcast()
	r.mu.Unlock()
	r.done = l.number
	r.outcome.Lines++
	switch a.Status {
	case http.StatusCreated:
		r.outcome.Appended++
	case http.StatusOK:
		r.outcome.Replayed++
	default:
		if r.outcome.Refused++; r.outcome.Refused <= shownRefusals {
			r.show.note(fmt.Sprintf("line %d is refused: %d %s %s%s", l.number, a.Status, a.Problem.Title, a.Problem.Detail, at(a.Problem.Pointer)))
		}
	}
	if a.Token != "" {
		if r.tokens = append(r.tokens, a.Token); len(r.tokens) >= 1000 {
			r.mergeTokens()
		}
	}
	r.show.progress(l.size, r.outcome)
}

func at(pointer string) string {
	if pointer == "" {
		return ""
	}
	return " at " + pointer
}

// mergeTokens makes one token of all.
func (r *importRun) mergeTokens() {
	marks := r.token
	for _, text := range r.tokens {
		if t, err := event.ParseToken(text); err == nil { // those of our own server
			marks = append(marks, t...)
		}
	}
	r.token, r.tokens = event.NewToken(marks...), r.tokens[:0]
}
