package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/test/platform"
)

// Whatever a client sends to a real writer on a real Postgres, it is refused with
// its reason and its place, and between any two of such requests a good append
// finds its stream as the good one before it left it.
func TestHostileRequestsAreRefusedAndLeaveNothing(t *testing.T) {
	stack := platform.New(t, devstack.Database(t), nil)
	stack.Schemas = filepath.Join(platform.Root(), "test", "e2e", "hostile")
	dev := stack.Dev()
	v := &victim{t: t, client: platform.NewClient(t, dev.URL())}
	v.append()
	for _, h := range hostiles() {
		t.Run(h.row+"/"+h.name, func(t *testing.T) {
			require.NoError(t, h.refused(v.client))
			v.append()
		})
	}
	t.Run("lines of an import", v.importLines)
	t.Run("a cursor of another query", v.foreignCursor)
	t.Run("on the wire", func(t *testing.T) { onTheWire(t, strings.TrimPrefix(dev.URL(), "http://")) })
	v.append()

	conn, err := pgx.Connect(context.Background(), stack.DatabaseURL)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	t.Run("a query that takes too long", func(t *testing.T) { v.slowQuery(t, conn, dev.AdminURL()) })
	v.append()

	var events, others int64
	require.NoError(t, conn.QueryRow(context.Background(), `select count(*), count(*) filter (where stream <> 'victim') from refold.event`).Scan(&events, &others))
	require.Equal(t, v.version+pages, events)
	require.EqualValues(t, pages, others)
	for _, table := range []string{"chosen_id", "idempotency_key", "claim", "parked_event"} {
		require.NoError(t, conn.QueryRow(context.Background(), `select count(*) from refold.`+table).Scan(&others))
		require.Zero(t, others, table)
	}
	row := v.row()
	require.Equal(t, fmt.Sprint(v.version), row["events"].(json.Number).String())
	require.Equal(t, fmt.Sprint(v.sum), row["sum"].(json.Number).String(), "the row is that of the good events")
	require.NotContains(t, dev.Log(), "panic")
	for _, noise := range strings.Split(dev.Log(), "\n") {
		require.NotContains(t, noise, "level=ERROR")
	}
}

// refused sends the request and says what is wrong with the answer.
func (h hostile) refused(c *platform.Client) error {
	body := []byte(h.body)
	if h.method != http.MethodPost {
		body = nil
	}
	a, err := c.Do(h.method, h.path, h.header, body)
	if err != nil {
		return err
	}
	return problemOf(a, h.status, h.problem, h.pointer)
}

func problemOf(a platform.Answer, status int, kind, pointer string) error {
	var doc struct {
		Type, Title, Pointer string
		Status               int
	}
	switch err := a.Decode(&doc); {
	case a.Status != status:
		return fmt.Errorf("status %d, want %d: %.300s", a.Status, status, a.Body)
	case a.Header.Get("Content-Type") != "application/problem+json" || err != nil:
		return fmt.Errorf("%s is no problem document: %.300s", a.Header.Get("Content-Type"), a.Body)
	case doc.Type != "/problems/"+kind || doc.Status != status || doc.Title == "":
		return fmt.Errorf("another problem than %s: %.300s", kind, a.Body)
	case pointer != "" && doc.Pointer != pointer:
		return fmt.Errorf("points to %q, want %q: %.300s", doc.Pointer, pointer, a.Body)
	case status == http.StatusServiceUnavailable && a.Header.Get("Retry-After") == "":
		return fmt.Errorf("a 503 without Retry-After: %.300s", a.Body)
	case status == http.StatusMethodNotAllowed && a.Header.Get("Allow") == "":
		return fmt.Errorf("a 405 without Allow: %.300s", a.Body)
	}
	for _, secret := range []string{"SQLSTATE", "goroutine", "refold.event", "pgx", ".go:"} {
		if bytes.Contains(a.Body, []byte(secret)) {
			return fmt.Errorf("the answer tells of %s: %.300s", secret, a.Body)
		}
	}
	return nil
}

// victim is the stream that everything hostile aims at, and what good appends made
// of it.
type victim struct {
	t       *testing.T
	client  *platform.Client
	version int64
	sum     int64
	token   string
}

// append appends one good event, exactly behind the one before.
func (v *victim) append() {
	v.t.Helper()
	a, err := v.client.Do(http.MethodPost, victimPath, nil, fmt.Appendf(nil, `{"expectedVersion": %d, "events": [{"type": "Probed", "data": {"n": %d}}]}`, v.version, v.version+1))
	require.NoError(v.t, err)
	require.Equal(v.t, http.StatusCreated, a.Status, "%s", a.Body)
	var done platform.Appended
	require.NoError(v.t, a.Decode(&done))
	v.version++
	v.sum, v.token = v.sum+v.version, done.Token
	require.Equal(v.t, v.version, done.LastVersion)
}

func (v *victim) row() (row map[string]any) {
	v.t.Helper()
	v.client.Get(probesPath+"/victim", http.Header{"Refold-Token": {v.token}, "Refold-Wait": {"30s"}}, &row)
	return row
}

// importLines sends every hostile body of several streams as a line between good
// ones: each line stands for itself.
func (v *victim) importLines(t *testing.T) {
	var lines bytes.Buffer
	want := map[int]int{}
	n := 0
	good := func() {
		n++
		want[n] = http.StatusCreated
		v.version++
		v.sum += v.version
		fmt.Fprintf(&lines, "%s\n", many(fmt.Sprintf(`"expectedVersion": %d, "events": [{"type": "Probed", "data": {"n": %d}}]`, v.version-1, v.version)))
	}
	good()
	for _, h := range hostiles() {
		if h.path != victimPath || h.method != http.MethodPost || h.problem == "too-large" || len(h.header) > 0 || len(h.body) < 2 || strings.Contains(h.body, "\n") ||
			!strings.HasPrefix(h.body, `{"`) || strings.Contains(h.body, `"metadata"`) || !strings.HasSuffix(h.body, "}") || h.name == "trailing data" {
			continue
		}
		n++
		want[n] = h.status
		fmt.Fprintf(&lines, "%s\n", many(h.body[1:len(h.body)-1]))
		good()
	}
	require.Greater(t, n, 100)
	token, err := v.client.Import(&lines, func(line platform.ImportLine) {
		require.Equal(t, want[line.Line], line.Status, "line %d: %s", line.Line, line.Problem)
		delete(want, line.Line)
	})
	require.NoError(t, err)
	require.Empty(t, want)
	v.token = token
}

// foreignCursor takes a cursor to a query that it does not belong to, and changes
// a letter of it.
func (v *victim) foreignCursor(t *testing.T) {
	for i := range pages {
		a, err := v.client.Do(http.MethodPost, fmt.Sprintf("/v1/streams/Probe/page-%d/events", i), nil, []byte(event(`{"n": 1}`)))
		require.NoError(t, err)
		require.Equal(t, http.StatusCreated, a.Status)
		var done platform.Appended
		require.NoError(t, a.Decode(&done))
		v.client.Get(fmt.Sprintf("%s/page-%d", probesPath, i), http.Header{"Refold-Token": {done.Token}, "Refold-Wait": {"30s"}}, new(map[string]any))
	}
	var page struct{ Next string }
	v.client.Get(probesPath+"?limit=1&order=sum", nil, &page)
	require.NotEmpty(t, page.Next)
	last := page.Next[len(page.Next)-1]
	for name, query := range map[string]string{
		"another order":  "?limit=1&order=last&cursor=" + page.Next,
		"another filter": "?limit=1&order=sum&sum=gt.0&cursor=" + page.Next,
		"a letter":       "?limit=1&order=sum&cursor=" + page.Next[:len(page.Next)-2] + string([]byte{last ^ 1, last}),
		"half":           "?limit=1&order=sum&cursor=" + page.Next[:len(page.Next)/2],
	} {
		a, err := v.client.Do(http.MethodGet, probesPath+query, nil, nil)
		require.NoError(t, err)
		require.NoError(t, problemOf(a, http.StatusBadRequest, "bad-request", ""), name)
	}
	v.client.Get(probesPath+"?limit=1&order=sum&cursor="+url.QueryEscape(page.Next), nil, new(map[string]any))
}

// pages is how many streams there are besides the victim.
const pages = 3

// slowQuery makes rows wait for a lock for longer than a query may take, and asks
// more at once than there are sessions for queries: appends, health and leases have
// sessions of their own, and nobody hangs.
func (v *victim) slowQuery(t *testing.T, conn *pgx.Conn, admin string) {
	ctx := context.Background()
	v.row()
	tx, err := conn.Begin(ctx)
	require.NoError(t, err)
	defer tx.Rollback(ctx)
	_, err = tx.Exec(ctx, `lock table refold.projections in access exclusive mode`)
	require.NoError(t, err)
	began := time.Now()
	var all sync.WaitGroup
	var slow atomic.Int64
	answers := make([]error, 100)
	for i := range answers {
		all.Go(func() {
			a, err := v.client.Do(http.MethodGet, fmt.Sprintf("%s?sum=gt.-1&limit=%d", probesPath, i+1), nil, nil)
			if err == nil {
				if err = problemOf(a, http.StatusServiceUnavailable, "query-timeout", ""); err == nil {
					slow.Add(1)
				} else { // it has had no session to be slow in
					err = problemOf(a, http.StatusServiceUnavailable, "unavailable", "")
				}
			}
			answers[i] = err
		})
	}
	for range 20 {
		v.append()
	}
	a, err := platform.NewClient(t, admin).Do(http.MethodGet, "/readyz", nil, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, a.Status, "%s", a.Body)
	all.Wait()
	for i, err := range answers {
		require.NoError(t, err, "query %d", i)
	}
	require.Positive(t, slow.Load())
	require.Less(t, time.Since(began), time.Minute)
	require.NoError(t, tx.Rollback(ctx))
}

// onTheWire sends what no HTTP client would: each line is what the server must
// begin its answer with, or that it parts with the client.
func onTheWire(t *testing.T, addr string) {
	const head = "POST " + victimPath + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	body := event(`{"n": 1}`)
	for name, c := range map[string]struct {
		text   string
		status string // empty: nothing but the end of the connection
		within time.Duration
	}{
		"headers that never end":            {"POST " + victimPath + " HTTP/1.1\r\nHost: x\r\nX", "", 30 * time.Second},
		"a body that never ends":            {head + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body[:len(body)-1]), "", time.Minute},
		"a body that is cut":                {head + "Content-Length: 10\r\nConnection: close\r\n\r\n{}", "", time.Minute},
		"a length that is no number":        {head + "Content-Length: x\r\n\r\n" + body, "HTTP/1.1 400", time.Minute},
		"two lengths":                       {head + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n" + body, "HTTP/1.1 400", time.Minute},
		"a length and chunks":               {head + fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", len(body)), "HTTP/1.1 400", time.Minute},
		"chunks that are none":              {head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", "HTTP/1.1 400", time.Minute},
		"an unknown transfer":               {head + "Transfer-Encoding: gzip\r\n\r\n" + body, "HTTP/1.1 501", time.Minute},
		"headers beyond all bounds":         {head + "X: " + strings.Repeat("x", 200_000) + "\r\n\r\n", "HTTP/1.1 431", time.Minute},
		"a header with NUL":                 {head + "Idempotency-Key: a\x00b\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 400", time.Minute},
		"no HTTP":                           {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "", time.Minute},
		"a path out of the tree":            {"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 307", time.Minute},
		"a broken escape in the path":       {"GET /v1/streams/%zz HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400", time.Minute},
		"no host":                           {"GET /v1/categories HTTP/1.1\r\n\r\n", "HTTP/1.1 400", time.Minute},
		"an expectation nobody understands": {head + "Expect: a-miracle\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 417", time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", addr)
			require.NoError(t, err)
			defer conn.Close()
			require.NoError(t, conn.SetDeadline(time.Now().Add(c.within)))
			var writing sync.WaitGroup
			writing.Go(func() { io.WriteString(conn, c.text) }) // the server may hang up in the middle
			line, err := bufio.NewReader(conn).ReadString('\n')
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the server waits for ever")
			if c.status != "" {
				require.True(t, strings.HasPrefix(line, c.status), "%q", line)
			} else if line != "" {
				require.True(t, strings.HasPrefix(line, "HTTP/1.1 4"), "%q", line)
			}
			conn.Close()
			writing.Wait()
		})
	}
}
