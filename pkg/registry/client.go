package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/refoldhq/refold/pkg/avro"
)

// ClientConfig says how to reach an external registry. The names are those of the
// SCHEMA_REGISTRY_* environment.
type ClientConfig struct {
	// URLs are those of the servers of one registry; the next is tried where one is
	// not reached. User and password may stand in them.
	URLs              []string
	BasicAuthUserInfo string // user:password
	BearerAuthToken   string
	TLS               *tls.Config // nil: the system's certificates
}

// Client asks an external registry. It is safe for concurrent use.
type Client struct {
	api       *sr.Client
	base      *url.URL // of the first server
	transport http.RoundTripper
	header    http.Header // what says who we are
}

const (
	askTimeout    = 5 * time.Second // of one request
	dialTimeout   = 3 * time.Second
	maxAnswer     = 8 << 20
	basicAuthName = "SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO"
)

// NewClient checks the settings. It does not dial.
func NewClient(cfg ClientConfig) (*Client, error) {
	urls, userInfo, err := cfg.urls()
	if err != nil {
		return nil, err
	}
	c := &Client{base: urls[0], header: make(http.Header), transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: cfg.TLS,
		DialContext:         (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: askTimeout, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true}}
	switch {
	case userInfo != "" && cfg.BearerAuthToken != "":
		return nil, errors.New("the schema registry is given a user and a token (SCHEMA_REGISTRY_BEARER_AUTH_TOKEN): give it one of them")
	case userInfo != "":
		user, password, found := strings.Cut(userInfo, ":")
		if !found {
			return nil, errors.New(basicAuthName + " is user:password, and the colon is missing")
		}
		r := http.Request{Header: c.header}
		r.SetBasicAuth(user, password)
	case cfg.BearerAuthToken != "":
		c.header.Set("Authorization", "Bearer "+cfg.BearerAuthToken)
	}
	servers := make([]string, len(urls))
	for i, u := range urls {
		servers[i] = u.String()
	}
	c.api, err = sr.NewClient(sr.URLs(servers...), sr.UserAgent("refold"), sr.HTTPClient(&http.Client{Timeout: askTimeout, Transport: limited{c.transport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}), // a POST would come out as a GET
		sr.PreReq(func(r *http.Request) error {
			for name, values := range c.header {
				r.Header[name] = values
			}
			return nil
		}))
	return c, err
}

// urls returns the servers without credentials, and the user info that may have
// stood in one of them.
func (cfg ClientConfig) urls() (list []*url.URL, userInfo string, err error) {
	userInfo = cfg.BasicAuthUserInfo
	for _, text := range cfg.URLs {
		u, err := url.Parse(strings.TrimRight(strings.TrimSpace(text), "/"))
		switch {
		case err != nil: // its text may hold a password
			return nil, "", errors.New("SCHEMA_REGISTRY_URL is no URL: want http://host:port or https://host:port")
		case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
			return nil, "", errors.New("SCHEMA_REGISTRY_URL holds something else than http://host:port or https://host:port, separated by commas; a comma in a password is written %2C")
		case u.User == nil:
		case cfg.BasicAuthUserInfo != "":
			return nil, "", errors.New("SCHEMA_REGISTRY_URL holds a user and " + basicAuthName + " is set: give it one of them")
		default:
			password, _ := u.User.Password()
			own := u.User.Username() + ":" + password
			if userInfo != "" && userInfo != own {
				return nil, "", errors.New("SCHEMA_REGISTRY_URL holds several users: its servers are one registry, which is asked as one user")
			}
			userInfo, u.User = own, nil
		}
		list = append(list, u)
	}
	if len(list) == 0 {
		return nil, "", errors.New("SCHEMA_REGISTRY_URL is empty")
	}
	return list, userInfo, nil
}

// limited bounds answers.
type limited struct{ http.RoundTripper }

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := l.RoundTripper.RoundTrip(r)
	if err == nil {
		answer.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(answer.Body, maxAnswer), answer.Body} // JSON that is cut off cannot be read
	}
	return answer, err
}

// String is the URL of the first server.
func (c *Client) String() string { return c.base.String() }

// Ping asks whether somebody is there who lets us in.
func (c *Client) Ping(ctx context.Context) error {
	err := c.api.Do(ctx, http.MethodGet, "/", nil, nil)
	var answer *sr.ResponseError
	if errors.As(err, &answer) && answer.StatusCode >= 400 && answer.StatusCode < 500 && !slices.Contains(unheard, answer.StatusCode) {
		return nil
	}
	return c.failure(err)
}

// unheard are the statuses from 400 to 499 that say nothing about what was asked
// for. (404 without a code of the registry's is another.)
var unheard = []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired, http.StatusRequestTimeout, http.StatusTooManyRequests}

// code returns the code of an answer in which the registry itself says no; 0 for
// whatever else went wrong, which says nothing about what was asked for. A 404 may
// be that of a proxy or of a wrong path, so it needs one of the registry's codes.
func code(err error) int {
	var answer *sr.ResponseError
	if !errors.As(err, &answer) || answer.ErrorCode == 0 {
		return 0
	}
	switch answer.StatusCode {
	case http.StatusConflict, http.StatusUnprocessableEntity:
		return answer.ErrorCode
	case http.StatusNotFound:
		if answer.ErrorCode/100 == http.StatusNotFound {
			return answer.ErrorCode
		}
	}
	return 0
}

// failure says of an error whether it is the registry's own word; else it is
// [ErrUnavailable].
func (c *Client) failure(err error) error {
	var answer *sr.ResponseError
	switch {
	case err == nil:
		return nil
	case code(err) != 0:
		return fmt.Errorf("the schema registry %s refuses: %w", c, err)
	case errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden):
		return fmt.Errorf("%w: %s answers with %d: see %s and SCHEMA_REGISTRY_BEARER_AUTH_TOKEN", ErrUnavailable, c, answer.StatusCode, basicAuthName)
	case errors.As(err, &answer):
		return fmt.Errorf("%w: %s answers with %d: %.200s", ErrUnavailable, c, answer.StatusCode, answer.Error())
	default:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
}

// schema returns the schema with an id, or [ErrUnknownSchema].
func (c *Client) schema(ctx context.Context, id int) (*avro.Schema, error) {
	given, err := c.api.SchemaByID(ctx, id)
	switch {
	case code(err) == codeSchema:
		return nil, fmt.Errorf("%w: %d", ErrUnknownSchema, id)
	case err != nil:
		return nil, c.failure(err)
	}
	schema, err := c.parse(given)
	if err != nil {
		return nil, fmt.Errorf("schema %d: %w", id, err)
	}
	return schema, nil
}

// parse reads a schema. One that no event of ours can have is an [ErrUnknownSchema].
func (c *Client) parse(given sr.Schema) (*avro.Schema, error) {
	switch {
	case given.Type != sr.TypeAvro:
		return nil, fmt.Errorf("%w: it is of the type %s and not Avro", errForeignSchema, given.Type)
	case len(given.References) > 0:
		return nil, fmt.Errorf("%w: it refers to other schemas", errForeignSchema)
	case !json.Valid([]byte(given.Schema)):
		return nil, fmt.Errorf("%w: the answer of %s is no schema", ErrUnavailable, c)
	}
	schema, err := avro.Parse([]byte(given.Schema))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errForeignSchema, err)
	}
	return schema, nil
}

// errForeignSchema is the [ErrUnknownSchema] of a schema that the registry has.
var errForeignSchema = fmt.Errorf("%w of an event", ErrUnknownSchema)

// find returns the id of a schema under a subject, or [ErrUnknownSubject] or
// [ErrUnknownSchema].
func (c *Client) find(ctx context.Context, subject string, schema *avro.Schema) (id int, err error) {
	found, err := c.api.LookupSchema(ctx, subject, sr.Schema{Schema: schema.String()})
	switch {
	case code(err) == codeSubject:
		return 0, ErrUnknownSubject
	case code(err) == codeSchema:
		return 0, ErrUnknownSchema
	case err != nil:
		return 0, c.failure(err)
	}
	return c.positive(found.ID)
}

func (c *Client) positive(id int) (int, error) {
	if id < 1 || id > 1<<31-1 {
		return 0, fmt.Errorf("%w: %s gives the id %d", ErrUnavailable, c, id)
	}
	return id, nil
}

// versions returns those of a subject in order.
func (c *Client) versions(ctx context.Context, subject string) (list []Version, err error) {
	given, err := c.api.Schemas(ctx, subject)
	if code(err) == codeSubject {
		return nil, nil
	}
	if err != nil {
		return nil, c.failure(err)
	}
	for _, v := range given {
		if _, err := c.parse(v.Schema); err != nil {
			return nil, fmt.Errorf("version %d of %s cannot be read: %w", v.Version, subject, err)
		}
		list = append(list, Version{Subject: subject, ID: v.ID, Version: v.Version, Schema: v.Schema.Schema})
	}
	return list, nil
}

// fullName is a record's name as Avro has it.
var fullName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$`)

// Events returns all versions of the events of a topic, by the full names of their
// records, oldest first: those of the subjects <topic>-<full name of the record>.
func (c *Client) Events(ctx context.Context, topic string) (map[string][]Version, error) {
	subjects, err := c.api.Subjects(ctx)
	if err != nil {
		return nil, c.failure(err)
	}
	events := make(map[string][]Version)
	for _, subject := range subjects {
		name, of := strings.CutPrefix(subject, topic+"-")
		if !of || name == "key" || name == "value" || !fullName.MatchString(name) { // the subjects of a topic of one schema, and of other topics
			continue
		}
		list, err := c.versions(ctx, subject)
		if err != nil {
			return nil, err
		}
		slices.SortFunc(list, func(a, b Version) int { return a.Version - b.Version })
		events[name] = list
	}
	return events, nil
}

// create registers a schema.
func (c *Client) create(ctx context.Context, subject string, schema *avro.Schema) (id int, err error) {
	id, err = c.api.RegisterSchema(ctx, subject, sr.Schema{Schema: schema.String()}, -1, -1)
	if err != nil {
		return 0, c.failure(err)
	}
	return c.positive(id)
}
