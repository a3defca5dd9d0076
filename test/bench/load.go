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
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		return err
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	var out []byte
	for began := time.Now(); began.Before(end); began = time.Now() {
		out = fmt.Appendf(out[:0], "GET %s HTTP/1.1\r\nHost: bench\r\n\r\n", path())
		if _, err := conn.Write(out); err != nil {
			return err
		}
		if err := skipAnswer(in); err != nil {
			return fmt.Errorf("%s: %w", out, err)
		}
		*took = append(*took, time.Since(began))
	}
	return nil
}

// skipAnswer reads an answer that has a Content-Length.
func skipAnswer(in *bufio.Reader) error {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
		return fmt.Errorf("the answer is %s", line)
	}
	for length := 0; ; {
		if line, err = in.ReadSlice('\n'); err != nil {
			return err
		}
		if len(line) <= 2 {
			_, err := in.Discard(length)
			return err
		}
		if text, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(text))); err != nil {
				return err
			}
		}
	}
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
