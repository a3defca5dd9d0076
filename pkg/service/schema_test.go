package service

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/sr"
	"github.com/twmb/franz-go/pkg/sr/srfake"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/schemas"
	"github.com/refoldhq/refold/schemas/user"
)

// `writer schema go --check` passes on what the command wrote, and on nothing else.
func TestSchemaGoChecksWhatItWrote(t *testing.T) {
	t.Parallel()
	s := &Settings{contracts: schemas.FS}
	file := filepath.Join(t.TempDir(), "events.go")
	check := goCommand{Package: "events", Out: file, Check: true}
	require.ErrorIs(t, check.Run(s), os.ErrNotExist)
	write := goCommand{Package: "events", Out: file}
	require.NoError(t, write.Run(s))
	require.NoError(t, check.Run(s))

	stale, err := os.ReadFile(file)
	require.NoError(t, err)
	stale = append(stale, "\n"...)
	require.NoError(t, os.WriteFile(file, stale, 0o600))
	require.ErrorContains(t, check.Run(s), file+" is not what the schemas make")
	after, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, stale, after, "a check writes nothing")
}

// `writer schema from-go` writes what is missing and no more, and takes back what
// does not fit the versions before; `schema golden` makes what then must not change.
func TestSchemasComeFromGoAndStayAsTheyWere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := &Settings{Schemas: dir}
	types := []aggregate.Type{user.Define()}
	fromGo, golden := &fromGoCommand{}, &goldenCommand{}
	folder := filepath.Join(dir, "events", "User")
	files := func() []string {
		list, err := filepath.Glob(filepath.Join(folder, "*.avsc"))
		require.NoError(t, err)
		return list
	}
	require.NoError(t, fromGo.Run(s, types))
	require.Len(t, files(), len(user.Define().Events()))
	contracts, err := s.Contracts()
	require.NoError(t, err)
	category, _ := contracts.Category("User")
	created, _ := category.Type("UserCreated")
	require.NoError(t, created.Newest().Fits(user.Define().Events()["UserCreated"]))
	require.NoError(t, fromGo.Run(s, types))
	require.Len(t, files(), len(user.Define().Events()), "nothing has changed")

	// The struct has a field more than the schema, and events without it have no value for it.
	first := filepath.Join(folder, "UserEmailChanged.v1.avsc")
	require.NoError(t, os.WriteFile(first, []byte(`{"type":"record","name":"UserEmailChanged","fields":[]}`), 0o600))
	require.ErrorContains(t, fromGo.Run(s, types), "newEmail")
	require.NoFileExists(t, filepath.Join(folder, "UserEmailChanged.v2.avsc"))

	// It has a field less, which is a version that reads the one before.
	require.NoError(t, os.WriteFile(first, []byte(`{"type":"record","name":"UserEmailChanged","fields":[{"name":"newEmail","type":"string"},{"name":"why","type":"string"}]}`), 0o600))
	require.NoError(t, fromGo.Run(s, types))
	require.FileExists(t, filepath.Join(folder, "UserEmailChanged.v2.avsc"))

	require.NoError(t, golden.Run(s))
	check := func() error {
		contracts, err := s.Contracts()
		require.NoError(t, err)
		_, err = contracts.CheckGolden(os.DirFS(dir))
		return err
	}
	require.NoError(t, check())
	require.NoError(t, os.WriteFile(first, []byte(`{"type":"record","name":"UserEmailChanged","fields":[{"name":"newEmail","type":"string"},{"name":"reason","type":"string"}]}`), 0o600))
	require.ErrorContains(t, check(), "UserEmailChanged.v1", "a version that was shipped does not change")
}

// `writer schema pull` takes the events of a category from an external registry,
// writes what is missing, and nothing where a version has changed.
func TestSchemasArePulledFromTheExternalRegistry(t *testing.T) {
	t.Parallel()
	kept := registry.New(devstack.MigratedDatabase(t))
	server := httptest.NewServer(kept.Handler())
	t.Cleanup(server.Close)
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	_, err = kept.RegisterContracts(t.Context(), contracts, func(category string) string { return kafka.TopicName("refold", category) })
	require.NoError(t, err)
	other, err := avro.Parse([]byte(`{"type":"record","name":"Other","fields":[]}`))
	require.NoError(t, err)
	for _, subject := range []string{"refold.users-Other", "refold.user-value", "refold.us-Other"} {
		_, err = kept.Register(t.Context(), subject, other)
		require.NoError(t, err)
	}

	dir := t.TempDir()
	settings := func(prefix string) *Settings {
		s := &Settings{Prefix: prefix, Schemas: dir, SchemaRegistry: SchemaRegistry{URL: []string{server.URL}}}
		require.NoError(t, s.loadRegistry())
		return s
	}
	s, pull := settings("refold"), pullCommand{Categories: []string{"User"}}
	require.NoError(t, pull.Run(t.Context(), s))
	pulled, err := s.Contracts()
	require.NoError(t, err)
	want, _ := contracts.Category("User")
	got, _ := pulled.Category("User")
	require.Len(t, got.Types, len(want.Types))
	for i, typ := range want.Types {
		require.Equal(t, typ.Name, got.Types[i].Name)
		require.Len(t, got.Types[i].Versions, len(typ.Versions))
		require.Equal(t, typ.Newest().Fingerprint(), got.Types[i].Newest().Fingerprint())
	}
	require.NoError(t, pull.Run(t.Context(), s), "all is there")

	file := filepath.Join(dir, "events", "User", "UserDeleted.v1.avsc")
	require.NoError(t, os.WriteFile(file, []byte(`{"type":"record","name":"UserDeleted","fields":[{"name":"why","type":"string"}]}`), 0o600))
	require.NoError(t, os.Remove(filepath.Join(dir, "events", "User", "UserCreated.v1.avsc")))
	require.ErrorContains(t, pull.Run(t.Context(), s), "events/User/UserDeleted.v1.avsc is another schema")
	require.NoFileExists(t, filepath.Join(dir, "events", "User", "UserCreated.v1.avsc"), "nothing is written")

	require.ErrorContains(t, pull.Run(t.Context(), settings("another")), "no subject another.user-<event>")
	require.ErrorContains(t, pull.Run(t.Context(), &Settings{Schemas: dir}), "SCHEMA_REGISTRY_URL")
	server.Close()
	err = pull.Run(t.Context(), s)
	require.ErrorIs(t, err, registry.ErrUnavailable)
	require.Contains(t, explain(err).Next, "SCHEMA_REGISTRY_URL")
}

// What the registry has is taken as the contracts were that it was made of, or
// refused; nothing stays that a later pull would stumble over.
func TestWhatCannotBePulledIsRefused(t *testing.T) {
	t.Parallel()
	of := func(full, field string) sr.Schema {
		return sr.Schema{Schema: `{"type":"record","name":"` + full + `","fields":[{"name":"` + field + `","type":"string"}]}`}
	}
	type version struct {
		subject string
		version int
		schema  sr.Schema
	}
	created := version{"refold.user-UserCreated", 1, of("UserCreated", "a")}
	for what, test := range map[string]struct {
		registered []version
		want       string // of the error; "" for none
		files      []string
	}{
		"subjects of other topics": {registered: []version{created, {"refold.user-audit-value", 1, of("Audit", "a")}, {"refold.user-audit-Other", 1, sr.Schema{Schema: `syntax = "proto3";`, Type: sr.TypeProtobuf}}},
			files: []string{"UserCreated.v1.avsc"}},
		"a type that was renamed": {registered: []version{{"refold.user-UserBorn", 1, of("UserBorn", "a")},
			{"refold.user-UserCreated", 1, sr.Schema{Schema: `{"type":"record","name":"UserCreated","aliases":["UserBorn"],"fields":[{"name":"a","type":"string"}]}`}}},
			files: []string{"UserBorn.v1.avsc", "UserCreated.v2.avsc"}},
		"two of one name":              {registered: []version{{"refold.user-a.UserCreated", 1, of("a.UserCreated", "a")}, {"refold.user-b.UserCreated", 1, of("b.UserCreated", "a")}}, want: "events of one name"},
		"another record":               {registered: []version{{"refold.user-UserCreated", 1, of("Other", "a")}}, want: "is a record named Other"},
		"a version that was deleted":   {registered: []version{{"refold.user-UserCreated", 2, of("UserCreated", "a")}}, want: "and none 1"},
		"versions that do not fit":     {registered: []version{created, {"refold.user-UserCreated", 2, of("UserCreated", "another")}}, want: "nothing of it was kept"},
		"an event that is not of Avro": {registered: []version{{"refold.user-UserCreated", 1, sr.Schema{Schema: `syntax = "proto3";`, Type: sr.TypeProtobuf}}}, want: "not Avro"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			fake := srfake.New()
			t.Cleanup(fake.Close)
			for i, v := range test.registered {
				fake.SeedSchema(v.subject, v.version, i+1, v.schema)
			}
			s := &Settings{Prefix: "refold", Schemas: t.TempDir(), SchemaRegistry: SchemaRegistry{URL: []string{fake.URL()}}}
			require.NoError(t, s.loadRegistry())
			err := (&pullCommand{Categories: []string{"User"}}).Run(t.Context(), s)
			if test.want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, test.want)
			}
			files, err := filepath.Glob(filepath.Join(s.Schemas, "events", "User", "*"))
			require.NoError(t, err)
			for i := range files {
				files[i] = filepath.Base(files[i])
			}
			require.Equal(t, test.files, files)
			if test.want != "" {
				return
			}
			contracts, err := s.Contracts()
			require.NoError(t, err)
			category, _ := contracts.Category("User")
			require.Len(t, category.Types, 1)
			require.Len(t, category.Types[0].Versions, len(files))
		})
	}
}
