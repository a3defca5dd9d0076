package query

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"

	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// list is GET /v1/read-models/{name}.
func (a *API) list(w http.ResponseWriter, r *http.Request) error {
	values, err := parameters(r)
	if err != nil {
		return err
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
	if err := l.fields.check(a.plans, from.Version); err != nil {
		return err
	}
	return respond(w, r, from, renderPage(page, l.fields))
}

func renderPage(page *readmodel.Page, fields selection) []byte {
	b := make([]byte, 0, 64+len(page.Rows)*200)
	b = append(b, `{"rows":[`...)
	for i, row := range page.Rows {
		if i > 0 {
			b = append(b, ',')
		}
		b = fields.appendRow(b, row, page.Keys[i])
	}
	b = append(b, `],"next":`...)
	if page.Next == "" {
		b = append(b, "null"...)
	} else {
		b = strictjson.AppendText(b, []byte(page.Next))
	}
	if page.Count != nil {
		b = strconv.AppendInt(append(b, `,"count":`...), *page.Count, 10)
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
