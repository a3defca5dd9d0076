package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/problem"
)

// importWindow is how many lines may be read and not answered yet: some batches
// of the largest kind, so that the lanes are never idle while the client waits.
const importWindow = 4096

// importLine is one line between its reading and its answer.
type importLine struct {
	pending *eventstore.Pending
	err     error
}

// importLines commits each line by itself and answers in order, as they commit.
// Lines are read no faster than they commit.
func (a *API) importLines(w http.ResponseWriter, r *http.Request) error {
	control := http.NewResponseController(w)
	if err := control.EnableFullDuplex(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	lines := make(chan importLine, importWindow)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(lines)
		a.readLines(ctx, r, control, lines)
	})
	err := a.answerLines(ctx, w, control, lines)
	cancel()
	reading.Wait()
	if err != nil {
		a.deps.Logger.Debug("import ended early", "err", err)
	}
	return nil // the answer has begun
}

// readLines parses and submits lines until the body ends.
func (a *API) readLines(ctx context.Context, r *http.Request, control *http.ResponseController, lines chan<- importLine) {
	in := bufio.NewReaderSize(r.Body, 64<<10)
	var under []*eventstore.Pending // not known to be done
	for {
		control.SetReadDeadline(time.Now().Add(a.cfg.ReadTimeout)) // where it is not supported the server's own holds
		line, err := a.readLine(in)
		if len(bytes.TrimSpace(line)) > 0 || errors.Is(err, errLineTooLong) {
			next := importLine{err: err}
			if !errors.Is(err, errLineTooLong) {
				next.pending, next.err = a.submitLine(ctx, line, &under)
			}
			select {
			case lines <- next:
			case <-ctx.Done():
				return
			}
		}
		if err != nil && !errors.Is(err, errLineTooLong) {
			return
		}
	}
}

var errLineTooLong = problem.New(http.StatusRequestEntityTooLarge, "too-large", "The line is too large", "")

// readLine reads up to the next newline. Of a line beyond the limit the rest is
// passed over.
func (a *API) readLine(in *bufio.Reader) (line []byte, err error) {
	for {
		part, err := in.ReadSlice('\n')
		if len(line)+len(part) <= a.cfg.MaxBodyBytes+1 {
			line = append(line, part...)
		} else {
			line = line[:0]
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = in.ReadSlice('\n')
			}
			if err == nil || errors.Is(err, io.EOF) {
				return nil, errLineTooLong
			}
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// submitLine submits one line. A line of several streams may go through another
// lane than its neighbours on the same streams, so it waits for all before it,
// and those behind it wait for it.
func (a *API) submitLine(ctx context.Context, line []byte, under *[]*eventstore.Pending) (*eventstore.Pending, error) {
	req, err := a.parseMany(line, true)
	if err != nil {
		return nil, err
	}
	several := len(req.Appends) > 1
	if several {
		if err := waitAll(ctx, *under); err != nil {
			return nil, err
		}
		*under = (*under)[:0]
	}
	p, err := a.deps.Store.Submit(ctx, req)
	if err != nil {
		return nil, err
	}
	if several {
		return p, waitAll(ctx, []*eventstore.Pending{p})
	}
	if len(*under) >= importWindow {
		*under = append((*under)[:0], (*under)[1:]...)
	}
	*under = append(*under, p)
	return p, nil
}

func waitAll(ctx context.Context, list []*eventstore.Pending) error {
	for _, p := range list {
		select {
		case <-p.Done():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// answerLines writes an answer for each line, in order, and the last line.
func (a *API) answerLines(ctx context.Context, w http.ResponseWriter, control *http.ResponseController, lines <-chan importLine) error {
	out := bufio.NewWriterSize(w, 32<<10)
	written := make(map[slotName]int64)
	n := 0
	var buf []byte
	for {
		line, open := next(lines, func() error { return flush(out, control) })
		if !open {
			break
		}
		n++
		buf = a.answerLine(ctx, buf[:0], n, line, written, func() error { return flush(out, control) })
		if _, err := out.Write(buf); err != nil {
			return err
		}
	}
	var marks []event.Mark
	for name, seq := range written {
		marks = append(marks, event.Mark{Position: event.Position{Category: name.category, Slot: name.slot, Seq: seq}, Written: true})
	}
	buf = append(buf[:0], `{"lines":`...)
	buf = strconv.AppendInt(buf, int64(n), 10)
	buf = append(buf, `,"token":"`...)
	buf = append(buf, event.NewToken(marks...).String()...)
	buf = append(buf, '"', '}', '\n')
	if _, err := out.Write(buf); err != nil {
		return err
	}
	return flush(out, control)
}

type slotName struct {
	category string
	slot     int
}

// next takes the next line; before it waits for one, what is written is sent.
func next(lines <-chan importLine, flush func() error) (importLine, bool) {
	select {
	case line, open := <-lines:
		return line, open
	default:
		flush() // a client that has gone is noticed at the next write
		line, open := <-lines
		return line, open
	}
}

func flush(out *bufio.Writer, control *http.ResponseController) error {
	if err := out.Flush(); err != nil {
		return err
	}
	return control.Flush()
}

func (a *API) answerLine(ctx context.Context, buf []byte, n int, line importLine, written map[slotName]int64, flush func() error) []byte {
	result, err := (*eventstore.Result)(nil), line.err
	if err == nil {
		select {
		case <-line.pending.Done():
		default:
			flush() // what is answered already must not wait for this commit
		}
		result, err = line.pending.Wait(ctx)
	}
	buf = append(buf, `{"line":`...)
	buf = strconv.AppendInt(buf, int64(n), 10)
	if err != nil {
		p := a.toProblem(err)
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
	for i := range result.Appends {
		for _, e := range result.Appends[i].Events {
			name := slotName{e.Position.Category, e.Position.Slot}
			written[name] = max(written[name], e.Position.Seq)
		}
	}
	return append(appendResult(append(buf, status...), result), '}', '\n')
}
