package projection_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/strictjson"
	"github.com/refoldhq/refold/schemas"
)

const histories = "../../test/githistory"

func compileAll(t testing.TB, dir string) (map[string]*projection.Plan, *avro.Contracts) {
	t.Helper()
	contracts, err := avro.LoadContracts(os.DirFS(dir))
	require.NoError(t, err)
	definitions, err := projection.LoadDefinitions(os.DirFS(dir))
	require.NoError(t, err)
	plans := make(map[string]*projection.Plan)
	for _, d := range definitions {
		plan, err := projection.Compile(d, contracts)
		require.NoError(t, err)
		plans[d.Name] = plan
	}
	return plans, contracts
}

// change is one line of a history.
type change struct {
	Time                     int64
	Commit, Author, Path     string
	Change                   string
	LinesAdded, LinesDeleted int64
	Binary                   bool
}

func readEvents(t testing.TB, name string, contracts *avro.Contracts) (events []event.Event, changes []change) {
	t.Helper()
	f, err := os.Open(histories + "/data/git-history-" + name + ".ndjson.gz")
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	category, _ := contracts.Category("File")
	seqs, versions := make(map[int]int64), make(map[string]int64)
	for lines := bufio.NewScanner(z); lines.Scan(); {
		var c change
		require.NoError(t, json.Unmarshal(lines.Bytes(), &c))
		typ, ok := category.Type(map[string]string{"added": "FileAdded", "modified": "FileModified", "deleted": "FileDeleted"}[c.Change])
		require.True(t, ok)
		data, err := json.Marshal(map[string]any{"path": c.Path, "commit": c.Commit, "author": c.Author, "linesAdded": c.LinesAdded, "linesDeleted": c.LinesDeleted, "binary": c.Binary})
		require.NoError(t, err)
		value, err := typ.Newest().EncodeJSON(avro.AppendFrame(nil, 1), strictjson.NewReader(data))
		require.NoError(t, err)
		slot := event.SlotOf(c.Path, 64)
		seqs[slot]++
		versions[c.Path]++
		at := event.TimeOf(time.Unix(c.Time, 0))
		events = append(events, event.Event{ID: event.NewID(), Category: "File", Stream: c.Path, Version: versions[c.Path], Slot: slot, Seq: seqs[slot], Type: typ.Name, Value: value, Time: at, Recorded: at})
		changes = append(changes, c)
	}
	return events, changes
}

// fold folds events into whole rows.
func fold(t testing.TB, plan *projection.Plan, contracts *avro.Contracts, events []event.Event) map[string]string {
	t.Helper()
	folder, rows := plan.NewFolder(), make(map[string]*projection.Row)
	for i := range events {
		contract, _ := contracts.Category(events[i].Category)
		typ, _ := contract.Type(events[i].Type)
		outcome, err := folder.Begin(&events[i], typ.Newest())
		require.NoError(t, err)
		if outcome == projection.Filtered {
			continue
		}
		key := string(folder.Key())
		if rows[key] == nil {
			rows[key] = plan.NewRow()
		}
		require.NoError(t, folder.Apply(rows[key]))
	}
	out := make(map[string]string)
	for key, row := range rows {
		if row.Exists() {
			out[key] = string(row.AppendData(nil))
		}
	}
	return out
}

func TestHistoriesFoldToWhatTheFileSays(t *testing.T) {
	t.Parallel()
	plans, contracts := compileAll(t, histories)
	for name, live := range map[string]int{"river": 412, "tailscale": 2815} {
		events, changes := readEvents(t, name, contracts)
		files := fold(t, plans["files"], contracts, events)
		require.Len(t, files, live)
		days, authors := fold(t, plans["days"], contracts, events), fold(t, plans["authors"], contracts, events)
		perDay, perAuthor := make(map[string][2]int), make(map[string]int)
		for _, c := range changes {
			day := time.Unix(c.Time, 0).UTC().Format(time.DateOnly)
			n := perDay[day]
			n[0]++
			if c.Change == "deleted" {
				n[1]++
			}
			perDay[day] = n
			perAuthor[c.Author]++
		}
		require.Len(t, days, len(perDay))
		for day, n := range perDay {
			require.JSONEq(t, fmt.Sprintf(`{"day": %q, "changes": %d, "deletions": %d}`, day, n[0], n[1]), days[day])
		}
		require.Len(t, authors, len(perAuthor))
		for author, n := range perAuthor {
			require.Contains(t, authors[author], fmt.Sprintf(`"changes": %d,`, n))
		}
	}
}

// Rows of many streams: however the events are split into parts, and in whatever
// order the parts are merged, the same bytes stand in the table.
func TestSharedRowsDoNotDependOnTheOrderOfPartitions(t *testing.T) {
	t.Parallel()
	plans, contracts := compileAll(t, histories)
	events, _ := readEvents(t, "river", contracts)
	pool := devstack.MigratedDatabase(t)
	ctx := context.Background()
	for _, name := range []string{"authors", "days"} {
		plan := plans[name]
		require.True(t, plan.Shared())
		var want map[string]string
		for round := range 4 {
			leaf := fmt.Sprintf("refold.leaf_%s_%d", name, round)
			_, err := pool.Exec(ctx, `create table `+leaf+` (like refold.projections including all, primary key (key))`)
			require.NoError(t, err)
			rnd := rand.New(rand.NewPCG(uint64(round), 7))
			for _, part := range split(events, 1+round*3, rnd) {
				merge(t, plan, contracts, part, func(keys, data, states []string) {
					_, err := pool.Exec(ctx, plan.MergeSQL(leaf), name, 1, keys, data, states)
					require.NoError(t, err)
				})
			}
			got := make(map[string]string)
			rows, err := pool.Query(ctx, `select key, data::text || coalesce(state::text, '') from `+leaf)
			require.NoError(t, err)
			for rows.Next() {
				var key, row string
				require.NoError(t, rows.Scan(&key, &row))
				got[key] = row
			}
			require.NoError(t, rows.Err())
			if want == nil {
				want = got
				whole := fold(t, plan, contracts, events)
				require.Len(t, got, len(whole))
			}
			require.Equal(t, want, got, "round %d", round)
		}
	}
}

// split deals the events to n partitions by slot and cuts each into batches; the
// batches of different partitions come in any order.
func split(events []event.Event, n int, rnd *rand.Rand) (parts [][]event.Event) {
	partitions := make([][]event.Event, n)
	for _, e := range events {
		partitions[e.Slot%n] = append(partitions[e.Slot%n], e)
	}
	for len(partitions) > 0 {
		i := rnd.IntN(len(partitions))
		size := min(len(partitions[i]), 1+rnd.IntN(900))
		parts = append(parts, partitions[i][:size])
		if partitions[i] = partitions[i][size:]; len(partitions[i]) == 0 {
			partitions = slices.Delete(partitions, i, i+1)
		}
	}
	return parts
}

func merge(t testing.TB, plan *projection.Plan, contracts *avro.Contracts, events []event.Event, write func(keys, data, states []string)) {
	t.Helper()
	folder, rows := plan.NewFolder(), make(map[string]*projection.Row)
	category, _ := contracts.Category("File")
	for i := range events {
		typ, _ := category.Type(events[i].Type)
		_, err := folder.Begin(&events[i], typ.Newest())
		require.NoError(t, err)
		key := string(folder.Key())
		if rows[key] == nil {
			rows[key] = plan.NewRow()
		}
		require.NoError(t, folder.Apply(rows[key]))
	}
	var keys, data, states []string
	for key := range rows {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		data, states = append(data, string(rows[key].AppendData(nil))), append(states, string(rows[key].AppendState(nil)))
	}
	write(keys, data, states)
}

func userPlan(t testing.TB, yaml string) (*projection.Plan, error) {
	t.Helper()
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	definitions, err := projection.ParseDefinitions("test.yaml", []byte(yaml))
	if err != nil {
		return nil, err
	}
	return projection.Compile(definitions[0], contracts)
}

func TestMistakesAreNamedWithTheirPlace(t *testing.T) {
	t.Parallel()
	head := "projection: x\ncategory: User\n"
	for name, c := range map[string]struct {
		yaml string
		line int
		want string
	}{
		"no YAML":          {"projection: [", 1, ""},
		"no name":          {"category: User\nfields: {id: {from: UserCreated}}", 1, "name is missing"},
		"bad name":         {"projection: X\ncategory: User\nfields: {id: {from: UserCreated}}", 1, "cannot name a projection"},
		"unknown category": {"projection: x\ncategory: Usr\nfields: {id: {from: UserCreated}}", 2, "did you mean User?"},
		"unknown member":   {head + "feilds: {}", 3, "did you mean fields?"},
		"unknown operator": {head + "fields:\n  id: {form: UserCreated}", 4, "did you mean from?"},
		"unknown event":    {head + "fields:\n  id: {from: UserCreatd}", 4, "did you mean UserCreated?"},
		"unknown field":    {head + "fields:\n  mail: {from: UserCreated.emial}", 4, "did you mean email?"},
		"reserved":         {head + "fields:\n  order: {count: UserCreated}", 4, "cannot name a field"},
		"types disagree":   {head + "fields:\n  a: {from: [UserCreated.email, UserCreated.isActive]}", 4, "is of the type boolean"},
		"add text":         {head + "fields:\n  a: {add: UserCreated.email}", 4, "needs a number"},
		"set another type": {head + "fields:\n  a: {from: UserCreated.isActive, set: {UserActivated: 1}}", 4, "no value of the type boolean"},
		"unknown index":    {head + "fields:\n  id: {from: UserCreated}\nindexes:\n  - {fields: [idd]}", 6, "did you mean id?"},
		"shared remove":    {head + "key: {constant: all}\nfields:\n  n: {count: UserCreated}\nremove: UserDeleted", 6, "several streams feed"},
		"shared mix":       {head + "key: {constant: all}\nfields:\n  n: {count: UserCreated, set: {UserDeleted: 0}}", 5, "cannot be combined"},
		"shared initial":   {head + "key: {constant: all}\nfields:\n  n: {count: UserCreated, initial: 5}", 5, "initial is not possible"},
		"key not in event": {head + "key: email\nfields:\n  n: {count: [UserCreated, UserLocked]}", 3, "has no field email"},
		"duplicate field":  {head + "fields:\n  n: {count: UserCreated}\n  n: {count: UserLocked}", 5, ""},
		"nothing":          {head + "fields:\n  n: {}", 4, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := userPlan(t, c.yaml)
			var at *projection.SourceError
			require.ErrorAs(t, err, &at)
			require.Contains(t, at.Msg, c.want)
			require.Equal(t, c.line, at.Line, "%v", err)
			require.Contains(t, at.Excerpt, "^")
		})
	}
}

// do folds events of the user domain, each "Type" or "Type {json}".
func do(t *testing.T, plan *projection.Plan, row *projection.Row, steps ...string) error {
	t.Helper()
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	category, _ := contracts.Category("User")
	folder := plan.NewFolder()
	for i, step := range steps {
		name, data, _ := strings.Cut(step, " ")
		if data == "" {
			data = "{}"
		}
		typ, ok := category.Type(name)
		require.True(t, ok, name)
		value, err := typ.Newest().EncodeJSON(avro.AppendFrame(nil, 1), strictjson.NewReader([]byte(data)))
		require.NoError(t, err)
		at := event.TimeOf(time.Unix(int64(1000+i), 0))
		e := event.Event{Category: "User", Stream: "42", Version: int64(i + 1), Seq: int64(i + 1), Type: name, Value: value, Time: at, Recorded: at}
		outcome, err := folder.Begin(&e, typ.Newest())
		if err != nil {
			return err
		}
		if outcome == projection.Applies {
			if err := folder.Apply(row); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestOperatorsOnRowsOfOneStream(t *testing.T) {
	t.Parallel()
	definitions, err := projection.LoadDefinitions(schemas.FS)
	require.NoError(t, err)
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	plan, err := projection.Compile(definitions[0], contracts)
	require.NoError(t, err)
	row := plan.NewRow()
	created := `UserCreated {"id": "42", "email": "a@b.c", "isActive": false, "name": "Ada"}`
	require.NoError(t, do(t, plan, row, created, "UserLoginFailed", "UserLoginFailed", "UserEmailVerified", "UserActivated", "UserLoggedIn", "UserLoginFailed"))
	require.JSONEq(t, `{"id": "42", "email": "a@b.c", "emailVerified": true, "name": "Ada", "active": true, "locked": false, "logins": 1, "failures": 1,
		"createdAt": "1970-01-01T00:16:40Z", "lastSeen": "1970-01-01T00:16:45Z"}`, string(row.AppendData(nil)))
	loaded, err := plan.LoadRow(row.AppendData(nil), nil)
	require.NoError(t, err)
	require.Equal(t, string(row.AppendData(nil)), string(loaded.AppendData(nil)))
	require.NoError(t, do(t, plan, row, "UserDeleted"))
	require.False(t, row.Exists())
}

func TestPoisonLeavesTheRowAsItWas(t *testing.T) {
	t.Parallel()
	plan, err := userPlan(t, "projection: x\ncategory: User\nfields:\n  n: {count: UserCreated}\n  email: {from: [UserCreated]}\nindexes:\n  - {fields: [email]}")
	require.NoError(t, err)
	row := plan.NewRow()
	create := func(email string) string {
		return fmt.Sprintf(`UserCreated {"id": "1", "isActive": true, "email": %q}`, email)
	}
	require.NoError(t, do(t, plan, row, create("a")))
	before := string(row.AppendData(nil))
	var bad *projection.Poison
	require.ErrorAs(t, do(t, plan, row, create(strings.Repeat("x", 2001))), &bad)
	require.Equal(t, before, string(row.AppendData(nil)))
	require.NoError(t, do(t, plan, row, create(strings.Repeat("x", 2000))))
}

func TestHashKnowsWhatMatters(t *testing.T) {
	t.Parallel()
	hash := func(fields string) string {
		plan, err := userPlan(t, "projection: x\ncategory: User\nfields:\n"+fields)
		require.NoError(t, err)
		return plan.Hash()
	}
	require.Equal(t, hash("  n: {count: UserCreated}"), hash("  # a comment\n  n:\n    count: [UserCreated]"))
	require.NotEqual(t, hash("  n: {count: UserCreated}"), hash("  n: {count: UserDeleted}"))
	require.NotEqual(t, hash("  n: {count: UserCreated}"), hash("  m: {count: UserCreated}"))
}

func FuzzParseDefinitions(f *testing.F) {
	f.Add("projection: x\ncategory: User\nfields:\n  n: {count: UserCreated}")
	f.Add("projection: x\ncategory: [A, B]\nkey: {bucket: $time, by: day}\nfields: {a: {set: {B: null}}}\n---\nindexes: [{fields: a}]")
	f.Add("projection: users\ncategory: User\nfields:\n  id: {from: [UserCreated]}\n  email: {from: [UserCreated, UserEmailChanged.newEmail], transform: [trim, lower]}\n  seen: {max: \"*.$time\"}\nremove: [UserDeleted]\nindexes:\n  - {fields: [email], unique: true}")
	contracts, err := avro.LoadContracts(schemas.FS) // with types, so that what parses is compiled too
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, src string) {
		list, err := projection.ParseDefinitions("f.yaml", []byte(src))
		if err != nil {
			return
		}
		for _, d := range list {
			plan, err := projection.Compile(d, contracts)
			if err != nil {
				continue
			}
			again, err := projection.Compile(d, contracts)
			require.NoError(t, err)
			require.Equal(t, plan.Hash(), again.Hash())
		}
	})
}

func BenchmarkFold(b *testing.B) {
	plans, contracts := compileAll(b, histories)
	events, _ := readEvents(b, "river", contracts)
	category, _ := contracts.Category("File")
	for _, name := range []string{"files", "authors"} {
		b.Run(name, func(b *testing.B) {
			plan := plans[name]
			folder, rows := plan.NewFolder(), make(map[string]*projection.Row)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				e := &events[i%len(events)]
				i++
				typ, _ := category.Type(e.Type)
				folder.Begin(e, typ.Newest())
				row := rows[string(folder.Key())]
				if row == nil {
					row = plan.NewRow()
					rows[string(folder.Key())] = row
				}
				folder.Apply(row)
			}
		})
	}
}

// What a row costs that is read back and written: between batches, where the cache
// does not have it.
func BenchmarkReload(b *testing.B) {
	plans, contracts := compileAll(b, histories)
	events, _ := readEvents(b, "river", contracts)
	plan := plans["files"]
	var texts [][]byte
	for _, text := range fold(b, plan, contracts, events) {
		texts = append(texts, []byte(text))
	}
	b.ReportAllocs()
	var out []byte
	i := 0
	for b.Loop() {
		row, err := plan.LoadRow(texts[i%len(texts)], nil)
		if err != nil {
			b.Fatal(err)
		}
		out = row.AppendData(out[:0])
		i++
	}
}

// FuzzLoadRow: what the database gives back, whatever it is, makes a row or an
// error; a row that is read is written as it is read again.
func FuzzLoadRow(f *testing.F) {
	plans, _ := compileAll(f, histories)
	f.Add([]byte(`{"path": "a", "changes": 1, "linesAdded": 2, "lastAuthor": "\"x\"", "lastChange": "2026-01-31T00:00:00Z", "linesDeleted": 0}`))
	f.Add([]byte(`{"path":null,"changes":99999999999999999999}`))
	f.Add([]byte(`{"path": "a`))
	f.Fuzz(func(t *testing.T, data []byte) {
		row, err := plans["files"].LoadRow(data, nil)
		if err != nil {
			return
		}
		once := row.AppendData(nil)
		again, err := plans["files"].LoadRow(once, nil)
		require.NoError(t, err)
		require.Equal(t, string(once), string(again.AppendData(nil)))
	})
}
