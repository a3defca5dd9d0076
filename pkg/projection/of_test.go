package projection_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/strictjson"
	"github.com/refoldhq/refold/schemas"
)

type account struct {
	ID     string `refold:"from=UserCreated"`
	Email  string `refold:"from=UserCreated|UserEmailChanged.newEmail" index:"unique"`
	Active bool   `refold:"from=UserCreated.isActive; set=UserActivated:true"`
	Logins int64  `refold:"count=UserLoggedIn"`
	Times  struct {
		Created time.Time  `refold:"from=UserCreated.$time"`
		Seen    *time.Time `refold:"max=UserLoggedIn.$time"`
	}
}

// A struct's tags and YAML that says the same make plans of one hash, and the
// definition that the catalogue keeps makes it again.
func TestStructsMakeThePlanOfTheirYAML(t *testing.T) {
	t.Parallel()
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	plan, err := projection.Compile(projection.Of[account]("accounts", projection.Category("User"), projection.RemoveOn("UserDeleted"), projection.Indexed("active", "logins")), contracts)
	require.NoError(t, err)
	same, err := userPlan(t, `
projection: accounts
category: User
fields:
  id: {from: UserCreated}
  email: {from: [UserEmailChanged.newEmail, UserCreated.email]}
  active: {from: UserCreated.isActive, set: {UserActivated: true}}
  logins: {count: UserLoggedIn}
  times: {fields: {created: {from: UserCreated.$time}, seen: {max: UserLoggedIn.$time}}}
remove: UserDeleted
indexes:
  - {fields: [email], unique: true}
  - {fields: [active, logins]}
`)
	require.NoError(t, err)
	require.Equal(t, same.Hash(), plan.Hash())
	require.Equal(t, projection.ChangeNone, projection.Diff(plan, same).Change)
	again, err := userPlan(t, plan.Source())
	require.NoError(t, err)
	require.Equal(t, plan.Hash(), again.Hash())
	row := plan.NewRow()
	require.NoError(t, do(t, plan, row, `UserCreated {"id": "42", "email": "a@b.c", "isActive": false, "name": "Ada"}`, "UserActivated", "UserLoggedIn"))
	require.Equal(t, `{"id": "42", "email": "a@b.c", "times": {"seen": "1970-01-01T00:16:42Z", "created": "1970-01-01T00:16:40Z"}, "active": true, "logins": 1}`, string(row.AppendData(nil)))
}

func TestMistakesInStructsNameTheField(t *testing.T) {
	t.Parallel()
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	user := projection.Category("User")
	for want, d := range map[string]*projection.Definition{
		"of_test.go:": projection.Of[struct {
			Email int64 `refold:"from=UserCreated"`
		}]("x", user),
		"the field Email is a int64: what feeds it is of the type string, which needs a string": projection.Of[struct {
			Email int64 `refold:"from=UserCreated"`
		}]("x", user),
		"the field Email has no refold tag": projection.Of[struct{ Email string }]("x", user),
		"did you mean UserCreated?": projection.Of[struct {
			Email string `refold:"from=UserCreatd"`
		}]("x", user),
		"want set=Event:constant": projection.Of[struct {
			Email string `refold:"set=UserCreated"`
		}]("x", user),
		"is no struct":                    projection.Of[int]("x", user),
		"no value of a row is a chan int": projection.Fold("x", 1, func(*struct{ C chan int }, *projection.Event) error { return nil }, user),
		"a revision is a whole number":    projection.Fold("x", 0, func(*struct{ N int }, *projection.Event) error { return nil }, user),
		"rows of one stream":              projection.Fold("x", 1, func(*struct{ N int }, *projection.Event) error { return nil }, user, projection.KeyConstant("all")),
	} {
		_, err := projection.Compile(d, contracts)
		require.ErrorContains(t, err, want)
	}
}

type tally struct {
	Events int64
	Last   string
	Names  []string         `json:"names"`
	Seen   map[string]int64 `json:"seen"`
	At     time.Time
	Inner  struct{ Deep *int } `json:"inner"`
}

func foldTally(s *tally, e *projection.Event) error {
	s.Events++
	s.Last, s.At = e.Type, e.Time.Std()
	switch e.Type {
	case "UserCreated":
		var d struct {
			ID       string `avro:"id"`
			Email    string `avro:"email"`
			IsActive bool   `avro:"isActive"`
			Name     string `avro:"name"`
		}
		if err := e.Decode(&d); err != nil {
			return err
		}
		s.Names = append(s.Names, d.Name)
		if d.Name == "panic" {
			panic("no such name")
		}
		if d.Name == "bad" {
			s.Last = "\x00"
		}
	case "UserLoggedIn":
		if s.Seen == nil {
			s.Seen = map[string]int64{}
		}
		s.Seen["logins"]++
	case "UserLocked":
		s.Names = append(s.Names, "scribbled")
		return errors.New("locked accounts are refused")
	case "UserDeleted":
		return projection.Remove
	}
	return nil
}

// A fold in Go is the same whether rows stay in memory or are read back between
// any two events; what it refuses leaves the row as it was.
func TestFoldsInGo(t *testing.T) {
	t.Parallel()
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	definition := projection.Fold("tallies", 3, foldTally, projection.Category("User"))
	plan, err := projection.Compile(definition, contracts)
	require.NoError(t, err)
	require.NoError(t, plan.Foldable())
	row := plan.NewRow()
	created := func(name string) string {
		return fmt.Sprintf(`UserCreated {"id": "1", "email": "a@b.c", "isActive": true, "name": %q}`, name)
	}
	want := `{"at": "1970-01-01T00:16:41Z", "last": "UserLoggedIn", "seen": {"logins": 1}, "inner": {"Deep": null}, "names": ["Ada"], "events": 2}`
	require.NoError(t, do(t, plan, row, created("Ada"), "UserLoggedIn"))
	require.Equal(t, want, string(row.AppendData(nil)))
	loaded, err := plan.LoadRow(row.AppendData(nil), nil)
	require.NoError(t, err)
	for reason, step := range map[string]string{"locked accounts": "UserLocked", "panicked: no such name": created("panic"), "NUL": created("bad")} {
		var poison *projection.Poison
		require.ErrorAs(t, do(t, plan, loaded, step), &poison)
		require.Contains(t, poison.Reason, reason)
		require.Equal(t, want, string(loaded.AppendData(nil)))
	}
	require.NoError(t, do(t, plan, row, "UserLoggedIn"))
	require.NoError(t, do(t, plan, loaded, "UserLoggedIn"))
	require.Equal(t, string(row.AppendData(nil)), string(loaded.AppendData(nil)))
	require.NoError(t, do(t, plan, row, "UserDeleted"))
	require.False(t, row.Exists())
}

// The catalogue keeps the revision: a program that has it folds on, one that does
// not can show rows and says what is missing.
func TestRevisionsOfAFold(t *testing.T) {
	t.Parallel()
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	one, two := projection.Fold("tallies", 1, foldTally, projection.Category("User")), projection.Fold("tallies", 2, foldTally, projection.Category("User"))
	first, err := projection.Compile(one, contracts)
	require.NoError(t, err)
	second, err := projection.Compile(two, contracts)
	require.NoError(t, err)
	d := projection.Diff(first, second)
	require.Equal(t, projection.ChangeRebuild, d.Change)
	require.Contains(t, d.Parts[0].Detail, "revision 2, it was Go, revision 1")
	read := func(deployed ...*projection.Definition) *projection.Plan {
		list, err := projection.ParseDefinitions("catalogue", []byte(first.Source()))
		require.NoError(t, err)
		list[0].Bind(deployed)
		plan, err := projection.Compile(list[0], contracts)
		require.NoError(t, err)
		require.Equal(t, first.Hash(), plan.Hash())
		return plan
	}
	require.NoError(t, read(two, one).Foldable())
	require.ErrorIs(t, read(two).Foldable(), projection.ErrNoFold)
	require.Len(t, read().Fields(), 6)
}

func ExampleOf() {
	type User struct {
		ID     string `refold:"from=UserCreated"`
		Email  string `refold:"from=UserCreated|UserEmailChanged.newEmail" index:"unique"`
		Logins int64  `refold:"count=UserLoggedIn"`
	}
	users := projection.Of[User]("users", projection.Category("User"), projection.RemoveOn("UserDeleted"))

	contracts, err := avro.LoadContracts(schemas.FS)
	if err != nil {
		panic(err)
	}
	plan, err := projection.Compile(users, contracts)
	if err != nil {
		panic(err)
	}
	category, _ := contracts.Category("User")
	created, _ := category.Type("UserCreated")
	value, err := created.Newest().EncodeJSON(avro.AppendFrame(nil, 1), strictjson.NewReader([]byte(`{"id": "42", "email": "ada@example.com", "isActive": true}`)))
	if err != nil {
		panic(err)
	}
	folder, row := plan.NewFolder(), plan.NewRow()
	if _, err := folder.Begin(&event.Event{Category: "User", Stream: "42", Type: "UserCreated", Value: value, Seq: 1}, created.Newest()); err != nil {
		panic(err)
	}
	for key := range folder.Keys() {
		if err := folder.Apply(row); err != nil {
			panic(err)
		}
		fmt.Println(string(key), string(row.AppendData(nil)))
	}
	fmt.Print(strings.TrimSpace(plan.Source()))
	// Output:
	// 42 {"id": "42", "email": "ada@example.com", "logins": 0}
	// projection: users
	// category: ["User"]
	// fields:
	//   id: {from: ["UserCreated"]}
	//   email: {from: ["UserCreated", "UserEmailChanged.newEmail"]}
	//   logins: {count: ["UserLoggedIn"]}
	// remove: ["UserDeleted"]
	// indexes: [{fields: [email], unique: true}]
}

// Every way to key rows makes the plan of the same key in YAML.
func TestKeysOfStructsMakeThePlanOfTheirYAML(t *testing.T) {
	t.Parallel()
	contracts, err := avro.LoadContracts(orders)
	require.NoError(t, err)
	type counted struct {
		N int64 `refold:"count=Placed"`
	}
	for key, option := range map[string]projection.Option{
		"[customer, lines]": projection.Key("customer", "lines"),
		"customer":          projection.Key("customer"),
		"{from: [Placed.customer, Placed.address.city]}": projection.KeyFrom("Placed.customer", "Placed.address.city"),
		"{each: tags}":             projection.KeyEach("tags"),
		"{bucket: $time, by: day}": projection.KeyBucket("$time", "day"),
		"{constant: all}":          projection.KeyConstant("all"),
	} {
		plan, err := projection.Compile(projection.Of[counted]("n", projection.Category("Order"), option), contracts)
		require.NoError(t, err, key)
		same := compileText(t, contracts, "projection: n\ncategory: Order\nkey: "+key+"\nfields: {n: {count: Placed}}\n")
		require.Equal(t, same.Hash(), plan.Hash(), key)
	}
}
