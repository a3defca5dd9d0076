package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// load asks for paths over n connections for a while, and does as little as a
// client can: it shares the machine with what it measures.
func load(url string, n int, during time.Duration, path func(i int64) string) (perSecond float64, all latencies, err error) {
	var next atomic.Int64
	var failure atomic.Pointer[error]
	lists := make([]latencies, n)
	start := time.Now()
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() {
			if err := connection(url, start.Add(during), func() string { return path(next.Add(1)) }, &lists[w]); err != nil {
				failure.Store(&err)
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	if err := failure.Load(); err != nil {
		return 0, nil, *err
	}
	for _, l := range lists {
		all = append(all, l...)
	}
	return rate(len(all), took), all, nil
}

func connection(url string, end time.Time, path func() string, took *latencies) error {
	c, err := dial(url)
	if err != nil {
		return err
	}
	defer c.Close()
	for began := time.Now(); began.Before(end); began = time.Now() {
		if _, err := c.ask("GET", path(), "", ""); err != nil {
			return err
		}
		*took = append(*took, time.Since(began))
	}
	return nil
}

// conn is a kept HTTP/1.1 connection of one goroutine.
type conn struct {
	net.Conn
	in   *bufio.Reader
	out  []byte
	body []byte
}

func dial(url string) (*conn, error) {
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, in: bufio.NewReader(c)}, nil
}

// ask sends a request, whose headers end with a line break each, and returns the
// body of the answer, which is valid until the next one. An answer that is no
// success is an error.
func (c *conn) ask(method, path, headers, body string) ([]byte, error) {
	c.out = fmt.Appendf(c.out[:0], "%s %s HTTP/1.1\r\nHost: bench\r\n%s", method, path, headers)
	if method == "POST" {
		c.out = fmt.Appendf(c.out, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	c.out = append(append(c.out, "\r\n"...), body...)
	if _, err := c.Write(c.out); err != nil {
		return nil, err
	}
	return c.answer()
}

// answer reads an answer that has a Content-Length.
func (c *conn) answer() ([]byte, error) {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	success, status := bytes.HasPrefix(line, []byte("HTTP/1.1 20")), string(bytes.TrimSpace(line))
	for length := 0; ; {
		if line, err = c.in.ReadSlice('\n'); err != nil {
			return nil, err
		}
		if text, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(text))); err != nil {
				return nil, err
			}
		}
		if len(line) > 2 {
			continue
		}
		c.body = append(c.body[:0], make([]byte, length)...)
		if _, err := io.ReadFull(c.in, c.body); err != nil {
			return nil, err
		}
		if !success {
			return nil, fmt.Errorf("%s: %s", status, c.body)
		}
		return c.body, nil
	}
}

// append posts one new user and returns the token of the answer.
func (c *conn) append(stream string) (token string, err error) {
	answer, err := c.ask("POST", "/v1/streams/User/"+stream+"/events", "", userCreated(stream))
	if err != nil {
		return "", err
	}
	_, rest, _ := bytes.Cut(answer, []byte(`"token":"`))
	text, _, ok := bytes.Cut(rest, []byte{'"'})
	if !ok {
		return "", fmt.Errorf("the answer has no token: %s", answer)
	}
	return string(text), nil
}

// follow opens n connections that follow changes and hear of none.
func follow(url, path string, n int) (closeAll func(), err error) {
	var conns []net.Conn
	closeAll = func() {
		for _, c := range conns {
			c.Close()
		}
	}
	for range n {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			return closeAll, err
		}
		conns = append(conns, conn)
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: bench\r\n\r\n", path); err != nil {
			return closeAll, err
		}
	}
	head := make([]byte, len("HTTP/1.1 200"))
	for _, conn := range conns {
		if _, err := io.ReadFull(conn, head); err != nil {
			return closeAll, err
		}
		if string(head) != "HTTP/1.1 200" {
			return closeAll, fmt.Errorf("following changes: the answer is %s", head)
		}
	}
	return closeAll, nil
}
