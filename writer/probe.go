package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/refoldhq/refold/pkg/service"
)

// probeCommand walks the whole path of an installation as a client does: an
// append, the row that it makes, and what the row has to hold.
type probeCommand struct {
	remote `embed:""`

	WriterURL  string        `name:"writer-url" help:"API of the writer." default:"http://127.0.0.1:8080" placeholder:"URL"`
	QueriesURL string        `name:"queries-url" help:"API of the query service." default:"http://127.0.0.1:8081" placeholder:"URL"`
	Category   string        `help:"Category to append to." default:"User"`
	Stream     string        `help:"Stream to append to; it keeps an event of each run." default:"refold-probe"`
	Type       string        `help:"Type of the event." default:"UserCreated"`
	Data       string        `help:"Data of the event, JSON." default:"{\"id\":\"refold-probe\",\"email\":\"probe@refold.invalid\",\"isActive\":false,\"name\":\"Probe\"}"`
	ReadModel  string        `help:"Read model that has to show it; empty only appends." default:"rm_users"`
	Key        string        `help:"Key of the row; the stream where it is empty."`
	Wait       time.Duration `help:"How long the event may take to the row." default:"10s"`
}

// Run appends, waits, and says how long each took.
func (c *probeCommand) Run(ctx context.Context) error {
	client, err := c.client(c.Wait + 10*time.Second)
	if err != nil {
		return err
	}
	begun := time.Now()
	event := fmt.Sprintf(`{"events":[{"type":%s,"data":%s}],"metadata":{"actor":"refold-probe"}}`, quote(c.Type), c.Data)
	var appended struct{ Token string }
	if _, err := c.call(ctx, client, http.MethodPost, c.WriterURL, "/v1/streams/"+url.PathEscape(c.Category)+"/"+url.PathEscape(c.Stream)+"/events", event, "", &appended); err != nil {
		return fmt.Errorf("appending to %s/%s: %w", c.Category, c.Stream, err)
	}
	fmt.Printf("appended to %s/%s in %v\n", c.Category, c.Stream, time.Since(begun).Round(time.Millisecond))
	if c.ReadModel == "" {
		return nil
	}
	key := c.Key
	if key == "" {
		key = c.Stream
	}
	var row map[string]any
	answer, err := c.call(ctx, client, http.MethodGet, c.QueriesURL, "/v1/read-models/"+url.PathEscape(c.ReadModel)+"/"+url.PathEscape(key), "", appended.Token, &row)
	if err != nil {
		return fmt.Errorf("reading row %s of %s: %w", key, c.ReadModel, err)
	}
	fmt.Printf("row %s of %s, version %s, shows it after %v\n", key, c.ReadModel, answer.Get("Refold-Projection-Version"), time.Since(begun).Round(time.Millisecond))
	return nil
}

func quote(s string) string {
	raw, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string is always JSON
	}
	return string(raw)
}

// call asks once and again while the answer is 503, which says that time may mend
// it, as long as c.Wait.
func (c *probeCommand) call(ctx context.Context, client *http.Client, method, base, path, body, token string, into any) (http.Header, error) {
	key := rand.Text() // a retry is no second event
	deadline := time.Now().Add(c.Wait)
	for {
		header, err := c.once(ctx, client, method, strings.TrimSuffix(base, "/")+path, body, key, token, into)
		var failed *refused
		if err == nil || errors.As(err, &failed) && failed.status != http.StatusServiceUnavailable {
			return header, err
		}
		if time.Now().After(deadline) {
			return header, service.TryAgain(err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (c *probeCommand) once(ctx context.Context, client *http.Client, method, target, body, key, token string, into any) (http.Header, error) {
	r, err := http.NewRequestWithContext(ctx, method, target, bytes.NewBufferString(body))
	if err != nil {
		return nil, service.Usage(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", key)
	}
	if token != "" {
		r.Header.Set("Refold-Token", token)
		r.Header.Set("Refold-Wait", min(c.Wait, 30*time.Second).String())
	}
	if err := c.authorize(r); err != nil {
		return nil, err
	}
	answer, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	if answer.StatusCode/100 != 2 {
		return nil, &refused{answer.StatusCode, strings.TrimSpace(string(raw))}
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	return answer.Header, nil
}
