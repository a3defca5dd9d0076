package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/service"
)

type parkedCommand struct {
	List  parkedListCommand `cmd:"" default:"withargs" help:"Show the parked streams of a projection."`
	Retry retryCommand      `cmd:"" help:"Apply what is parked of a stream, in order."`
	Skip  skipCommand       `cmd:"" help:"Leave out the event that failed, in later versions too, and apply those behind it."`
}

type retryCommand struct {
	ask `embed:""`
}

// Run retries a stream.
func (c *retryCommand) Run(ctx context.Context, settings *service.Settings) error {
	return c.do(ctx, settings, "retry")
}

type skipCommand struct {
	ask `embed:""`
}

// Run skips the event that a stream is parked by.
func (c *skipCommand) Run(ctx context.Context, settings *service.Settings) error {
	return c.do(ctx, settings, "skip")
}

type parkedListCommand struct {
	output `embed:""`

	Name  string `arg:"" help:"Projection."`
	Limit int    `help:"Most streams to show." default:"100"`
}

// Run shows what is parked.
func (c *parkedListCommand) Run(ctx context.Context, settings *service.Settings) error {
	pool, err := open(ctx, settings, 2)
	if err != nil {
		return err
	}
	defer pool.Close()
	list, next, err := engine.NewParked(pool).List(ctx, c.Name, nil, max(1, c.Limit))
	if err != nil {
		return explainParked(err)
	}
	return c.print(map[string]any{"parked": list}, func(out io.Writer) {
		if len(list) == 0 {
			fmt.Fprintln(out, "nothing is parked")
			return
		}
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "STREAM\tVERSION\tSINCE\tEVENTS\tFAILED AT\tTYPE\tWHY")
		for _, s := range list {
			fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t%s\t%s\n", s.Stream, s.Version, s.Since.UTC().Format(time.RFC3339), s.Events, s.Event.Position, s.Event.Type, oneLine(s.Error))
		}
		w.Flush()
		if next != nil {
			fmt.Fprintf(out, "and more: --limit=%d\n", 10*c.Limit)
		}
		fmt.Fprintf(out, "\nnext: projector parked retry %s %s --reason=...\n   or: projector parked skip %s %s --reason=...\n", c.Name, list[0].Stream, c.Name, list[0].Stream)
	})
}

// oneLine shortens an error for a table.
func oneLine(s string) string {
	const most = 100
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > most {
		s = string(r[:most-3]) + "..."
	}
	return s
}

// ask is what retry and skip have in common.
type ask struct {
	output `embed:""`

	Name   string        `arg:"" help:"Projection."`
	Stream string        `arg:"" help:"Stream, as category/id."`
	Reason string        `required:"" help:"Why; it is kept."`
	Wait   time.Duration `help:"How long to wait for it to be carried out." default:"30s"`
}

// do asks for an action and waits for what comes of it.
func (c *ask) do(ctx context.Context, settings *service.Settings, action string) error {
	category, stream, found := strings.Cut(c.Stream, "/")
	if !found {
		return service.Usage(fmt.Errorf("%q is no stream: want category/id", c.Stream)).Try("projector parked " + c.Name)
	}
	pool, err := open(ctx, settings, 2)
	if err != nil {
		return err
	}
	defer pool.Close()
	parked := engine.NewParked(pool)
	request, err := parked.Request(ctx, c.Name, category, stream, action, c.Reason)
	if err == nil {
		request, err = parked.Await(ctx, c.Name, request.ID, c.Wait)
	}
	if err != nil {
		return explainParked(err)
	}
	if err := c.print(request, func(out io.Writer) {
		for _, version := range slices.Sorted(maps.Keys(request.Outcomes)) {
			fmt.Fprintf(out, "%s v%s: %s\n", c.Name, version, request.Outcomes[version])
		}
	}); err != nil {
		return err
	}
	if request.Done == nil {
		return service.TryAgain(fmt.Errorf("request %d is not carried out yet: nobody feeds the partition, or it stands", request.ID)).Try("projector status " + c.Name)
	}
	if request.Failed() {
		return fmt.Errorf("%s is still parked", c.Stream)
	}
	return nil
}

// explainParked gives an error the exit code of its kind.
func explainParked(err error) error {
	switch {
	case errors.Is(err, readmodel.ErrUnknownProjection), errors.Is(err, engine.ErrNotParked), errors.Is(err, engine.ErrNoRequest):
		return service.NotFound(err).Try("projector status")
	case errors.Is(err, engine.ErrRequest):
		return service.Usage(err)
	default:
		return err
	}
}
