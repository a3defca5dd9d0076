package refoldtest_test

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/refoldtest"
	"github.com/refoldhq/refold/schemas"
	"github.com/refoldhq/refold/schemas/user"
)

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	failure string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatal(args ...any) { r.failure = fmt.Sprint(args...); panic(r) }

func (r *recorder) Fatalf(format string, args ...any) { r.Fatal(fmt.Sprintf(format, args...)) }

// failureOf returns how a test fails; "" if it does not.
func failureOf(test func(t testing.TB)) (failure string) {
	r := &recorder{}
	defer func() {
		if p := recover(); p != nil && p != any(r) {
			panic(p)
		}
		failure = r.failure
	}()
	test(r)
	return ""
}

var created = user.UserCreated{ID: "1", Email: "a@example.com", IsActive: true}

func TestCommandsThatDoSomethingElseFailWithADiff(t *testing.T) {
	accounts := refoldtest.NewAggregate(t, schemas.FS, user.Define())
	activate := (*user.Account).Activate
	failure := failureOf(func(t testing.TB) { accounts.Given(t).When(activate).Then(user.UserLocked{}, user.UserActivated{}) })
	require.Equal(t, "other events than expected:\n  - UserLocked {}\n    UserActivated {}\n", failure)
	failure = failureOf(func(t testing.TB) { accounts.Given(t, created).When(activate).Then(user.UserActivated{}) })
	require.Equal(t, "other events than expected:\n  - UserActivated {}\n", failure)
	failure = failureOf(func(t testing.TB) { accounts.Given(t).When(activate).ThenNothing() })
	require.Contains(t, failure, "  + UserActivated {}")
	failure = failureOf(func(t testing.TB) { accounts.Given(t).When(activate).ThenFails(user.ErrLocked) })
	require.Contains(t, failure, "expected the error the account is locked")
	failure = failureOf(func(t testing.TB) {
		accounts.Given(t, created, user.UserDeleted{}).When(activate).ThenFails(user.ErrLocked)
	})
	require.Contains(t, failure, "got the account is deleted")
	failure = failureOf(func(t testing.TB) { accounts.Given(t, created).When(activate).ThenHolds() })
	require.Contains(t, failure, "  + user.email a@example.com")
	failure = failureOf(func(t testing.TB) { accounts.Given(t, created).ThenNothing() })
	require.Contains(t, failure, "there is no When")
}

func TestACommandThatWritesIntoTheAggregateFails(t *testing.T) {
	accounts := refoldtest.NewAggregate(t, schemas.FS, user.Define())
	failure := failureOf(func(t testing.TB) {
		accounts.Given(t, created).When(func(a *user.Account) error {
			a.Locked = true
			return a.Delete()
		}).Then(user.UserDeleted{})
	})
	require.Contains(t, failure, "the command left the state")
}

func TestRowsThatDifferFailWithADiff(t *testing.T) {
	users := refoldtest.NewProjection(t, schemas.FS, "rm_users")
	given := []refoldtest.Event{{Stream: "42", Data: created}, {Stream: "42", Type: "UserEmailChanged", Data: `{"newEmail":"b@example.com"}`}, {Stream: "43", Data: created}}
	rows := users.Given(t, given...)
	rows.Expect("42", `{"email":"b@example.com", "logins": 0, "lastSeen": null}`).ExpectKeys("42", "43")
	failure := failureOf(func(t testing.TB) {
		users.Given(t, given...).Expect("42", `{"email":"a@example.com","id":"1","nope":1}`)
	})
	require.Equal(t, "rm_users 42 differs:\n  - email: \"a@example.com\"\n  + email: \"b@example.com\"\n    id: \"1\"\n  - nope: 1\n", failure)
	failure = failureOf(func(t testing.TB) { users.Given(t, given...).Expect("44", `{}`) })
	require.Contains(t, failure, `has no row 44; there are ["42" "43"]`)
	users.Given(t, given...).Expect("44", `null`)
	failure = failureOf(func(t testing.TB) { users.Given(t, given...).Expect("42", `null`) })
	require.Contains(t, failure, "rm_users has a row 42: {")
	failure = failureOf(func(t testing.TB) { users.Given(t, given...).ExpectKeys("42") })
	require.Contains(t, failure, "  + 43")
	for _, bad := range []refoldtest.Event{{Type: "Nope"}, {Type: "UserCreated", Data: `{}`}, {Type: "UserCreated", Data: 7}, {Stream: "a b", Data: created}, {Category: "Order", Data: created}} {
		require.NotEmpty(t, failureOf(func(t testing.TB) { users.Given(t, bad) }))
	}
}

func TestTheDemosTestsPass(t *testing.T) {
	suite, err := refoldtest.NewSuite(schemas.FS, nil, user.Define())
	require.NoError(t, err)
	outcomes, err := suite.Run()
	require.NoError(t, err)
	require.NotEmpty(t, outcomes)
	for _, o := range outcomes {
		require.Empty(t, o.Problem, o.Name)
	}
}

// withTests lays a file of tests beside the demo's contracts.
func withTests(t testing.TB, tests string) fs.FS {
	t.Helper()
	all := fstest.MapFS{"projections/x.test.yaml": {Data: []byte(tests)}}
	require.NoError(t, fs.WalkDir(schemas.FS, ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasSuffix(path, ".test.yaml") {
			raw, err := fs.ReadFile(schemas.FS, path)
			all[path] = &fstest.MapFile{Data: raw}
			return err
		}
		return err
	}))
	return all
}

func TestTestsInYAMLThatMustFail(t *testing.T) {
	const one = `given: [{type: UserCreated, data: {id: "1", email: a@example.com, isActive: true}}]` + "\n"
	for _, c := range []struct{ name, test, problem string }{
		{"another value", one + "expect: {rm_users: {'1': {email: b@example.com}}}", `- email: "b@example.com"`},
		{"a row too many", one + "expect: {rm_users: {}}", "  + 1"},
		{"a row too few", one + "expect: {rm_users: {'1': {}, '2': {}}}", "  - 2"},
		{"a row that must not be there", one + "expect: {rm_users: {'1': null}}", "  + 1"},
		{"nothing is checked", one + "expect: {}", "checks nothing"},
		{"no outcome of a command", one + "when: {command: delete}", `needs "then" or "error"`},
		{"two outcomes of a command", one + "when: {command: delete}\nthen: []\nerror: account-locked", "exclude each other"},
		{"an outcome of nothing", one + "then: []\nexpect: {rm_users: {'1': {}}}", `there is no "when"`},
		{"no projection", one + "expect: {nope: {}}", "there is no projection nope"},
		{"no event", "given: [{type: Nope}]\nexpect: {rm_users: {}}", `no event "Nope"`},
		{"data that does not fit", "given: [{type: UserCreated, data: {id: 1}}]\nexpect: {rm_users: {}}", "/id"},
		{"nothing to do", one, `neither "when" nor "expect"`},
		{"other events", one + "when: {command: delete}\nthen: [{type: UserLocked}]", "  - UserLocked {}"},
		{"an error that does not come", one + "when: {command: delete}\nerror: account-locked", "the command succeeded"},
		{"another error", one + "when: {command: create, data: {email: x@example.com}}\nerror: account-locked", "got aggregate-exists"},
		{"an unexpected error", "when: {command: delete}\nthen: []", "the command failed: there is no User 1"},
		{"no command", one + "when: {command: explode}\nthen: []", "no such command"},
		{"a body that does not fit", one + "when: {command: changeEmail, data: {email: 7}}\nthen: []", "/email"},
		{"no aggregate", one + "when: {category: Order, command: delete}\nthen: []", `category "Order" has no aggregate`},
	} {
		suite, err := refoldtest.NewSuite(withTests(t, "test: x\n"+c.test), nil, user.Define())
		require.NoError(t, err)
		outcomes, err := suite.Run()
		require.NoError(t, err, c.name)
		require.Len(t, outcomes, 1)
		require.Contains(t, outcomes[0].Problem, c.problem, c.name)
		require.Equal(t, 1, outcomes[0].Line)
	}
	for name, broken := range map[string]string{"unknown member": "test: x\nexpects: {}", "no YAML": "test: [", "another type": "test: x\ngiven: 7"} {
		suite, err := refoldtest.NewSuite(withTests(t, broken), nil)
		require.NoError(t, err)
		_, err = suite.Run()
		require.ErrorContains(t, err, "x.test.yaml", name)
	}
}

func TestARowThatIsNullMustNotExist(t *testing.T) {
	suite, err := refoldtest.NewSuite(withTests(t, "test: x\ngiven: [{type: UserCreated, data: {id: '1', email: a@example.com, isActive: true}}]\n"+
		"expect: {rm_users: {'1': {email: a@example.com}, '2': null}}"), nil)
	require.NoError(t, err)
	outcomes, err := suite.Run()
	require.NoError(t, err)
	require.Len(t, outcomes, 1)
	require.Empty(t, outcomes[0].Problem)
}

func TestOldEventsAreGivenInTheVersionThatTheyWereWrittenIn(t *testing.T) {
	t.Parallel()
	fsys := fstest.MapFS{
		"events/Door/Opened.v1.avsc":       {Data: []byte(`{"type":"record","name":"Opened","fields":[{"name":"by","type":"string"}]}`)},
		"events/Door/Opened.v2.avsc":       {Data: []byte(`{"type":"record","name":"Opened","fields":[{"name":"first","type":"string"},{"name":"last","type":"string"}]}`)},
		"projections/doors.yaml":           {Data: []byte("projection: doors\ncategory: Door\nfields:\n  last: {from: [Opened]}\n")},
		"projections/doors.test.yaml":      {Data: []byte("test: old names are split\ngiven:\n  - {type: Opened, schemaVersion: 1, data: {by: Ada Lovelace}}\nexpect:\n  doors:\n    \"1\": {last: Lovelace}\n")},
		"projections/otherdoors.test.yaml": {Data: []byte("test: no such version\ngiven:\n  - {type: Opened, schemaVersion: 3}\nexpect: {}\n")},
	}
	type v1 struct {
		By string `avro:"by"`
	}
	type v2 struct {
		First string `avro:"first"`
		Last  string `avro:"last"`
	}
	split := avro.Upcast("Door", "Opened", 1, func(old v1) (v2, error) {
		first, last, _ := strings.Cut(old.By, " ")
		return v2{first, last}, nil
	})
	doors := refoldtest.NewProjection(t, fsys, "doors", split)
	doors.Given(t, refoldtest.Event{Type: "Opened", SchemaVersion: 1, Data: v1{"Ada Lovelace"}}).Expect("1", `{"last": "Lovelace"}`)
	doors.Given(t, refoldtest.Event{Type: "Opened", Data: v2{"Ada", "Byron"}}).Expect("1", `{"last": "Byron"}`)

	suite, err := refoldtest.NewSuite(fsys, []avro.Upcaster{split})
	require.NoError(t, err)
	outcomes, err := suite.Run()
	require.NoError(t, err)
	require.Len(t, outcomes, 2)
	require.Empty(t, outcomes[0].Problem)
	require.Contains(t, outcomes[1].Problem, "no version 3")
}
