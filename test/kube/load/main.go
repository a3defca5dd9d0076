// Command load is a client that runs in the cluster: it appends to streams of its
// own and reads the rows that they make, through the Services, until it is told
// to stop, and counts what went wrong. Its exit code is the verdict.
//
//	load fill -lines 20000      appends accounts by NDJSON and ends
//	load run [-patient]         appends and reads; every answer but 2xx is a failure
//	load stop                   ends the `load run` of the same container
//	load idle                   does nothing until it is told to stop
//	load reach ADDRESS          ends with 0 if something listens there, with 3 if it cannot be reached
//
// With -patient a request that fails is sent again with the same key, as clients
// do whose server was killed: what counts then is that it has one effect.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

type options struct {
	writer, queries string
	streams         int
	lines           int
	prefix          string
	pause           time.Duration
	patient         bool
}

var errUnreached = errors.New("not reached")

func main() {
	err := command(os.Args[1:])
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "load:", err)
	if errors.Is(err, errUnreached) {
		os.Exit(3)
	}
	os.Exit(1)
}

func command(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: load fill|run|stop|idle|reach [flags]")
	}
	var o options
	flags := flag.NewFlagSet(args[0], flag.ExitOnError)
	flags.StringVar(&o.writer, "writer", "http://refold-writer:8080", "API of the writer")
	flags.StringVar(&o.queries, "queries", "http://refold-queries:8081", "API of the query service")
	flags.IntVar(&o.streams, "streams", 8, "streams at a time")
	flags.IntVar(&o.lines, "lines", 1000, "accounts that fill makes")
	flags.StringVar(&o.prefix, "prefix", "fill", "of the accounts that fill makes")
	flags.DurationVar(&o.pause, "pause", 20*time.Millisecond, "between two requests of a stream")
	flags.BoolVar(&o.patient, "patient", false, "send requests again that failed")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch args[0] {
	case "fill":
		return fill(ctx, o)
	case "run":
		return run(ctx, o)
	case "idle":
		<-ctx.Done()
		return nil
	case "reach":
		conn, err := net.DialTimeout("tcp", flags.Arg(0), 3*time.Second)
		if err != nil {
			return fmt.Errorf("%w: %w", errUnreached, err)
		}
		return conn.Close()
	case "stop":
		return syscall.Kill(1, syscall.SIGTERM)
	}
	return fmt.Errorf("%s is no command", args[0])
}

// run works until ctx ends, then compares what was acknowledged with what is there.
func run(ctx context.Context, o options) error {
	var t tally
	c := &client{options: o, http: newHTTP(o.streams), tally: &t}
	begun := time.Now()
	accounts := make([]*account, o.streams)
	var all sync.WaitGroup
	for i := range accounts {
		accounts[i] = &account{client: c, stream: fmt.Sprintf("load-%d-%d", begun.UnixMilli(), i)}
		all.Go(func() { accounts[i].work(ctx) })
	}
	fmt.Println("load: runs")
	all.Wait()
	took := time.Since(begun)

	// What was done is judged after the last request, whatever became of ctx.
	judging, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for _, a := range accounts {
		a.judge(judging)
	}
	return t.report(took, o.patient)
}
