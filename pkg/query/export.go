package query

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/strictjson"
)

const ndjsonMedia = "application/x-ndjson"

// export is GET /v1/read-models/{name}/export: all rows, or those that filters
// select, as {"key", "row"} lines from one snapshot. The last line,
// {"rows": n, "token", "changes"}, tells that nothing is missing, and the id from
// which the change feed goes on without a gap.
func (a *API) export(w http.ResponseWriter, r *http.Request) error {
	values, err := parameters(r)
	if err != nil {
		return err
	}
	f, err := fresh(r)
	if err != nil {
		return err
	}
	l, err := parseList(values)
	if err != nil {
		return err
	}
	for _, name := range []string{"order", "limit", "cursor", "count"} {
		if values.Has(name) {
			return bad(name, "an export takes filters and select only")
		}
	}
	e := &exporting{w: w, out: bufio.NewWriterSize(w, 32<<10), fields: l.fields, control: http.NewResponseController(w)}
	begin := func(from readmodel.Answer) error {
		if err := l.fields.check(a.plans, from.Version); err != nil {
			return err
		}
		e.begin(from)
		return nil
	}
	err = a.reader.Export(r.Context(), r.PathValue("name"), l.query.Where, f, begin, e.row)
	if err != nil && !e.begun {
		return err
	}
	if err != nil {
		a.log.Warn("an export was cut off", "projection", r.PathValue("name"), "err", err)
		panic(http.ErrAbortHandler) // the one way to tell a client that the rest is missing
	}
	return e.end()
}

// exporting is an export under way.
type exporting struct {
	w       http.ResponseWriter
	out     *bufio.Writer
	control *http.ResponseController
	fields  selection
	from    readmodel.Answer
	begun   bool
	rows    int
	line    []byte
}

func (e *exporting) begin(from readmodel.Answer) {
	e.from, e.begun = from, true
	describe(e.w.Header(), from)
	e.w.Header().Set("Content-Type", ndjsonMedia)
	e.w.Header().Set("Cache-Control", "no-store")
}

func (e *exporting) row(key string, data []byte) error {
	if e.rows%1000 == 0 {
		_ = e.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has deadlines
	}
	e.rows++
	e.line = strictjson.AppendText(append(e.line[:0], `{"key":`...), []byte(key))
	e.line = e.fields.appendRow(append(e.line, `,"row":`...), data, key)
	e.line = append(e.line, "}\n"...)
	_, err := e.out.Write(e.line)
	return err
}

func (e *exporting) end() error {
	line := append([]byte(`{"rows":`), strconv.Itoa(e.rows)...)
	line = strictjson.AppendText(append(line, `,"token":`...), []byte(e.from.TokenText()))
	line = strictjson.AppendText(append(line, `,"changes":`...), []byte(e.from.ChangeID()))
	e.out.Write(append(line, "}\n"...)) // a client that has gone needs no answer
	e.out.Flush()
	return nil
}

// explain is GET /v1/read-models/{name}/{key}/explain.
func (a *API) explain(w http.ResponseWriter, r *http.Request) error {
	if err := noParameters(r); err != nil {
		return err
	}
	f, err := fresh(r)
	if err != nil {
		return err
	}
	e, from, err := a.explainer.Explain(r.Context(), r.PathValue("name"), r.PathValue("key"), f)
	if err != nil {
		return err
	}
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return respond(w, r, from, body)
}
