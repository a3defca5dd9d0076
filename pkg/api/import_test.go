package api_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/api"
	"github.com/refoldhq/refold/schemas"
)

func TestImportAnswersEachLineInOrder(t *testing.T) {
	t.Parallel()
	server := setup(t)
	var lines strings.Builder
	for i := range 500 {
		fmt.Fprintf(&lines, `{"appends": [{"category": "User", "stream": "s%d", "expectedVersion": %d, "events": [{"type": "UserLoggedIn", "data": {}}]}]}`+"\n", i%10, i/10)
	}
	lines.WriteString("\nnonsense\n" + `{"appends": [{"category": "User", "stream": "s1", "expectedVersion": "none", "events": [{"type": "UserLoggedIn", "data": {}}]}]}` + "\n")
	lines.WriteString(strings.Repeat("x", 2<<20) + "\n")
	lines.WriteString(`{"appends": [{"category": "User", "stream": "s1", "events": [{"type": "UserLoggedIn", "data": {}}]}, {"category": "User", "stream": "s2", "events": [{"type": "UserLoggedIn", "data": {}}]}]}`)
	a := send(t, server, http.MethodPost, "/v1/append", map[string]string{"Content-Type": "application/x-ndjson"}, lines.String())
	answers := strings.Split(strings.TrimSpace(a.raw), "\n")
	require.Len(t, answers, 505)
	for i, want := range append(make([]int, 500), 400, 409, 413, 201) {
		if want == 0 {
			want = 201
		}
		var line struct{ Line, Status int }
		require.NoError(t, json.Unmarshal([]byte(answers[i]), &line))
		require.Equal(t, i+1, line.Line)
		require.Equal(t, want, line.Status, answers[i])
	}
	var last struct {
		Lines int
		Token string
	}
	require.NoError(t, json.Unmarshal([]byte(answers[504]), &last))
	require.Equal(t, 504, last.Lines)
	require.NotEmpty(t, last.Token)
}

// lastLine is what an import's answer ends with.
type lastLine struct {
	Lines   *int
	Token   string
	Problem *struct {
		Type   string
		Status int
	}
}

// importBody imports a body and returns the statuses of its lines and the last line.
func importBody(t testing.TB, server *httptest.Server, header map[string]string, body io.Reader) (statuses []int, last lastLine) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, server.URL+"/v1/append", body)
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/x-ndjson")
	for name, value := range header {
		req.Header.Set(name, value)
	}
	res, err := server.Client().Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, http.StatusOK, res.StatusCode)
	raw, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return readAnswers(t, raw)
}

func readAnswers(t testing.TB, raw []byte) (statuses []int, last lastLine) {
	t.Helper()
	lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	for _, line := range lines[:len(lines)-1] {
		var one struct{ Status int }
		require.NoError(t, json.Unmarshal(line, &one))
		statuses = append(statuses, one.Status)
	}
	require.NoError(t, json.Unmarshal(lines[len(lines)-1], &last))
	require.NotNil(t, last.Lines, string(raw))
	require.Equal(t, len(statuses), *last.Lines)
	return statuses, last
}

func line(stream string) string {
	return fmt.Sprintf(`{"appends": [{"category": "User", "stream": %q, "events": [{"type": "UserLoggedIn", "data": {}}]}]}`+"\n", stream)
}

func zipped(s string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write([]byte(s))
	z.Close()
	return b.Bytes()
}

func TestImportOfGzip(t *testing.T) {
	t.Parallel()
	s := serve(t, api.Config{}, schemas.FS, false)
	body := zipped(strings.Repeat(line("a"), 100))
	header := map[string]string{"Content-Encoding": "gzip"}
	statuses, last := importBody(t, s.server, header, bytes.NewReader(body))
	require.Len(t, statuses, 100)
	require.Nil(t, last.Problem)
	require.NotEmpty(t, last.Token)

	statuses, last = importBody(t, s.server, header, bytes.NewReader(body[:len(body)-6])) // its checksum is gone
	require.NotNil(t, last.Problem, "a body that broke off must not look like a whole one")
	require.Equal(t, http.StatusBadRequest, last.Problem.Status)
	require.Len(t, statuses, 100, "what was whole is committed and answered")
	require.Equal(t, 400, send(t, s.server, http.MethodPost, "/v1/append", map[string]string{"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}, "no gzip").status)
	require.Equal(t, 415, send(t, s.server, http.MethodPost, "/v1/append", map[string]string{"Content-Type": "application/x-ndjson", "Content-Encoding": "br"}, "x").status)
}

// A connection that stands still in the middle of a line, for longer than the
// silence that is allowed.
func TestImportThatFallsSilent(t *testing.T) {
	t.Parallel()
	s := serve(t, api.Config{ReadTimeout: 300 * time.Millisecond}, schemas.FS, false)
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.server.URL, "http://"))
	require.NoError(t, err)
	defer conn.Close()
	cut := strings.TrimSpace(line("a")) // would be whole if it were the end
	fmt.Fprintf(conn, "POST /v1/append HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n%s%s", line("a"), cut)
	raw, err := io.ReadAll(conn)
	require.NoError(t, err)
	_, body, _ := strings.Cut(string(raw), "\r\n\r\n")
	var text strings.Builder // without the sizes of chunks
	for _, l := range strings.Split(body, "\n") {
		if strings.HasPrefix(l, "{") {
			text.WriteString(strings.TrimSpace(l) + "\n")
		}
	}
	statuses, last := readAnswers(t, []byte(text.String()))
	require.Equal(t, []int{201}, statuses)
	require.NotNil(t, last.Problem)
	require.Equal(t, "/problems/too-slow", last.Problem.Type)
	var events int
	require.NoError(t, s.pool.QueryRow(t.Context(), `select count(*) from refold.event`).Scan(&events))
	require.Equal(t, 1, events, "of a line that was cut off nothing is done")
}

// A client that sends and never reads is held back, and what waits stays bounded.
func TestImportOfAClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	s := serve(t, api.Config{}, schemas.FS, false)
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.server.URL, "http://"))
	require.NoError(t, err)
	defer conn.Close()
	many := `{"appends": [{"category": "User", "stream": "a", "events": [` + strings.Repeat(`{"type": "UserLoggedIn", "data": {}},`, 499) + `{"type": "UserLoggedIn", "data": {}}]}]}` + "\n"
	fmt.Fprintf(conn, "POST /v1/append HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 1000000000\r\n\r\n")
	held := false
	for range 4000 { // 72 MB, 2 million events
		conn.SetWriteDeadline(time.Now().Add(3 * time.Second))
		if _, err := io.WriteString(conn, many); err != nil {
			held = true
			break
		}
	}
	require.True(t, held, "lines are read no faster than their answers are taken")
}
