package api

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/problem"
)

// An import reads ahead of its answers by so many lines and events: some batches
// of the largest kind, so that the lanes are never idle while the client waits.
// What lines that are not committed yet take is bounded in bytes by the store.
const (
	importLines  = 4096
	importEvents = 32768
)

// importing is one import under way. One goroutine reads lines and submits them,
// another answers them.
type importing struct {
	api     *API
	control *http.ResponseController
	in      *bufio.Reader
	room    *semaphore.Weighted // events of lines without an answer
	lines   chan importLine
	last    []*eventstore.Pending // submitted last, by lane
	buf     []byte
	broken  *problem.Problem // why the body ended before its end; set before lines is closed
}

// importLine is one line between its reading and its answer.
type importLine struct {
	pending *eventstore.Pending
	err     error
	events  int64 // of the room
}

// importLines commits each line by itself and answers in order, as they commit.
// Lines are read no faster than they commit. The last line of the answer counts
// them, and says so if the body broke off before its end.
func (a *API) importLines(w http.ResponseWriter, r *http.Request) error {
	control := http.NewResponseController(w)
	if err := control.EnableFullDuplex(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	control.SetReadDeadline(time.Now().Add(a.cfg.ReadTimeout))
	body, err := decoded(r.Header.Get("Content-Encoding"), r.Body)
	if err != nil {
		return err
	}
	i := &importing{api: a, control: control, in: bufio.NewReaderSize(body, 64<<10), room: semaphore.NewWeighted(importEvents), lines: make(chan importLine, importLines)}
	w.Header().Set("Content-Type", "application/x-ndjson")
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(i.lines)
		i.read(ctx)
	})
	err = i.answer(ctx, bufio.NewWriterSize(w, 32<<10))
	cancel()
	if err != nil { // nobody reads the answers, so nobody sends lines: the read that waits for one must end
		control.SetReadDeadline(time.Now())
	}
	reading.Wait()
	if err != nil {
		a.deps.Logger.Debug("import ended early", "err", err)
	}
	return nil // the answer has begun
}

// decoded returns what a body holds.
func decoded(encoding string, body io.Reader) (io.Reader, error) {
	switch encoding {
	case "", "identity":
		return body, nil
	case "gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, problem.BadRequest("the body is not gzip")
		}
		return z, nil
	default:
		return nil, problem.New(http.StatusUnsupportedMediaType, "unsupported-media-type", "The body's encoding is not supported", "want gzip or none")
	}
}

// read parses and submits lines until the body ends.
func (i *importing) read(ctx context.Context) {
	for {
		i.control.SetReadDeadline(time.Now().Add(i.api.cfg.ReadTimeout)) // where it is not supported the server's own holds
		line, err := i.readLine()
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, errLineTooLong) {
			i.broken = brokenBody(ctx, err) // of a line that is cut off nothing is done
			return
		}
		if len(bytes.TrimSpace(line)) > 0 || errors.Is(err, errLineTooLong) {
			next := importLine{err: err}
			if !errors.Is(err, errLineTooLong) {
				next = i.submit(ctx, line)
			}
			select {
			case i.lines <- next:
			case <-ctx.Done():
				i.broken = brokenBody(ctx, ctx.Err())
				return
			}
		}
		if errors.Is(err, io.EOF) {
			return
		}
	}
}

// brokenBody says why a body ended before its end.
func brokenBody(ctx context.Context, err error) *problem.Problem {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded): // it ends ctx too
		return problem.New(http.StatusRequestTimeout, "too-slow", "No line came for too long", "what is answered above stands; the rest was not read")
	case ctx.Err() != nil:
		return problem.New(http.StatusServiceUnavailable, "unavailable", "The import was cut off", "what is answered above stands; the rest was not read")
	default:
		return problem.BadRequest("the body broke off or could not be decoded: what is answered above stands, of a line that was cut off nothing is done")
	}
}

var errLineTooLong = problem.New(http.StatusRequestEntityTooLarge, "too-large", "The line is too large", "")

// readLine reads up to the next newline, into memory that the next call uses
// again. Of a line beyond the limit the rest is passed over.
func (i *importing) readLine() (line []byte, err error) {
	i.buf = i.buf[:0]
	for {
		part, err := i.in.ReadSlice('\n')
		if len(i.buf)+len(part) > i.api.cfg.MaxBodyBytes+1 {
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = i.in.ReadSlice('\n')
			}
			if err == nil || errors.Is(err, io.EOF) {
				err = errLineTooLong
			}
			return nil, err
		}
		i.buf = append(i.buf, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return i.buf, err
		}
	}
}

// submit submits one line. A line of several streams may go through another lane
// than its neighbours on the same streams, so it waits for all before it, and those
// behind it wait for it. Lanes keep the order of what they are given, so the last
// one of each lane stands for all before it.
func (i *importing) submit(ctx context.Context, line []byte) importLine {
	req, err := i.api.parseMany(line, true)
	if err != nil {
		return importLine{err: err}
	}
	out := importLine{}
	for j := range req.Appends {
		out.events += int64(len(req.Appends[j].Events))
	}
	if out.err = i.room.Acquire(ctx, out.events); out.err != nil {
		out.events = 0
		return out
	}
	if len(req.Appends) > 1 {
		if out.err = waitAll(ctx, i.last); out.err != nil {
			return out
		}
	}
	if out.pending, out.err = i.api.deps.Store.Submit(ctx, req); out.err != nil {
		return out
	}
	for len(i.last) <= out.pending.Lane() {
		i.last = append(i.last, nil)
	}
	i.last[out.pending.Lane()] = out.pending
	if len(req.Appends) > 1 {
		if waitAll(ctx, []*eventstore.Pending{out.pending}) != nil {
			return out // whoever answers it says that its outcome is not known
		}
	}
	return out
}

func waitAll(ctx context.Context, list []*eventstore.Pending) error {
	for _, p := range list {
		if p == nil {
			continue
		}
		select {
		case <-p.Done():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// answer writes an answer for each line, in order, and the last line.
func (i *importing) answer(ctx context.Context, out *bufio.Writer) error {
	written := make(map[slotName]event.Mark)
	n := 0
	var buf []byte
	for {
		line, open := i.next(out)
		if !open {
			break
		}
		n++
		buf = i.answerLine(ctx, buf[:0], n, line, written, out)
		i.room.Release(line.events)
		if _, err := out.Write(buf); err != nil {
			return err
		}
	}
	if _, err := out.Write(i.lastLine(buf[:0], n, written)); err != nil {
		return err
	}
	return i.flush(out)
}

// lastLine counts the lines and has one token for all. Where the body broke off
// it says why.
func (i *importing) lastLine(buf []byte, n int, written map[slotName]event.Mark) []byte {
	marks := make([]event.Mark, 0, len(written))
	for _, m := range written {
		marks = append(marks, m)
	}
	buf = append(buf, `{"lines":`...)
	buf = strconv.AppendInt(buf, int64(n), 10)
	buf = append(buf, `,"token":"`...)
	buf = append(append(buf, event.NewToken(marks...).String()...), '"')
	if i.broken != nil {
		doc, _ := json.Marshal(i.broken) // strings and numbers only
		buf = append(append(buf, `,"problem":`...), doc...)
	}
	return append(buf, '}', '\n')
}

type slotName struct {
	category string
	slot     int
}

// next takes the next line; before it waits for one, what is written is sent.
func (i *importing) next(out *bufio.Writer) (importLine, bool) {
	select {
	case line, open := <-i.lines:
		return line, open
	default:
		i.flush(out) // a client that has gone is noticed at the next write
		line, open := <-i.lines
		return line, open
	}
}

func (i *importing) flush(out *bufio.Writer) error {
	if err := out.Flush(); err != nil {
		return err
	}
	return i.control.Flush()
}

func (i *importing) answerLine(ctx context.Context, buf []byte, n int, line importLine, written map[slotName]event.Mark, out *bufio.Writer) []byte {
	result, err := (*eventstore.Result)(nil), line.err
	if err == nil {
		select {
		case <-line.pending.Done():
		default:
			i.flush(out) // what is answered already must not wait for this commit
		}
		result, err = line.pending.Wait(context.WithoutCancel(ctx)) // the store bounds it; a client that breaks off may read on
	}
	buf = append(buf, `{"line":`...)
	buf = strconv.AppendInt(buf, int64(n), 10)
	if err != nil {
		p := i.api.toProblem(err)
		i.api.logLine(n, p, err)
		buf = append(buf, `,"status":`...)
		buf = strconv.AppendInt(buf, int64(p.Status), 10)
		doc, _ := json.Marshal(p) // strings and numbers only
		buf = append(append(buf, `,"problem":`...), doc...)
		return append(buf, '}', '\n')
	}
	status := `,"status":201,`
	if result.Replayed {
		status = `,"status":200,`
	}
	for j := range result.Appends {
		for _, last := range result.Appends[j].Token() {
			if name := (slotName{last.Category, last.Slot}); written[name].Seq < last.Seq {
				written[name] = last
			}
		}
	}
	return append(appendResult(append(buf, status...), result), '}', '\n')
}

// logLine says why a line failed where nobody else has.
func (a *API) logLine(n int, p *problem.Problem, err error) {
	if p.Status == http.StatusInternalServerError && !errors.Is(err, eventstore.ErrInternal) {
		a.deps.Logger.Error("a line of an import failed", "line", n, "err", err)
	}
}
