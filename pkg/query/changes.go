package query

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// changes is GET /v1/read-models/{name}/changes: server-sent events. Each has an
// id, with which a client resumes without a gap; some changes may then come again.
//
// A stream is taken over from the HTTP server, so that an idle client costs its
// connection and nothing else: no goroutine, no buffer. Where a connection cannot
// be taken over (HTTP/2) it is served by the handler.
func (a *API) changes(w http.ResponseWriter, r *http.Request) error {
	values, err := parameters(r)
	if err != nil {
		return err
	}
	l, err := parseList(values)
	if err != nil {
		return err
	}
	for _, name := range []string{"order", "limit", "cursor", "count", "select"} {
		if values.Has(name) {
			return bad(name, "a change feed takes filters only")
		}
	}
	s := &stream{}
	after := r.Header.Get("Last-Event-ID")
	s.subscriber, err = a.feeds.Subscribe(r.Context(), r.PathValue("name"), after, l.query.Where, s.ready)
	if err != nil {
		return err
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil { // not to be taken over
		s.serve(w, r)
		return nil //nolint:nilerr // served all the same
	}
	s.take(conn, buffered)
	return nil
}

const streamHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\nConnection: close\r\n\r\nretry: 1000\n\n"

// writeTimeout is how long a client may take to take in what is sent to it.
const writeTimeout = 10 * time.Second

// stream is one client that follows changes.
type stream struct {
	subscriber *readmodel.Subscriber

	mu      sync.Mutex
	out     io.Writer
	conn    net.Conn // nil when the handler serves it
	more    chan struct{}
	writing bool
}

// take serves the client on a connection that was taken over: whenever something
// is to be sent, by a goroutine that ends when nothing is.
func (s *stream) take(conn net.Conn, buffered *bufio.ReadWriter) {
	conn.SetDeadline(time.Time{})
	buffered.Writer.Reset(io.Discard)
	s.mu.Lock()
	s.conn, s.out, s.writing = conn, conn, true
	s.mu.Unlock()
	go func() {
		conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := io.WriteString(conn, streamHead); err != nil {
			s.close()
			return
		}
		s.drain()
	}()
}

// ready is called when something is to be sent.
func (s *stream) ready() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.more != nil:
		select {
		case s.more <- struct{}{}:
		default:
		}
	case s.conn != nil && !s.writing:
		s.writing = true
		go s.drain()
	}
}

// drain sends what waits. That nothing waits is looked at under the lock under
// which ready begins the next one, so nothing is left behind.
func (s *stream) drain() {
	for {
		s.mu.Lock()
		b, err := s.subscriber.Take()
		if b == nil && err == nil {
			s.writing = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		if b == nil {
			s.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			s.out.Write(farewell(err)) // it ends anyway
			s.close()
			return
		}
		s.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if err := s.send(b); err != nil {
			s.close()
			return
		}
	}
}

func (s *stream) close() {
	s.subscriber.Leave()
	s.conn.Close()
}

// serve serves the client within its handler.
func (s *stream) serve(w http.ResponseWriter, r *http.Request) {
	defer s.subscriber.Leave()
	control := http.NewResponseController(w)
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	s.mu.Lock()
	s.more = make(chan struct{}, 1)
	s.more <- struct{}{}
	s.out = w
	s.mu.Unlock()
	for {
		control.SetWriteDeadline(time.Now().Add(writeTimeout))
		b, err := s.subscriber.Take()
		switch {
		case b != nil:
			if s.send(b) != nil {
				return
			}
			continue
		case err != nil:
			w.Write(farewell(err))
			return
		}
		if control.Flush() != nil || !waitFor(r.Context(), s.more) {
			return
		}
	}
}

func waitFor(ctx context.Context, more <-chan struct{}) bool {
	select {
	case <-ctx.Done():
		return false
	case <-more:
		return true
	}
}

// send writes a batch. Clients without a filter share its bytes.
func (s *stream) send(b *readmodel.Batch) error {
	if b.Alive {
		if len(b.Changes) == 0 {
			_, err := io.WriteString(s.out, ":\n\n")
			return err
		}
		_, err := io.WriteString(s.out, "id: "+b.Changes[0].ID+"\n\n") // sets the client's last id and tells nothing
		return err
	}
	if s.subscriber.Filtered() {
		return s.sendFiltered(b)
	}
	for _, frame := range b.Wire(encodeChange) {
		if _, err := s.out.Write(frame); err != nil {
			return err
		}
	}
	return nil
}

func (s *stream) sendFiltered(b *readmodel.Batch) error {
	for i := range b.Changes {
		c := b.Changes[i]
		if !s.subscriber.Selects(b, &c) {
			c.Kind, c.Row = readmodel.Removed, nil
		}
		if _, err := s.out.Write(encodeChange(&c)); err != nil {
			return err
		}
	}
	return nil
}

var changeNames = map[readmodel.ChangeKind]string{readmodel.Upserted: "upsert", readmodel.Removed: "remove", readmodel.Flipped: "version"}

// encodeChange makes the event of a change. Rows are one line: jsonb has no line
// breaks outside of texts, and escapes them inside.
func encodeChange(c *readmodel.Change) []byte {
	b := make([]byte, 0, len(c.ID)+len(c.Row)+len(c.Token)+len(c.Key)+80)
	b = append(append(b, "id: "...), c.ID...)
	b = append(append(b, "\nevent: "...), changeNames[c.Kind]...)
	if c.Kind == readmodel.Flipped {
		b = strconv.AppendInt(append(b, "\ndata: {\"version\":"...), int64(c.Version), 10)
		return append(append(append(b, `,"token":"`...), c.Token...), "\"}\n\n"...)
	}
	b = append(b, "\ndata: {\"key\":"...)
	b = strictjson.AppendText(b, []byte(c.Key))
	b = append(b, `,"row":`...)
	if c.Row == nil {
		b = append(b, "null"...)
	} else {
		b = append(b, c.Row...)
	}
	return append(append(append(b, `,"token":"`...), c.Token...), "\"}\n\n"...)
}

// farewell tells why a stream ends. The client comes back by itself, with the last
// id that it has.
func farewell(err error) []byte {
	reason := "closed"
	switch {
	case errors.Is(err, readmodel.ErrSlow):
		reason = "slow"
	case errors.Is(err, readmodel.ErrChangesTooOld):
		reason = "too-old"
	}
	return []byte("event: resume\ndata: {\"reason\":\"" + reason + "\"}\n\n")
}
