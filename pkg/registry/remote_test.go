package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/sr"
	"github.com/twmb/franz-go/pkg/sr/srfake"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/registry"
)

// remote is a log whose schemas an external registry keeps.
type remote struct {
	*registry.Remote
	t      *testing.T
	pool   *pgxpool.Pool
	client *registry.Client
	log    *bytes.Buffer
	fake   *srfake.Registry
	asked  atomic.Int64
}

func setupRemote(t *testing.T) *remote {
	t.Helper()
	r := &remote{t: t, pool: devstack.MigratedDatabase(t), fake: srfake.New(), log: &bytes.Buffer{}}
	t.Cleanup(r.fake.Close)
	r.fake.Intercept(func(http.ResponseWriter, *http.Request) bool { r.asked.Add(1); return false })
	r.use(r.fake.URL())
	return r
}

// use has the log use the registry at a URL, as after a restart of all programs.
func (r *remote) use(url string) {
	r.t.Helper()
	var err error
	r.client, err = registry.NewClient(registry.ClientConfig{URLs: []string{url}})
	require.NoError(r.t, err)
	r.restart()
}

func (r *remote) restart() {
	r.log.Reset()
	r.Remote = registry.NewRemote(r.pool, r.client, slog.New(slog.NewTextHandler(r.log, nil)))
}

// answer has the registry answer every request with this.
func (r *remote) answer(status int, body string) {
	r.fake.ClearInterceptors()
	r.fake.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(status)
		io.WriteString(w, body)
		return true
	})
}

func parse(t *testing.T, text string) *avro.Schema {
	t.Helper()
	schema, err := avro.Parse([]byte(text))
	require.NoError(t, err)
	return schema
}

const subject = "refold.account-Opened"

// register registers versions of Account/Opened, oldest first, and returns the id of
// the newest.
func (r *remote) register(versions ...string) (int, error) {
	return register(r.t, r.Remote, versions...)
}

func register(t *testing.T, to interface {
	RegisterContracts(ctx context.Context, contracts *avro.Contracts, topicOf func(string) string) (registry.IDs, error)
}, versions ...string) (int, error) {
	t.Helper()
	files := fstest.MapFS{}
	for i, text := range versions {
		files[fmt.Sprintf("events/Account/Opened.v%d.avsc", i+1)] = &fstest.MapFile{Data: []byte(text)}
	}
	contracts, err := avro.LoadContracts(files)
	require.NoError(t, err)
	ids, err := to.RegisterContracts(t.Context(), contracts, func(c string) string { return "refold." + strings.ToLower(c) })
	return ids["Account"]["Opened"], err
}

func TestContractsAreRegisteredAtTheExternalRegistry(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	r.fake.SeedSchema("somebody-elses", 1, 41, avroSchema(`{"type":"record","name":"Else","fields":[]}`))
	id, err := r.register(v1, v2)
	require.NoError(t, err)
	require.Equal(t, 43, id)
	for version, text := range map[int]string{1: v1, 2: v2} {
		there, found := r.fake.GetSchema(subject, version)
		require.True(t, found)
		require.JSONEq(t, text, there.Schema.Schema)
	}
	again, err := r.register(v1, v2)
	require.NoError(t, err)
	require.Equal(t, id, again)
	_, third := r.fake.GetSchema(subject, 3)
	require.False(t, third, "what is there is not registered again")
	require.Empty(t, r.log.String())
}

// The registry's own level may be weaker, so all versions are compared here.
func TestANewVersionMustReadAllVersionsOfTheExternalRegistry(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	r.fake.SeedSchema(subject, 1, 7, avroSchema(other))
	r.fake.SeedSchema(subject, 2, 8, avroSchema(v1))
	_, err := r.register(v2)
	var incompatible *registry.Incompatible
	require.ErrorAs(t, err, &incompatible)
	require.Contains(t, err.Error(), "owner")
	require.Contains(t, err.Error(), "version 1")
	_, found := r.fake.GetSchema(subject, 3)
	require.False(t, found)
}

func TestTheExternalRegistrysRefusalIsTold(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	r.fake.Intercept(func(w http.ResponseWriter, request *http.Request) bool {
		if request.Method != http.MethodPost || !strings.HasSuffix(request.URL.Path, "/versions") {
			return false
		}
		w.WriteHeader(http.StatusConflict)
		io.WriteString(w, `{"error_code": 409, "message": "incompatible with an earlier schema"}`)
		return true
	})
	_, err := r.register(v1)
	require.ErrorContains(t, err, subject)
	require.ErrorContains(t, err, "incompatible with an earlier schema")
	require.NotErrorIs(t, err, registry.ErrUnavailable, "time does not mend it")
}

func TestAnIDIsAskedForOnceAndKeptForEver(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	r.fake.SeedSchema("others", 1, 12, avroSchema(v2))
	for range 3 {
		schema, err := r.SchemaByID(t.Context(), 12)
		require.NoError(t, err)
		require.JSONEq(t, v2, schema.String())
	}
	require.EqualValues(t, 1, r.asked.Load())
	r.fake.Close()
	r.restart()
	schema, err := r.SchemaByID(t.Context(), 12)
	require.NoError(t, err, "another program, while the registry is down")
	require.JSONEq(t, v2, schema.String())
}

// A record whose schema the registry does not have is poison; one whose schema it
// could not be asked for is not.
func TestOnlyTheRegistrysOwnWordMakesASchemaUnknown(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	_, err := r.SchemaByID(t.Context(), 99)
	require.ErrorIs(t, err, registry.ErrUnknownSchema)
	for body, status := range map[string]int{
		`{"error_code": 40403, "message": "Schema not found"}`:        404,
		`{"schema": "syntax = \"proto3\"", "schemaType": "PROTOBUF"}`: 200,
		`{"schema": "\"string\""}`:                                    200, // no record, so none of ours
		`{"schema": "{\"type\":\"record\",\"name\":\"R\",\"fields\":[{\"name\":\"f\",\"type\":\"Other\"}]}", "references": [{"name":"Other","subject":"o","version":1}]}`: 200,
	} {
		r.answer(status, body)
		_, err := r.SchemaByID(t.Context(), 99)
		require.ErrorIs(t, err, registry.ErrUnknownSchema, body)
		require.NotErrorIs(t, err, registry.ErrUnavailable, body)
	}
	for i, answer := range []struct {
		status int
		body   string
	}{
		{404, `<html>nothing here</html>`}, {404, `{"error_code": 404, "message": "HTTP 404 Not Found"}`}, {404, ""},
		{401, `{"error_code": 401, "message": "Unauthorized"}`}, {403, `{"error_code": 40301, "message": "denied"}`}, {429, "later"},
		{500, `{"error_code": 50001, "message": "store"}`}, {503, ""}, {302, ""},
		{200, ""}, {200, "{"}, {200, "{}"}, {200, "[]"}, {200, `{"schema": "{\"type\":\"rec"}`},
	} {
		r.answer(answer.status, answer.body)
		_, err := r.SchemaByID(t.Context(), 100+i)
		require.ErrorIs(t, err, registry.ErrUnavailable, "%v", answer)
		require.NotErrorIs(t, err, registry.ErrUnknownSchema, "%v", answer)
	}
	r.fake.Close()
	_, err = r.SchemaByID(t.Context(), 99)
	require.ErrorIs(t, err, registry.ErrUnavailable)
	_, _, err = registry.WriterOf(t.Context(), r, avro.AppendFrame(nil, 99))
	require.ErrorIs(t, err, registry.ErrUnavailable)
}

func TestAnAnswerThatDoesNotEndIsCutOff(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	r.fake.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		io.WriteString(w, `{"schema": "`)
		block := bytes.Repeat([]byte("x"), 1<<20)
		for {
			if _, err := w.Write(block); err != nil {
				return true
			}
		}
	})
	_, err := r.SchemaByID(t.Context(), 1)
	require.ErrorIs(t, err, registry.ErrUnavailable)
}

func TestAWriterStartsWithTheIDsOfBeforeWhileTheRegistryIsAway(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	id, err := r.register(v1)
	require.NoError(t, err)
	for what, away := range map[string]func(){
		"it fails":          func() { r.answer(503, "") },
		"it lets nobody in": func() { r.answer(401, `{"error_code": 401, "message": "Unauthorized"}`) },
		"it is down":        func() { r.fake.Close() },
	} {
		away()
		r.restart()
		again, err := r.register(v1)
		require.NoError(t, err, what)
		require.Equal(t, id, again, what)
		require.Contains(t, r.log.String(), "registry is away", what)
		_, err = r.register(v1, v2)
		require.ErrorIs(t, err, registry.ErrUnavailable, "%s: there is no id for a new version", what)
	}
}

// Whatever gave the ids that events were written with, they keep their meaning.
func TestARegistryThatGivesAnotherSchemaForAnIDIsRefused(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	id, err := r.register(v1)
	require.NoError(t, err)
	made := srfake.New() // anew
	t.Cleanup(made.Close)
	made.SeedSchema("another", 1, id, avroSchema(`{"type":"record","name":"Another","fields":[]}`))
	r.use(made.URL())
	_, err = r.register(v1)
	var clash *registry.Clash
	require.ErrorAs(t, err, &clash)
	require.Equal(t, registry.Clash{ID: id, Known: "Opened", Given: "Another"}, *clash)
	_, found := made.GetSchema(subject, 1)
	require.False(t, found, "nothing is registered there")
	schema, err := r.SchemaByID(t.Context(), id)
	require.NoError(t, err)
	require.JSONEq(t, v1, schema.String(), "the log reads on")
}

// An id is believed when the registry gives our schema for it: events are written
// for those who ask by id.
func TestAnIDIsAskedForBeforeEventsAreWrittenWithIt(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	r.fake.Intercept(func(w http.ResponseWriter, request *http.Request) bool {
		if request.Method != http.MethodGet || !strings.HasPrefix(request.URL.Path, "/schemas/ids/") {
			return false
		}
		json.NewEncoder(w).Encode(avroSchema(other))
		return true
	})
	_, err := r.register(v1)
	require.ErrorAs(t, err, new(*registry.Clash))
}

// From the built-in registry to an external one and back.
func TestALogMovesToAnExternalRegistryAndBack(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	builtIn := registry.New(r.pool)
	before, err := register(t, builtIn, v1)
	require.NoError(t, err)

	r.fake.SeedSchema("others", 1, before+1, avroSchema(`{"type":"record","name":"Else","fields":[]}`))
	moved, err := r.register(v1)
	require.NoError(t, err)
	require.Equal(t, before+2, moved)
	require.Contains(t, r.log.String(), fmt.Sprintf("schema_ids=[%d]", before), "its consumers cannot read the events of before")
	r.restart()
	for _, id := range []int{before, moved} {
		schema, err := r.SchemaByID(t.Context(), id)
		require.NoError(t, err)
		require.JSONEq(t, v1, schema.String())
	}

	r.fake.Close()
	builtIn = registry.New(r.pool)
	back, err := register(t, builtIn, v1, v2)
	require.NoError(t, err)
	require.NotContains(t, []int{before, moved}, back, "no id is given twice")
	for id, text := range map[int]string{before: v1, moved: v1, back: v2} {
		schema, err := builtIn.SchemaByID(t.Context(), id)
		require.NoError(t, err)
		require.JSONEq(t, text, schema.String())
	}
}

// The registry of another refold serves as an external one.
func TestAnotherWritersRegistryIsAnExternalOne(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	others := registry.New(devstack.MigratedDatabase(t))
	server := httptest.NewServer(http.StripPrefix("/schema-registry", others.Handler()))
	t.Cleanup(server.Close)
	_, err := others.Register(t.Context(), "others", parse(t, other))
	require.NoError(t, err)
	r.use(server.URL + "/schema-registry/")
	id, err := r.register(v1, v2)
	require.NoError(t, err)
	schema, err := others.SchemaByID(t.Context(), id)
	require.NoError(t, err)
	require.JSONEq(t, v2, schema.String())
	require.NoError(t, r.client.Ping(t.Context()))
	_, err = r.SchemaByID(t.Context(), 4711)
	require.ErrorIs(t, err, registry.ErrUnknownSchema)
	_, err = r.register(noLimit)
	require.ErrorAs(t, err, new(*registry.Incompatible))
	server.Close()
	require.ErrorIs(t, r.client.Ping(t.Context()), registry.ErrUnavailable)
}

func TestCredentialsAreShownToTheRegistryAndToNobodyElse(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]registry.ClientConfig{
		"Basic dXNlcjpwYTpzcw==": {BasicAuthUserInfo: "user:pa:ss"},
		"Bearer secret":          {BearerAuthToken: "secret"},
		"Basic dXNlcjpwYSBzcw==": {URLs: []string{"http://user:pa%20ss@"}},
	} {
		fake := srfake.New(srfake.WithAuth(want))
		t.Cleanup(fake.Close)
		host := strings.TrimPrefix(fake.URL(), "http://")
		if cfg.URLs == nil {
			cfg.URLs = []string{"http://" + host}
		} else {
			cfg.URLs[0] += host
		}
		client, err := registry.NewClient(cfg)
		require.NoError(t, err)
		require.NoError(t, client.Ping(t.Context()), want)
		require.Equal(t, "http://"+host, client.String())
		fake.Close()
		require.NotContains(t, client.Ping(t.Context()).Error(), "pa")
		stranger, err := registry.NewClient(registry.ClientConfig{URLs: []string{httptest.NewServer(srfake.NewRegistry(srfake.WithAuth(want)).Handler()).URL}})
		require.NoError(t, err)
		require.ErrorContains(t, stranger.Ping(t.Context()), "SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO")
	}
	for _, cfg := range []registry.ClientConfig{
		{}, {URLs: []string{""}}, {URLs: []string{"localhost:8081"}}, {URLs: []string{"ftp://host"}}, {URLs: []string{"http://host?a=b"}}, {URLs: []string{"http://us%er@host"}},
		{URLs: []string{"http://host"}, BasicAuthUserInfo: "nobody"}, {URLs: []string{"http://host"}, BasicAuthUserInfo: "a:b", BearerAuthToken: "c"},
		{URLs: []string{"http://a:b@host"}, BasicAuthUserInfo: "a:b"},
	} {
		_, err := registry.NewClient(cfg)
		require.Error(t, err, "%+v", cfg)
	}
}

func TestTheNextServerIsTakenWhereOneIsNotReached(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	client, err := registry.NewClient(registry.ClientConfig{URLs: []string{gone.URL, r.fake.URL()}})
	require.NoError(t, err)
	r.fake.SeedSchema("s", 1, 5, avroSchema(v1))
	_, err = registry.NewRemote(r.pool, client, slog.New(slog.DiscardHandler)).SchemaByID(t.Context(), 5)
	require.NoError(t, err)
}

// front is the writer's API in front of the external registry.
func (r *remote) front() *sr.Client {
	server := httptest.NewServer(http.StripPrefix("/schema-registry", r.Handler()))
	r.t.Cleanup(server.Close)
	client, err := sr.NewClient(sr.URLs(server.URL+"/schema-registry"), sr.BearerToken("the client's own"))
	require.NoError(r.t, err)
	return client
}

func TestTheWritersAPIReadsFromTheExternalRegistryAndChangesNothingThere(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	id, err := r.register(v1)
	require.NoError(t, err)
	r.fake.SeedSchema("a/b", 1, 70, avroSchema(v2))
	var authorization atomic.Value
	r.fake.Intercept(func(_ http.ResponseWriter, request *http.Request) bool {
		authorization.Store(request.Header.Get("Authorization"))
		return false
	})
	front, ctx := r.front(), t.Context()
	schema, err := front.SchemaByID(ctx, id)
	require.NoError(t, err)
	require.JSONEq(t, v1, schema.Schema)
	require.Equal(t, "", authorization.Load(), "a client's credentials are not the registry's business")
	subjects, err := front.Subjects(ctx)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{subject, "a/b"}, subjects)
	there, err := front.SchemaByVersion(ctx, "a/b", -1)
	require.NoError(t, err)
	require.Equal(t, 70, there.ID)
	found, err := front.LookupSchema(ctx, subject, avroSchema(v1))
	require.NoError(t, err)
	require.Equal(t, id, found.ID)
	compatible, err := front.CheckCompatibility(ctx, subject, -1, avroSchema(v2))
	require.NoError(t, err)
	require.True(t, compatible.Is)
	_, err = front.SchemaByID(ctx, 4711)
	refused(t, err, 40403)

	_, err = front.RegisterSchema(ctx, "new", avroSchema(v1), -1, -1)
	refused(t, err, 42205, r.fake.URL())
	_, err = front.DeleteSubject(ctx, subject, sr.SoftDelete)
	refused(t, err, 42205)
	for _, result := range front.SetCompatibility(ctx, sr.SetCompatibility{Level: sr.CompatNone}, subject) {
		refused(t, result.Err, 42205)
	}
	for _, result := range front.SetMode(ctx, sr.ModeReadOnly) {
		refused(t, result.Err, 42205)
	}
	refused(t, front.Do(ctx, http.MethodGet, "/contexts", nil, nil), 404)
	_, err = front.LookupSchema(ctx, subject, avroSchema(strings.Repeat(" ", 2<<20)))
	refused(t, err, 413)
}

func TestSchemasOfTheLogAreGivenByIDWhileTheExternalRegistryIsAway(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	id, err := r.register(v1)
	require.NoError(t, err)
	front, ctx := r.front(), t.Context()
	for what, away := range map[string]func(){
		"it fails":                  func() { r.answer(503, "busy") },
		"it lets the writer not in": func() { r.answer(401, `{"error_code": 401, "message": "Unauthorized"}`) },
		"it is down":                func() { r.fake.Close() },
	} {
		away()
		schema, err := front.SchemaByID(ctx, id)
		require.NoError(t, err, what)
		require.JSONEq(t, v1, schema.Schema, what)
		text, err := front.SchemaTextByID(ctx, id)
		require.NoError(t, err, what)
		require.JSONEq(t, v1, text, what)
		_, err = front.SchemaByID(ctx, id+1)
		refused(t, err, 50003)
		_, err = front.Subjects(ctx)
		refused(t, err, 50003)
		require.NotContains(t, err.Error(), r.fake.URL())
	}
}

// A server that decodes a path before it looks where it leads makes another request
// of some paths, and some heed headers that change one.
func TestNoRequestIsPassedOnThatAServerMayReadOtherwise(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	var got []string
	var header http.Header
	decoding := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		got, header = append(got, request.Method+" "+request.URL.Path), request.Header.Clone()
		request.URL.RawPath = ""
		r.fake.Handler().ServeHTTP(w, request)
	}))
	t.Cleanup(decoding.Close)
	r.use(decoding.URL)
	server := httptest.NewServer(http.StripPrefix("/schema-registry", r.Handler()))
	t.Cleanup(server.Close)
	ask := func(method, path, body string) int {
		request, err := http.NewRequestWithContext(t.Context(), method, server.URL+"/schema-registry"+path, strings.NewReader(body))
		require.NoError(t, err)
		request.Header.Set("X-Http-Method-Override", "DELETE")
		request.Header.Set("Content-Type", "application/json")
		answer, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		return answer.StatusCode
	}
	const body = `{"schema":"{\"type\":\"record\",\"name\":\"Evil\",\"fields\":[]}"}`
	for _, path := range []string{"/subjects/evil%2Fversions", "/subjects/evil%252Fversions", "/subjects/evil%5cversions", "/subjects/x%2f..%2fevil%2fversions"} {
		require.Equal(t, http.StatusNotFound, ask(http.MethodPost, path, body), path)
	}
	require.Equal(t, http.StatusNotFound, ask(http.MethodGet, "/subjects/%2e%2e%2f%2e%2e%2fadmin/versions", ""))
	require.Empty(t, got)
	require.Equal(t, http.StatusOK, ask(http.MethodGet, "/subjects", ""))
	require.Equal(t, []string{"GET /subjects"}, got)
	require.NotContains(t, header, "X-Http-Method-Override")
	require.Equal(t, []string{"application/json"}, header["Content-Type"])
}

func TestASchemaOfAnotherKindUnderAKnownIDIsAClash(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	id, err := r.register(v1)
	require.NoError(t, err)
	made := srfake.New()
	t.Cleanup(made.Close)
	made.SeedSchema("another", 1, id, sr.Schema{Schema: `syntax = "proto3"; message A {}`, Type: sr.TypeProtobuf})
	r.use(made.URL())
	_, err = r.register(v1)
	require.ErrorAs(t, err, new(*registry.Clash))
}

func TestAnIDThatCannotBeComparedHoldsNoNewVersionUp(t *testing.T) {
	t.Parallel()
	r := setupRemote(t)
	r.fake.SeedSchema("others", 1, 12, avroSchema(v2))
	_, err := r.SchemaByID(t.Context(), 12)
	require.NoError(t, err)
	r.fake.Intercept(func(w http.ResponseWriter, request *http.Request) bool {
		if request.URL.Path == "/schemas/ids/12" {
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	})
	_, err = r.register(v1)
	require.NoError(t, err)
	require.Contains(t, r.log.String(), "was not compared")
}

func TestBadURLsOfTheRegistryAreNotShown(t *testing.T) {
	t.Parallel()
	for _, urls := range [][]string{{"http://user:123", "hunter2@host"}, {"http://host?token=hunter2"}, {"hunter2@host:8081"}, {"ftp://hunter2@host"}, {"http://a:hunter2@h1", "http://c:d@h2"}} {
		_, err := registry.NewClient(registry.ClientConfig{URLs: urls})
		require.ErrorContains(t, err, "SCHEMA_REGISTRY_URL", "%v", urls)
		require.NotContains(t, err.Error(), "hunter2")
	}
}
