package aggregate_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/schemas"
	"github.com/refoldhq/refold/schemas/user"
)

type hidden struct {
	aggregate.Root
	secret string
}

type left struct {
	aggregate.Root
	Out int `json:"-"`
}

type live struct {
	aggregate.Root
	Nested struct{ Callback func() }
}

type rich struct {
	aggregate.Root
	At    time.Time
	Tags  map[string][]int
	Inner struct{ Next *int64 }
}

type misspelt struct {
	Mail string `avro:"newMail"`
}

func (misspelt) Apply(*rich) {}

type wrongType struct {
	NewEmail int `avro:"newEmail"`
}

func (wrongType) Apply(*rich) {}

type tooMuch struct {
	NewEmail string `avro:"newEmail"`
	Reason   string `avro:"reason"`
}

func (tooMuch) Apply(*rich) {}

type untagged struct{ NewEmail string }

func (untagged) Apply(*rich) {}

type UserUnknown struct{}

func (UserUnknown) Apply(*rich) {}

func TestDefinitionsAreCheckedAtTheStart(t *testing.T) {
	t.Parallel()
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	ids := aggregate.LocalIDs(contracts)
	rest := []string{"UserCreated", "UserActivated", "UserEmailVerified", "UserLoggedIn", "UserLoginFailed", "UserLocked", "UserDeleted"}
	check := func(define func(d *aggregate.Definition[rich])) error {
		d := aggregate.Define[rich]("User")
		d.Ignore(rest...)
		define(d)
		_, err := aggregate.NewCodec(d, contracts, ids)
		return err
	}
	require.NoError(t, check(func(d *aggregate.Definition[rich]) { d.Ignore("UserEmailChanged") }))
	for want, define := range map[string]func(d *aggregate.Definition[rich]){
		"event UserEmailChanged is neither bound nor ignored": func(*aggregate.Definition[rich]) {},
		"want events/User/UserUnknown.v1.avsc":                func(d *aggregate.Definition[rich]) { aggregate.On[UserUnknown](d) },
		"UserNope is ignored, and the category has no such":   func(d *aggregate.Definition[rich]) { d.Ignore("UserNope") },
		"has no field with the tag `avro:\"newEmail\"`":       func(d *aggregate.Definition[rich]) { aggregate.OnNamed[misspelt](d, "UserEmailChanged") },
		"does not fit the schema of UserEmailChanged":         func(d *aggregate.Definition[rich]) { aggregate.OnNamed[wrongType](d, "UserEmailChanged") },
		"the schema has no field reason":                      func(d *aggregate.Definition[rich]) { aggregate.OnNamed[tooMuch](d, "UserEmailChanged") },
		"the field NewEmail has no `avro` tag":                func(d *aggregate.Definition[rich]) { aggregate.OnNamed[untagged](d, "UserEmailChanged") },
		"event UserLocked is bound and ignored": func(d *aggregate.Definition[rich]) {
			d.Ignore("UserEmailChanged")
			aggregate.OnNamed[UserUnknown](d, "UserLocked")
		},
		"it is bound to": func(d *aggregate.Definition[rich]) {
			aggregate.OnNamed[misspelt](d, "UserEmailChanged")
			aggregate.OnNamed[tooMuch](d, "UserEmailChanged")
		},
		"two commands are named go": func(d *aggregate.Definition[rich]) {
			aggregate.Command(d, "go", func(*rich, struct{}) error { return nil })
			aggregate.Creates(d, "go", func(*rich, struct{}) error { return nil })
		},
		`"Go" cannot name a command`: func(d *aggregate.Definition[rich]) {
			aggregate.Command(d, "Go", func(*rich, struct{}) error { return nil })
		},
		"command go: int is no struct": func(d *aggregate.Definition[rich]) {
			aggregate.Command(d, "go", func(*rich, int) error { return nil })
		},
		"command go: field C: the type chan int": func(d *aggregate.Definition[rich]) {
			aggregate.Command(d, "go", func(*rich, struct{ C chan int }) error { return nil })
		},
	} {
		require.ErrorContains(t, check(define), want)
	}
	_, err = aggregate.NewCodec(aggregate.Define[hidden]("User"), contracts, ids)
	require.ErrorContains(t, err, "the field secret is not in the state's JSON")
	_, err = aggregate.NewCodec(aggregate.Define[left]("User"), contracts, ids)
	require.ErrorContains(t, err, "the field Out is not in the state's JSON")
	_, err = aggregate.NewCodec(aggregate.Define[live]("User"), contracts, ids)
	require.ErrorContains(t, err, "the field Nested.Callback has the type func()")
	_, err = aggregate.NewCodec(aggregate.Define[rich]("Nope"), contracts, ids)
	require.ErrorContains(t, err, "the contracts have no category Nope")
	require.Empty(t, hidden{}.secret)
}

func TestCommandsAreDescribedByJSONSchemas(t *testing.T) {
	t.Parallel()
	d := aggregate.Define[rich]("User")
	type input struct {
		Name  string            `json:"name"`
		Count int64             `json:"count,omitempty"`
		At    *time.Time        `json:"at"`
		Tags  []string          `json:"tags,omitempty"`
		Extra map[string]uint16 `json:"extra,omitempty"`
	}
	aggregate.Command(d, "go", func(*rich, input) error { return nil })
	_, _, err := d.Decode("go", []byte(`{"name":"x","extra":{"a":70000}}`))
	require.ErrorContains(t, err, "/extra/a")
	_, _, err = d.Decode("stop", nil)
	require.ErrorIs(t, err, aggregate.ErrUnknownCommand)
	rt, err := aggregate.NewRuntime(aggregate.Config{}, setup(t).forAnother(), user.Define())
	require.NoError(t, err)
	commands := rt.Commands()
	require.Len(t, commands, 6)
	require.Equal(t, "activate", commands[0].Name)
	require.True(t, commands[2].Creates)
	var schema map[string]any
	require.NoError(t, json.Unmarshal(commands[2].Schema, &schema))
	require.Equal(t, map[string]any{"type": "object", "additionalProperties": false, "required": []any{"email"},
		"properties": map[string]any{"email": map[string]any{"type": "string"}, "name": map[string]any{"type": "string"}}}, schema)
}

func TestDiffs(t *testing.T) {
	t.Parallel()
	changes, err := aggregate.Diff([]byte(`{"a":1,"b":{"c":[1,2,3],"d":null},"e/f":"x","big":12345678901234567890}`),
		[]byte(`{"a":1,"b":{"c":[1,4],"d":0},"g":true,"big":12345678901234567891}`))
	require.NoError(t, err)
	got, err := json.Marshal(changes)
	require.NoError(t, err)
	require.JSONEq(t, `[{"path":"/b/c/1","from":2,"to":4},{"path":"/b/c/2","from":3},{"path":"/b/d","from":null,"to":0},
		{"path":"/big","from":12345678901234567890,"to":12345678901234567891},{"path":"/e~1f","from":"x"},{"path":"/g","to":true}]`, string(got))
}
