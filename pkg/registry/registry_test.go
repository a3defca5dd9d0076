package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/sr"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/registry"
)

// setup serves a registry on a database of its own; the client is franz-go's,
// which knows nothing of ours.
func setup(t *testing.T) *sr.Client {
	t.Helper()
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: devstack.Database(t), MaxConns: 8})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.NoError(t, postgres.Migrate(t.Context(), pool))
	server := httptest.NewServer(registry.New(pool).Handler())
	t.Cleanup(server.Close)
	client, err := sr.NewClient(sr.URLs(server.URL))
	require.NoError(t, err)
	return client
}

const (
	v1      = `{"type":"record","name":"Opened","fields":[{"name":"owner","type":"string"}]}`
	v2      = `{"type":"record","name":"Opened","fields":[{"name":"owner","type":"string"},{"name":"limit","type":"int","default":0}]}`
	noLimit = `{"type":"record","name":"Opened","fields":[{"name":"owner","type":"string"},{"name":"limit","type":"int"}]}`
	other   = `{"type":"record","name":"Opened","fields":[{"name":"owner","type":"long"}]}`
)

func avroSchema(text string) sr.Schema { return sr.Schema{Schema: text, Type: sr.TypeAvro} }

func refused(t *testing.T, err error, code int, message ...string) {
	t.Helper()
	var answer *sr.ResponseError
	require.ErrorAs(t, err, &answer)
	require.Equal(t, code, answer.ErrorCode, answer.Message)
	for _, part := range message {
		require.Contains(t, answer.Message, part)
	}
}

func TestASchemaKeepsItsIDUnderEverySubject(t *testing.T) {
	t.Parallel()
	client, ctx := setup(t), t.Context()
	first, err := client.CreateSchema(ctx, "a", avroSchema(v1))
	require.NoError(t, err)
	again, err := client.CreateSchema(ctx, "a", avroSchema(v1))
	require.NoError(t, err)
	require.Equal(t, first.ID, again.ID)
	require.Equal(t, 1, again.Version)
	elsewhere, err := client.CreateSchema(ctx, "b", avroSchema(v1))
	require.NoError(t, err)
	require.Equal(t, first.ID, elsewhere.ID)
	second, err := client.CreateSchema(ctx, "a", avroSchema(v2))
	require.NoError(t, err)
	require.NotEqual(t, first.ID, second.ID)
	require.Equal(t, 2, second.Version)

	text, err := client.SchemaTextByID(ctx, first.ID)
	require.NoError(t, err)
	require.Equal(t, v1, text)
	versions, err := client.SubjectVersions(ctx, "a")
	require.NoError(t, err)
	require.Equal(t, []int{1, 2}, versions)
	latest, err := client.SchemaByVersion(ctx, "a", -1)
	require.NoError(t, err)
	require.Equal(t, second.ID, latest.ID)
	subjects, err := client.SubjectsByID(ctx, first.ID)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, subjects)
	found, err := client.LookupSchema(ctx, "a", avroSchema(v1))
	require.NoError(t, err)
	require.Equal(t, 1, found.Version)
	all, err := client.Subjects(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, all)
}

func TestRegistrationFollowsTheLevelAndNamesTheField(t *testing.T) {
	t.Parallel()
	client, ctx := setup(t), t.Context()
	_, err := client.CreateSchema(ctx, "s", avroSchema(v1))
	require.NoError(t, err)
	_, err = client.CreateSchema(ctx, "s", avroSchema(noLimit))
	refused(t, err, 409, "limit", "no default", "version 1")
	_, err = client.CreateSchema(ctx, "s", avroSchema(other))
	refused(t, err, 409, "owner", "string cannot be read as long")
	versions, err := client.SubjectVersions(ctx, "s")
	require.NoError(t, err)
	require.Equal(t, []int{1}, versions, "a refused schema leaves nothing")

	asked, err := client.CheckCompatibility(sr.WithParams(ctx, sr.Verbose), "s", -1, avroSchema(noLimit))
	require.NoError(t, err)
	require.False(t, asked.Is)
	require.Contains(t, fmt.Sprint(asked.Messages), "limit")
	asked, err = client.CheckCompatibility(ctx, "s", 1, avroSchema(v2))
	require.NoError(t, err)
	require.True(t, asked.Is)

	for _, result := range client.SetCompatibility(ctx, sr.SetCompatibility{Level: sr.CompatForward}, "s") {
		require.NoError(t, result.Err)
	}
	_, err = client.CreateSchema(ctx, "s", avroSchema(noLimit))
	require.NoError(t, err, "old readers ignore a field that they do not know")
	for _, result := range client.SetCompatibility(ctx, sr.SetCompatibility{Level: sr.CompatNone}, "s") {
		require.NoError(t, result.Err)
	}
	_, err = client.CreateSchema(ctx, "s", avroSchema(other))
	require.NoError(t, err)
	for _, result := range client.ResetCompatibility(ctx, "s") {
		require.NoError(t, result.Err)
	}
	_, err = client.CreateSchema(ctx, "s", avroSchema(v2))
	refused(t, err, 409)
}

func TestErrorsHaveConfluentsCodes(t *testing.T) {
	t.Parallel()
	client, ctx := setup(t), t.Context()
	_, err := client.SubjectVersions(ctx, "nobody")
	refused(t, err, 40401)
	_, err = client.SchemaTextByID(ctx, 4711)
	refused(t, err, 40403)
	_, err = client.CreateSchema(ctx, "s", avroSchema(v1))
	require.NoError(t, err)
	_, err = client.SchemaByVersion(ctx, "s", 7)
	refused(t, err, 40402)
	_, err = client.LookupSchema(ctx, "s", avroSchema(v2))
	refused(t, err, 40403)
	_, err = client.LookupSchema(ctx, "nobody", avroSchema(v2))
	refused(t, err, 40401)
	for _, text := range []string{
		`{`, `"string"`,
		`{"type":"record","name":"Tree","fields":[{"name":"left","type":["null","Tree"]}]}`,
		`{"type":"record","name":"Nothing","fields":[{"name":"list","type":{"type":"array","items":"null"}}]}`,
	} {
		_, err = client.CreateSchema(ctx, "s", avroSchema(text))
		refused(t, err, 42201)
	}
	for _, result := range client.SetCompatibility(ctx, sr.SetCompatibility{Level: 77}, "s") {
		require.Error(t, result.Err)
	}
	for _, result := range client.Compatibility(ctx, "s") {
		refused(t, result.Err, 40408)
	}
	for _, result := range client.Compatibility(ctx) {
		require.NoError(t, result.Err)
		require.Equal(t, sr.CompatBackwardTransitive, result.Level)
	}
	for _, result := range client.Mode(ctx) {
		require.NoError(t, result.Err)
		require.Equal(t, sr.ModeReadWrite, result.Mode)
	}
}

// A schema never goes, nor its place among the versions: events were written with it.
func TestNothingIsDeletedAndTheModeDoesNotChange(t *testing.T) {
	t.Parallel()
	client, ctx := setup(t), t.Context()
	created, err := client.CreateSchema(ctx, "s", avroSchema(v1))
	require.NoError(t, err)
	for _, how := range []sr.DeleteHow{sr.SoftDelete, sr.HardDelete} {
		_, err = client.DeleteSubject(ctx, "s", how)
		refused(t, err, 42205, "kept for ever")
		refused(t, client.DeleteSchema(ctx, "s", 1, how), 42205)
		_, err = client.DeleteSubject(ctx, "nobody", how)
		refused(t, err, 40401)
		refused(t, client.DeleteSchema(ctx, "s", 2, how), 40402)
	}
	again, err := client.SchemaByVersion(ctx, "s", 1)
	require.NoError(t, err)
	require.Equal(t, created.ID, again.ID)
	for _, result := range client.SetMode(ctx, sr.ModeReadOnly, "s") {
		refused(t, result.Err, 42205)
	}
	for _, result := range client.SetMode(ctx, sr.ModeReadWrite) {
		require.NoError(t, result.Err)
	}
	for _, result := range client.ResetMode(ctx, "s") {
		refused(t, result.Err, 40409)
	}
}

// A level that a category has sets that of its subjects, and goes with it; one that
// somebody has set over the API stays.
func TestALevelGoesWithTheCategorysOwn(t *testing.T) {
	t.Parallel()
	pool := devstack.MigratedDatabase(t)
	r := registry.New(pool)
	register := func(level string) {
		t.Helper()
		files := fstest.MapFS{"events/Account/Opened.v1.avsc": {Data: []byte(v1)}}
		if level != "" {
			files["events/Account/category.yaml"] = &fstest.MapFile{Data: []byte("compatibility: " + level)}
		}
		contracts, err := avro.LoadContracts(files)
		require.NoError(t, err)
		_, err = r.RegisterContracts(t.Context(), contracts, func(string) string { return "accounts" })
		require.NoError(t, err)
	}
	holds := func(level avro.Level, own bool) {
		t.Helper()
		is, isOwn, err := r.Compatibility(t.Context(), "accounts-Opened")
		require.NoError(t, err)
		require.Equal(t, level, is)
		require.Equal(t, own, isOwn)
	}
	register("FULL")
	holds(avro.Level("FULL"), true)
	register("")
	holds(avro.BackwardTransitive, false)
	require.NoError(t, r.SetCompatibility(t.Context(), "accounts-Opened", avro.Level("FORWARD")))
	register("")
	holds(avro.Level("FORWARD"), true)
	register("FULL")
	holds(avro.Level("FULL"), true)
	register("")
	holds(avro.BackwardTransitive, false)
}

func TestAnySchemaIsCompatibleWithASubjectThatDoesNotExist(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(registry.New(devstack.MigratedDatabase(t)).Handler())
	t.Cleanup(server.Close)
	for version, want := range map[string]struct {
		status int
		body   string
	}{
		"/versions":                     {200, `{"is_compatible": true}`},
		"/versions?verbose=true":        {200, `{"is_compatible": true, "messages": []}`},
		"/versions/latest":              {200, `{"is_compatible": true}`},
		"/versions/latest?verbose=true": {200, `{"is_compatible": true, "messages": []}`},
		"/versions/1":                   {404, `{"error_code": 40401, "message": "Subject not found."}`},
	} {
		body, err := json.Marshal(map[string]string{"schema": v1})
		require.NoError(t, err)
		answer, err := http.Post(server.URL+"/compatibility/subjects/nobody"+version, "application/json", bytes.NewReader(body)) //nolint:noctx // it is a test's own server
		require.NoError(t, err)
		got, err := io.ReadAll(answer.Body)
		require.NoError(t, errors.Join(err, answer.Body.Close()))
		require.Equal(t, want.status, answer.StatusCode, version)
		require.JSONEq(t, want.body, string(got), version)
	}
}

func TestRacingRegistrationsMakeDenseVersions(t *testing.T) {
	t.Parallel()
	client := setup(t)
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			text := fmt.Sprintf(`{"type":"record","name":"R","fields":[{"name":"f%d","type":"int","default":0}]}`, i/2)
			_, err := client.RegisterSchema(context.WithoutCancel(t.Context()), "s", avroSchema(text), -1, -1)
			if err != nil {
				t.Errorf("registering: %v", err)
			}
		})
	}
	all.Wait()
	versions, err := client.SubjectVersions(t.Context(), "s")
	require.NoError(t, err)
	require.Equal(t, []int{1, 2, 3, 4, 5, 6, 7, 8}, versions)
}
