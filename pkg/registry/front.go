package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"unicode"
)

// Handler serves the external registry's API for reading, to be mounted below a
// prefix that is stripped, so that clients have one address whatever keeps the
// schemas. Answers are the registry's own; while it is away, schemas of the log are
// given by id, which is what consumers of the topics need. Whatever would change
// something is refused: it would be done with the writer's rights there.
func (r *Remote) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, pattern := range []string{"GET /{$}", "GET /subjects", "POST /subjects/{subject}", "GET /subjects/{subject}/versions", "GET /subjects/{subject}/versions/{version}",
		"GET /subjects/{subject}/versions/{version}/schema", "GET /schemas/ids/{id}/versions", "GET /schemas/ids/{id}/subjects", "GET /schemas/types",
		"GET /config", "GET /config/{subject}", "GET /mode", "GET /mode/{subject}",
		"POST /compatibility/subjects/{subject}/versions/{version}", "POST /compatibility/subjects/{subject}/versions"} {
		mux.Handle(pattern, r.forward(r.fail))
	}
	mux.Handle("GET /schemas/ids/{id}", r.forward(r.byID(func(w http.ResponseWriter, source string) {
		write(w, map[string]any{"schema": source}, nil)
	})))
	mux.Handle("GET /schemas/ids/{id}/schema", r.forward(r.byID(func(w http.ResponseWriter, source string) { writeRaw(w, source, nil) })))
	mux.HandleFunc("/", answer(func(request *http.Request) (any, error) {
		if request.Method == http.MethodGet || request.Method == http.MethodHead {
			return nil, errNotFound
		}
		return nil, &apiError{codeForbidden, fmt.Sprintf("Operation not permitted: the schemas are kept by %s, which is to be asked for this itself", r.client)}
	}))
	return mux
}

// failed is called with why the registry did not answer a request.
type failed func(w http.ResponseWriter, r *http.Request, err error)

// forward asks the first server of the registry, as the writer and not as the client.
func (r *Remote) forward(f failed) http.Handler {
	proxy := &httputil.ReverseProxy{Transport: r.client.transport, ErrorHandler: f,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(r.client.base)
			p.Out.Header = make(http.Header)
			for _, name := range []string{"Accept", "Content-Type"} {
				p.Out.Header[name] = p.In.Header[name]
			}
			for name, values := range r.client.header {
				p.Out.Header[name] = values
			}
		},
		ModifyResponse: func(answer *http.Response) error {
			answer.Header.Del("Set-Cookie")
			// What concerns the writer's access or the way to the registry is not the client's.
			if s := answer.StatusCode; s >= 300 && s < 400 || s == http.StatusUnauthorized || s == http.StatusForbidden || s == http.StatusProxyAuthRequired || s > http.StatusInternalServerError {
				return fmt.Errorf("%w: %s answers with %d", ErrUnavailable, r.client, s)
			}
			return nil
		}}
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if !plain(request) {
			write(w, nil, errNotFound)
			return
		}
		ctx, cancel := context.WithTimeout(request.Context(), 2*askTimeout)
		defer cancel()
		request = request.WithContext(ctx)
		request.Body = http.MaxBytesReader(w, request.Body, maxBody)
		proxy.ServeHTTP(w, request)
	})
}

// plain tells whether a request stays what it is at a server that decodes its path
// before it looks where that leads: a POST to subjects/x%2Fversions, which is to look
// a schema up, would register it there.
func plain(request *http.Request) bool {
	for segment := range strings.SplitSeq(request.URL.EscapedPath(), "/") {
		decoded, err := url.PathUnescape(segment)
		if err != nil || strings.ContainsFunc(decoded, unicode.IsControl) || request.Method == http.MethodPost && strings.ContainsAny(decoded, `/\%`) {
			return false
		}
		for part := range strings.SplitSeq(strings.ReplaceAll(decoded, `\`, "/"), "/") {
			if part == "." || part == ".." {
				return false
			}
		}
	}
	return true
}

func (r *Remote) fail(w http.ResponseWriter, request *http.Request, err error) {
	var large *http.MaxBytesError
	e := &apiError{codeForwarding, "Error while forwarding the request to the schema registry"}
	switch {
	case errors.As(err, &large):
		e = &apiError{http.StatusRequestEntityTooLarge, "the body is too large"}
	case request.Context().Err() == nil:
		r.log.Warn("the schema registry did not answer a client", "method", request.Method, "path", strings.ToValidUTF8(request.URL.Path, "?"), "err", err)
	}
	write(w, nil, e)
}

// byID answers with a schema of the log in the registry's place.
func (r *Remote) byID(give func(w http.ResponseWriter, source string)) failed {
	return func(w http.ResponseWriter, request *http.Request, err error) {
		id, bad := idOf(request)
		if bad == nil {
			known, unknown := r.ids.SchemaByID(request.Context(), id)
			if unknown == nil {
				give(w, known.String())
				return
			}
		}
		r.fail(w, request, err)
	}
}
