package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// bareCommand is the first argument of the process that [serveBare] runs in.
const bareCommand = "bare"

// serveBare gives one answer of a server, its headers and its bytes, to whatever is
// asked, and prints where: net/http with nothing behind it is the limit of what can
// be served over HTTP here.
func serveBare(from string) error {
	res, err := http.Get(from) //nolint:noctx // ends with the process
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	res.Header.Del("Date")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println("http://" + listener.Addr().String())
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		for name, values := range res.Header {
			h[name] = values
		}
		w.Write(body)
	})}
	return server.Serve(listener)
}

// startBare starts [serveBare] in a process of its own.
func startBare(ctx context.Context, from string) (url string, end func(), err error) {
	cmd := exec.CommandContext(ctx, os.Args[0], bareCommand, from)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	end = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		end()
		return "", nil, fmt.Errorf("starting the bare server: %w", err)
	}
	return strings.TrimSpace(line), end, nil
}
