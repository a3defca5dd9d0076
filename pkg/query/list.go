package query

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// list is GET /v1/read-models/{name}.
func (a *API) list(w http.ResponseWriter, r *http.Request) error {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return problem.BadRequest("the query string is malformed")
	}
	return a.answerList(w, r, values)
}

// post is POST /v1/read-models/{name}/query: the parameters of the URL as members
// of an object, for what does not fit a URL. A parameter that stands several times
// is a list of texts.
func (a *API) post(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	values, err := parseBody(body)
	if err != nil {
		return err
	}
	return a.answerList(w, r, values)
}

func (a *API) answerList(w http.ResponseWriter, r *http.Request, values url.Values) error {
	f, err := fresh(r)
	if err != nil {
		return err
	}
	l, err := parseList(values)
	if err != nil {
		return err
	}
	page, from, err := a.reader.List(r.Context(), r.PathValue("name"), l.query, f)
	if err != nil {
		return err
	}
	if l.fields != nil {
		plan, err := a.plans.Plan(from.Version)
		if err != nil {
			return err
		}
		if err := checkSelected(plan, l.fields); err != nil {
			return err
		}
	}
	return respond(w, r, from, renderPage(page, l.fields))
}

func checkSelected(plan *projection.Plan, fields []string) error {
	for _, name := range fields {
		if name != "key" && !slices.ContainsFunc(plan.Fields(), func(f projection.Field) bool { return f.Name == name }) {
			return bad("select", "the read model has no field "+strconv.Quote(name))
		}
	}
	return nil
}

func renderPage(page *readmodel.Page, fields []string) []byte {
	b := make([]byte, 0, 64+len(page.Rows)*200)
	b = append(b, `{"rows":[`...)
	for i, row := range page.Rows {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendRow(b, row, page.Keys[i], fields)
	}
	b = append(b, `],"next":`...)
	if page.Next == "" {
		b = append(b, "null"...)
	} else {
		b = avro.AppendQuoted(b, []byte(page.Next))
	}
	if page.Count != nil {
		b = strconv.AppendInt(append(b, `,"count":`...), *page.Count, 10)
	}
	return append(b, '}')
}

// appendRow appends a row with the given fields; as it is for nil.
func appendRow(b []byte, row json.RawMessage, key string, fields []string) []byte {
	if fields == nil {
		return append(b, row...)
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(row, &members) != nil {
		return append(b, row...) // what the database gave is JSON
	}
	b = append(b, '{')
	for i, name := range fields {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(avro.AppendQuoted(b, []byte(name)), ':')
		switch {
		case name == "key":
			b = avro.AppendQuoted(b, []byte(key))
		case members[name] == nil: // a field that the row was written before
			b = append(b, "null"...)
		default:
			b = append(b, members[name]...)
		}
	}
	return append(b, '}')
}

const maxBody = 1 << 20

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return nil, problem.New(http.StatusUnsupportedMediaType, "unsupported-media-type", "The body's type is not supported", "want application/json")
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return nil, problem.New(http.StatusUnsupportedMediaType, "unsupported-media-type", "The body's encoding is not supported", "want none")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, problem.New(http.StatusRequestEntityTooLarge, "too-large", "The body is too large", "at most 1 MiB")
	}
	if err != nil {
		return nil, problem.BadRequest("the body ended too soon")
	}
	return body, nil
}

func parseBody(body []byte) (url.Values, error) {
	values := url.Values{}
	r := strictjson.NewReader(body)
	err := r.ReadObject(func(key []byte) error {
		name := string(key)
		if r.Peek() == strictjson.Array {
			return r.ReadArray(func(int) error { return parseMember(r, values, name) })
		}
		return parseMember(r, values, name)
	})
	if err == nil {
		err = r.End()
	}
	var syntax *strictjson.Error
	if errors.As(err, &syntax) {
		return nil, problem.BadRequest(syntax.Msg).At(syntax.Pointer)
	}
	return values, err
}

func parseMember(r *strictjson.Reader, values url.Values, name string) error {
	var text []byte
	var err error
	if r.Peek() == strictjson.Number && name == "limit" {
		text, err = r.ReadNumber()
	} else {
		text, err = r.ReadString()
	}
	values[name] = append(values[name], string(text))
	return err
}
