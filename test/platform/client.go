package platform

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Client speaks refold's HTTP API as any client would, without refold's own
// packages.
type Client struct {
	Base string
	HTTP *http.Client
	t    testing.TB
}

// NewClient returns a client of the API at base.
func NewClient(t testing.TB, base string) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 256
	t.Cleanup(transport.CloseIdleConnections)
	return &Client{Base: base, HTTP: &http.Client{Transport: transport, Timeout: 2 * time.Minute}, t: t}
}

// Answer is what came back for a request.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Decode reads the body into v, keeping numbers exact.
func (a Answer) Decode(v any) error {
	d := json.NewDecoder(bytes.NewReader(a.Body))
	d.UseNumber()
	return d.Decode(v)
}

// Do sends one request. The error is that of the network; a status is an answer.
func (c *Client) Do(method, path string, header http.Header, body []byte) (Answer, error) {
	req, err := http.NewRequest(method, c.Base+path, bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, values := range header {
		req.Header[name] = values
	}
	res, err := c.HTTP.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	return Answer{res.StatusCode, res.Header, data}, err
}

// Get sends a GET that must be answered 200 and decodes the body into v.
func (c *Client) Get(path string, header http.Header, v any) http.Header {
	c.t.Helper()
	a, err := c.Do(http.MethodGet, path, header, nil)
	require.NoError(c.t, err)
	require.Equal(c.t, http.StatusOK, a.Status, "GET %s: %s", path, a.Body)
	require.NoError(c.t, a.Decode(v), "%s", a.Body)
	return a.Header
}

// Appended is what an append answers about one stream.
type Appended struct {
	Category     string `json:"category"`
	Stream       string `json:"stream"`
	FirstVersion int64  `json:"firstVersion"`
	LastVersion  int64  `json:"lastVersion"`
	Events       []struct {
		ID       string `json:"id"`
		Version  int64  `json:"version"`
		Position string `json:"position"`
		Recorded string `json:"recorded"`
	} `json:"events"`
	Token string `json:"token"`
}

// ImportLine is one line of the answer to an NDJSON append.
type ImportLine struct {
	Line    int             `json:"line"`
	Status  int             `json:"status"`
	Appends []Appended      `json:"appends"`
	Problem json.RawMessage `json:"problem"`
	Lines   *int            `json:"lines"`
	Token   string          `json:"token"`
}

// Import streams lines to POST /v1/append and calls each for every line of the
// answer but the last, whose token it returns.
func (c *Client) Import(lines io.Reader, each func(ImportLine)) (token string, err error) {
	req, err := http.NewRequest(http.MethodPost, c.Base+"/v1/append", lines)
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	res, err := (&http.Client{Transport: c.HTTP.Transport}).Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(res.Body)
		return "", fmt.Errorf("importing: status %d: %s", res.StatusCode, body)
	}
	answers := bufio.NewReaderSize(res.Body, 1<<16)
	for {
		raw, err := answers.ReadBytes('\n')
		if err != nil {
			return "", fmt.Errorf("importing: the answer ends without its last line: %w", err)
		}
		var line ImportLine
		if err := json.Unmarshal(raw, &line); err != nil {
			return "", fmt.Errorf("importing: reading the line %q: %w", raw, err)
		}
		if line.Lines != nil {
			return line.Token, nil
		}
		each(line)
	}
}

// Rows reads a whole read model page by page and returns its rows by key, in
// canonical JSON. It waits for token.
func (c *Client) Rows(readModel, keyField, token string) map[string]string {
	c.t.Helper()
	rows := make(map[string]string)
	header := http.Header{"Refold-Wait": {"30s"}}
	if token != "" {
		header.Set("Refold-Token", token)
	}
	query := url.Values{"limit": {strconv.Itoa(1000)}}
	for {
		var page struct {
			Rows []json.RawMessage `json:"rows"`
			Next *string           `json:"next"`
		}
		c.Get("/v1/read-models/"+readModel+"?"+query.Encode(), header, &page)
		for _, raw := range page.Rows {
			row := Canonical(c.t, raw)
			var fields map[string]any
			require.NoError(c.t, json.Unmarshal(raw, &fields))
			key, ok := fields[keyField].(string)
			require.True(c.t, ok, "row without %s: %s", keyField, raw)
			require.NotContains(c.t, rows, key, "a key twice in one walk")
			rows[key] = row
		}
		if page.Next == nil {
			return rows
		}
		query.Set("cursor", *page.Next)
	}
}

// Canonical returns JSON with its keys sorted and its numbers as they were.
func Canonical(t testing.TB, raw []byte) string {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	require.NoError(t, d.Decode(&v), "%s", raw)
	out, err := json.Marshal(v)
	require.NoError(t, err)
	return string(out)
}
