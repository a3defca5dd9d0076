package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/api"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/service"
)

// streamsCommand shows what the log holds: its categories, the streams of one, or
// the events of a stream.
type streamsCommand struct {
	Category string `arg:"" optional:"" help:"Category whose streams are listed; the categories where it is empty."`
	Stream   string `arg:"" optional:"" help:"Stream whose events are shown."`
	After    string `help:"Where to go on: behind this stream, or this version of a stream." placeholder:"STREAM|VERSION"`
	Limit    int    `help:"How many streams or events are shown at most." default:"100"`
	Backward bool   `help:"Show the events of a stream from its end."`
	Output   string `short:"o" help:"Form of the output: table, or json with a document on each line." enum:"table,json" default:"table"`
}

// Run reads the database: it needs no writer.
func (c *streamsCommand) Run(ctx context.Context, s *service.Settings) error {
	if c.Limit < 1 {
		return service.Usage(fmt.Errorf("--limit=%d: want a number from 1", c.Limit))
	}
	pool, err := postgres.Open(ctx, postgres.Config{URL: s.DatabaseURL, AppName: "refold-streams", MaxConns: 2})
	if err != nil {
		return err
	}
	defer pool.Close()
	categories, err := eventstore.ReadCategories(ctx, pool)
	if err != nil {
		return err
	}
	if c.Category == "" {
		return c.listCategories(ctx, pool, categories)
	}
	for _, category := range categories {
		if category.Name != c.Category {
			continue
		}
		if c.Stream == "" {
			return c.listStreams(ctx, pool, category)
		}
		return c.showStream(ctx, s, pool, category)
	}
	return service.NotFound(fmt.Errorf("there is no category %s", c.Category)).Try("writer streams")
}

// table prints rows as columns, or as a document each.
type table struct {
	form   string
	writer *tabwriter.Writer
	json   *json.Encoder
}

func newTable(form, head string) *table {
	t := &table{form: form, writer: tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0), json: json.NewEncoder(os.Stdout)}
	if form == "table" {
		fmt.Fprintln(t.writer, head)
	}
	return t
}

func (t *table) row(doc any, format string, columns ...any) error {
	if t.form == "json" {
		return t.json.Encode(doc)
	}
	_, err := fmt.Fprintf(t.writer, format+"\n", columns...)
	return err
}

func (c *streamsCommand) listCategories(ctx context.Context, pool *pgxpool.Pool, list []eventstore.Category) error {
	t := newTable(c.Output, "CATEGORY\tEVENTS\tSLOTS\tPARTITIONS\tTOPIC")
	for _, category := range list {
		heads, err := eventstore.NewReader(pool).Heads(ctx, category)
		if err != nil {
			return err
		}
		events := int64(0)
		for _, head := range heads {
			events += head
		}
		doc := map[string]any{"name": category.Name, "events": events, "slots": category.Slots, "partitions": category.Partitions, "topic": category.Topic}
		if err := t.row(doc, "%s\t%d\t%d\t%d\t%s", category.Name, events, category.Slots, category.Partitions, category.Topic); err != nil {
			return err
		}
	}
	return t.writer.Flush()
}

func (c *streamsCommand) listStreams(ctx context.Context, pool *pgxpool.Pool, category eventstore.Category) error {
	list, err := eventstore.NewReader(pool).Streams(ctx, category, c.After, c.Limit)
	if err != nil {
		return err
	}
	t := newTable(c.Output, "STREAM\tVERSION\tCREATED\tUPDATED")
	for _, s := range list {
		doc := map[string]any{"category": category.Name, "stream": s.ID, "version": s.Version, "created": s.Created, "updated": s.Updated}
		if err := t.row(doc, "%s\t%d\t%s\t%s", s.ID, s.Version, s.Created, s.Updated); err != nil {
			return err
		}
	}
	if err := t.writer.Flush(); err != nil {
		return err
	}
	if len(list) == c.Limit && c.Output == "table" {
		fmt.Fprintf(os.Stderr, "there may be more: --after=%s\n", list[len(list)-1].ID)
	}
	return nil
}

func (c *streamsCommand) showStream(ctx context.Context, s *service.Settings, pool *pgxpool.Pool, category eventstore.Category) error {
	after := int64(0)
	if c.After != "" {
		if _, err := fmt.Sscanf(c.After, "%d", &after); err != nil || after < 0 {
			return service.Usage(fmt.Errorf("--after=%s: want a version", c.After))
		}
	}
	reader := eventstore.NewReader(pool)
	if _, err := reader.Stream(ctx, category, c.Stream); errors.Is(err, eventstore.ErrNoStream) {
		return service.NotFound(fmt.Errorf("there is no stream %s/%s", category.Name, c.Stream)).Try("writer streams " + category.Name)
	} else if err != nil {
		return err
	}
	render, err := c.renderer(s, pool)
	if err != nil {
		return err
	}
	events, err := reader.StreamEvents(ctx, category, c.Stream, after, c.Limit, c.Backward)
	if err != nil {
		return err
	}
	t := newTable(c.Output, "VERSION\tTYPE\tTIME\tPOSITION\tACTOR\tDATA")
	for i := range events {
		e := &events[i]
		raw, err := render.EventJSON(ctx, e)
		if err != nil {
			return fmt.Errorf("reading version %d of %s/%s: %w", e.Version, category.Name, c.Stream, err)
		}
		var doc struct {
			Type string
			Data json.RawMessage
		}
		if err := json.Unmarshal(raw, &doc); err != nil {
			return err
		}
		if err := t.row(raw, "%d\t%s\t%s\t%s\t%s\t%s", e.Version, doc.Type, e.Time, e.Position(), e.Metadata.Actor, doc.Data); err != nil {
			return err
		}
	}
	if err := t.writer.Flush(); err != nil {
		return err
	}
	if len(events) == c.Limit && c.Output == "table" {
		fmt.Fprintf(os.Stderr, "there may be more: --after=%d\n", events[len(events)-1].Version)
	}
	return nil
}

// renderer reads events as the API does.
func (c *streamsCommand) renderer(s *service.Settings, pool *pgxpool.Pool) (*api.API, error) {
	contracts, err := s.Contracts()
	if err != nil {
		return nil, err
	}
	return api.New(api.Config{}, api.Deps{Pool: pool, Registry: s.Registry(pool), Contracts: contracts, Logger: s.Logger()}), nil
}
