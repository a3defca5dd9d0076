package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/api"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/schemas"
)

// writerAPI serves the API of a writer, with a proxy before it.
func writerAPI(t *testing.T) (proxy *devstack.Proxy, address string, pool *pgxpool.Pool) {
	t.Helper()
	pool = devstack.MigratedDatabase(t)
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	log := slog.New(slog.DiscardHandler)
	store := eventstore.New(eventstore.Config{DatabaseURL: pool.Config().ConnString()}, log, prometheus.NewRegistry())
	require.NoError(t, store.EnsureCategories(t.Context(), pool, []eventstore.CategorySpec{{Name: "User", Slots: 64, Partitions: 8, Topic: "refold.user"}}))
	running, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		store.Run(running)
		close(done)
	}()
	t.Cleanup(func() { stop(); <-done })
	reg := registry.New(pool)
	ids, err := reg.RegisterContracts(t.Context(), contracts, func(category string) string { return "refold." + strings.ToLower(category) })
	require.NoError(t, err)
	mux := http.NewServeMux()
	api.New(api.Config{}, api.Deps{Store: store, Pool: pool, Registry: reg, Contracts: contracts, SchemaIDs: ids, Logger: log}).Register(mux)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	require.NoError(t, err)
	proxy = devstack.StartProxy(t, u.Host)
	return proxy, "http://" + proxy.Addr(), pool
}

func importLine(stream string) string {
	return fmt.Sprintf(`{"appends":[{"category":"User","stream":%q,"events":[{"type":"UserLoggedIn","data":{}},{"type":"UserLoggedIn","data":{}}]}]}`, stream)
}

// importing runs an import of some text.
func importing(t *testing.T, address, text string, from int64, patience time.Duration) (importOutcome, error) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "progress"))
	require.NoError(t, err)
	defer out.Close()
	c := &importCommand{WriterURL: address, Name: "history", From: from, Patience: patience}
	run := newImportRun(c, &http.Client{}, strings.NewReader(text), newImportShow(out, true, int64(len(text))))
	err = run.all(t.Context())
	return run.outcome, err
}

func events(t *testing.T, pool *pgxpool.Pool) (n int) {
	t.Helper()
	require.NoError(t, pool.QueryRow(t.Context(), `select count(*) from refold.event`).Scan(&n))
	return n
}

func TestImportAgainAppendsNothing(t *testing.T) {
	t.Parallel()
	_, address, pool := writerAPI(t)
	var text strings.Builder
	for i := range 300 {
		fmt.Fprintf(&text, "%s\n", importLine(fmt.Sprint("s", i%7)))
		if i%50 == 0 {
			text.WriteString("\n")
		}
	}
	text.WriteString("nonsense\n")
	text.WriteString(importLine("last")) // without a newline
	first, err := importing(t, address, text.String(), 1, time.Minute)
	require.NoError(t, err)
	require.Equal(t, [4]int64{302, 301, 0, 1}, [4]int64{first.Lines, first.Appended, first.Replayed, first.Refused})
	token, err := event.ParseToken(first.Token)
	require.NoError(t, err)
	require.NotEmpty(t, token)
	again, err := importing(t, address, text.String(), 1, time.Minute)
	require.NoError(t, err)
	require.Equal(t, [4]int64{302, 0, 301, 1}, [4]int64{again.Lines, again.Appended, again.Replayed, again.Refused})
	rest, err := importing(t, address, text.String(), 308, time.Minute)
	require.NoError(t, err)
	require.EqualValues(t, 1, rest.Lines)
	require.Equal(t, 602, events(t, pool))
}

// The connection is cut again and again in the middle of both ways.
func TestImportGoesOnWhereItBrokeOff(t *testing.T) {
	t.Parallel()
	proxy, address, pool := writerAPI(t)
	const lines = 20_000
	var text bytes.Buffer
	for i := range lines {
		fmt.Fprintf(&text, "%s\n", importLine(fmt.Sprint("s", i%100)))
	}
	stop, cutting := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(cutting)
		for n := 0; n < 5; n++ {
			for at := events(t, pool) + 2000; events(t, pool) < at; {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
			proxy.Cut()
		}
	}()
	outcome, err := importing(t, address, text.String(), 1, time.Minute)
	close(stop)
	<-cutting
	require.NoError(t, err)
	require.EqualValues(t, lines, outcome.Lines)
	require.Equal(t, outcome.Lines, outcome.Appended+outcome.Replayed)
	require.Equal(t, 2*lines, events(t, pool))
	report, err := eventstore.VerifyLog(t.Context(), pool)
	require.NoError(t, err)
	require.EqualValues(t, 100, report.Streams)
}

func TestImportGivesUpWhenNobodyIsThere(t *testing.T) {
	t.Parallel()
	proxy, address, _ := writerAPI(t)
	proxy.Refuse()
	_, err := importing(t, address, importLine("a"), 1, time.Millisecond)
	require.True(t, mayPass(err), "%v", err)
}

func TestStampIsTheSameEachTime(t *testing.T) {
	t.Parallel()
	const own = `{"appends":[{"category":"User","stream":"a","events":[{"type":"X","data":{"id":"not an event's","events":[{"a":1}]}},{"id":"01900000-0000-7000-8000-000000000001","type":"X","data":{}},{ "data": {}, "type": "Y" }]}]}`
	stamped := stamp("n", 7, []byte(own))
	require.Equal(t, stamped, stamp("n", 7, []byte(own)))
	require.NotEqual(t, stamped, stamp("n", 8, []byte(own)))
	require.NotEqual(t, stamped, stamp("m", 7, []byte(own)))
	var doc struct {
		Appends []struct {
			Events []struct {
				ID   event.ID
				Data json.RawMessage
			}
		}
	}
	require.NoError(t, json.Unmarshal(stamped, &doc))
	ids := make(map[event.ID]bool)
	for _, e := range doc.Appends[0].Events {
		ids[e.ID] = true
	}
	require.Len(t, ids, 3)
	require.Equal(t, "01900000-0000-7000-8000-000000000001", doc.Appends[0].Events[1].ID.String())
	require.JSONEq(t, `{"id":"not an event's","events":[{"a":1}]}`, string(doc.Appends[0].Events[0].Data), "data is left alone")
	for _, odd := range []string{`nonsense`, `[]`, `{}`, `{"appends":{}}`, `{"appends":[1]}`, `{"appends":[{"events":[{}]}]}`, `{"appends":[{"events":[{"id":`} {
		require.Equal(t, odd, string(stamp("n", 1, []byte(odd))))
	}
}

// Two pipes must not be taken for one import.
func TestAPipeNeedsAName(t *testing.T) {
	require.ErrorContains(t, (&importCommand{File: "-"}).Run(t.Context()), "--name")
	require.ErrorContains(t, (&importCommand{File: os.DevNull}).Run(t.Context()), "--name")
}

// Neither the name of a file nor its folder tells imports apart: its contents do.
func TestFilesAreNamedByTheirContents(t *testing.T) {
	t.Parallel()
	_, address, pool := writerAPI(t)
	importFile := func(folder, text, name string) {
		file := filepath.Join(t.TempDir(), folder, "events.ndjson")
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		c := &importCommand{File: file, WriterURL: address, Name: name, From: 1, Patience: time.Minute, Output: "json"}
		require.NoError(t, c.Run(t.Context()))
	}
	line := importLine("a") + "\n"
	importFile("monday", line, "")
	require.Equal(t, 2, events(t, pool))
	importFile("moved", line, "")
	require.Equal(t, 2, events(t, pool), "the same file")
	importFile("tuesday", line+line, "")
	require.Equal(t, 6, events(t, pool), "another one, which begins with the same line")
	importFile("log", line, "log")
	importFile("log", line+line, "log")
	require.Equal(t, 10, events(t, pool), "one that grows under its name")
}
