package e2e_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/test/platform"
)

// change is one line of a history.
type change struct {
	Time         int64  `json:"time"`
	Commit       string `json:"commit"`
	Author       string `json:"author"`
	Path         string `json:"path"`
	Change       string `json:"change"`
	LinesAdded   int64  `json:"linesAdded"`
	LinesDeleted int64  `json:"linesDeleted"`
	Binary       bool   `json:"binary"`

	// Where the log put it; the answer of the import says so.
	slot int
	seq  int64
}

func readHistory(t testing.TB, name string) []*change {
	t.Helper()
	f, err := os.Open(filepath.Join(platform.Root(), "test", "githistory", "data", "git-history-"+name+".ndjson.gz"))
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	var changes []*change
	lines := bufio.NewScanner(z)
	for lines.Scan() {
		c := new(change)
		require.NoError(t, json.Unmarshal(lines.Bytes(), c))
		changes = append(changes, c)
	}
	require.NoError(t, lines.Err())
	return changes
}

// streamID escapes a path as the README of the data says: "/" becomes ":", and
// every byte that an id may not hold, ":" and "~" too, becomes "~" and two
// upper-case hex digits.
func streamID(path string) string {
	var b strings.Builder
	for i := range len(path) {
		switch c := path[i]; {
		case c == '/':
			b.WriteByte(':')
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "~%02X", c)
		}
	}
	return b.String()
}

func (c *change) eventType() string {
	return map[string]string{"added": "FileAdded", "modified": "FileModified", "deleted": "FileDeleted"}[c.Change]
}

func (c *change) at() string { return time.Unix(c.Time, 0).UTC().Format(time.RFC3339) }

// appendLine returns the change as a line of an NDJSON append.
func (c *change) appendLine() []byte { return c.line(nil) }

// appendLineWithID is an appendLine whose event has an id made from n.
func (c *change) appendLineWithID(n int) []byte {
	return c.line(map[string]any{"id": fmt.Sprintf("01900000-0000-7000-8000-%012x", n+1)})
}

func (c *change) line(event map[string]any) []byte {
	if event == nil {
		event = make(map[string]any)
	}
	event["type"], event["time"] = c.eventType(), c.at()
	event["data"] = map[string]any{"path": c.Path, "commit": c.Commit, "author": c.Author,
		"linesAdded": c.LinesAdded, "linesDeleted": c.LinesDeleted, "binary": c.Binary}
	line, err := json.Marshal(map[string]any{"appends": []any{map[string]any{"category": "File", "stream": streamID(c.Path), "events": []any{event}}}})
	if err != nil {
		panic(err) // strings and numbers only
	}
	return append(line, '\n')
}

// importHistory appends changes through one connection and notes their positions.
func importHistory(t testing.TB, c *platform.Client, changes []*change) (token string) {
	t.Helper()
	var body bytes.Buffer
	for _, x := range changes {
		body.Write(x.appendLine())
	}
	n := 0
	token, err := c.Import(&body, func(line platform.ImportLine) {
		require.Equal(t, 201, line.Status, "line %d: %s", line.Line, line.Problem)
		n++
		require.Equal(t, n, line.Line, "answers come in order")
		changes[line.Line-1].notePosition(t, line.Appends[0].Events[0].Position)
	})
	require.NoError(t, err)
	require.Equal(t, len(changes), n)
	return token
}

func (c *change) notePosition(t testing.TB, position string) {
	parts := strings.Split(position, "/")
	require.Len(t, parts, 3, position)
	slot, err := strconv.Atoi(parts[1])
	require.NoError(t, err)
	seq, err := strconv.ParseInt(parts[2], 10, 64)
	require.NoError(t, err)
	c.slot, c.seq = slot, seq
}

// rows of the three projections, by key, in canonical JSON: computed from the
// history alone, with no code of refold.
type rows map[string]map[string]string

func oracle(t testing.TB, changes []*change) rows {
	out := rows{"files": {}, "authors": {}, "days": {}}
	for key, row := range oracleFiles(changes) {
		out["files"][key] = marshal(t, row)
	}
	for key, row := range oracleAuthors(changes) {
		out["authors"][key] = marshal(t, row)
	}
	for key, row := range oracleDays(changes) {
		out["days"][key] = marshal(t, row)
	}
	return out
}

func marshal(t testing.TB, row any) string {
	raw, err := json.Marshal(row)
	require.NoError(t, err)
	return platform.Canonical(t, raw)
}

type fileRow struct {
	Path         *string `json:"path"`
	Changes      int64   `json:"changes"`
	LinesAdded   int64   `json:"linesAdded"`
	LinesDeleted int64   `json:"linesDeleted"`
	LastAuthor   *string `json:"lastAuthor"`
	LastChange   *string `json:"lastChange"`
}

func oracleFiles(changes []*change) map[string]*fileRow {
	files := make(map[string]*fileRow)
	for _, c := range changes {
		if c.Change == "deleted" {
			delete(files, c.Path)
			continue
		}
		row := files[c.Path]
		if row == nil {
			row = new(fileRow)
			files[c.Path] = row
		}
		if c.Change == "added" {
			row.Path = &c.Path
		}
		row.Changes++
		row.LinesAdded += c.LinesAdded
		row.LinesDeleted += c.LinesDeleted
		row.LastAuthor = &c.Author
		if at := c.at(); row.LastChange == nil || at > *row.LastChange {
			row.LastChange = &at
		}
	}
	return files
}

type authorRow struct {
	Author     string `json:"author"`
	Changes    int64  `json:"changes"`
	LinesAdded int64  `json:"linesAdded"`
	FirstSeen  string `json:"firstSeen"`
	LastSeen   string `json:"lastSeen"`
	LastPath   string `json:"lastPath"`

	last *change
}

func oracleAuthors(changes []*change) map[string]*authorRow {
	authors := make(map[string]*authorRow)
	for _, c := range changes {
		row := authors[c.Author]
		if row == nil {
			row = &authorRow{Author: c.Author, FirstSeen: c.at(), LastSeen: c.at(), last: c}
			authors[c.Author] = row
		}
		row.Changes++
		row.LinesAdded += c.LinesAdded
		row.FirstSeen, row.LastSeen = min(row.FirstSeen, c.at()), max(row.LastSeen, c.at())
		if !c.before(row.last) {
			row.last = c
		}
		row.LastPath = row.last.Path
	}
	return authors
}

// before orders changes by (time, slot, seq); the category is one.
func (c *change) before(d *change) bool {
	if c.Time != d.Time {
		return c.Time < d.Time
	}
	if c.slot != d.slot {
		return c.slot < d.slot
	}
	return c.seq < d.seq
}

type dayRow struct {
	Day       string `json:"day"`
	Changes   int64  `json:"changes"`
	Deletions int64  `json:"deletions"`
}

func oracleDays(changes []*change) map[string]*dayRow {
	days := make(map[string]*dayRow)
	for _, c := range changes {
		day := time.Unix(c.Time, 0).UTC().Format(time.DateOnly)
		row := days[day]
		if row == nil {
			row = &dayRow{Day: day}
			days[day] = row
		}
		row.Changes++
		if c.Change == "deleted" {
			row.Deletions++
		}
	}
	return days
}
