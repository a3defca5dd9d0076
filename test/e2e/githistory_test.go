// Package e2e_test runs refold as its users do: programs as processes, a real
// Postgres, a real Kafka, real histories, and an oracle that shares no code
// with refold.
package e2e_test

import (
	"bytes"
	"context"
	"hash/fnv"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/test/platform"
)

var histories = []struct {
	name string
	live int // paths that live after the last event, by data/README.md
}{{"river", 412}, {"tailscale", 2815}}

var keyFields = map[string]string{"files": "path", "authors": "author", "days": "day"}

func contracts() string { return filepath.Join(platform.Root(), "test", "githistory") }

func newStack(t *testing.T) *platform.Stack {
	stack := platform.New(t, devstack.Database(t), devstack.RealKafka(t))
	stack.Schemas = contracts()
	return stack
}

func TestHistoriesThroughSeparatePrograms(t *testing.T) {
	for _, h := range histories {
		t.Run(h.name, func(t *testing.T) {
			stack := newStack(t)
			writer := platform.NewClient(t, stack.Writer().URL())
			stack.Projector()
			queries := platform.NewClient(t, stack.Queries().URL())

			changes := readHistory(t, h.name)
			token := importHistory(t, writer, changes)

			want := oracle(t, changes)
			require.Len(t, want["files"], h.live)
			requireRows(t, want, queries, token)
			requireVerified(t, stack)
		})
	}
}

func TestHistoriesThroughWriterDev(t *testing.T) {
	for _, h := range histories {
		t.Run(h.name, func(t *testing.T) {
			stack := platform.New(t, "", nil)
			stack.Schemas = contracts()
			dev := platform.NewClient(t, stack.Dev().URL())

			changes := readHistory(t, h.name)
			token := importHistory(t, dev, changes)

			want := oracle(t, changes)
			require.Len(t, want["files"], h.live)
			requireRows(t, want, dev, token)
		})
	}
}

// The same history once through one writer and one projector, and once through
// two writers while projectors join and leave: the same rows, byte for byte.
func TestRowsDoNotDependOnWhoWritesThem(t *testing.T) {
	for _, h := range histories {
		t.Run(h.name, func(t *testing.T) {
			stack := newStack(t)
			writers := []*platform.Client{platform.NewClient(t, stack.Writer().URL()), platform.NewClient(t, stack.Writer().URL())}
			first := stack.Projector()
			queries := platform.NewClient(t, stack.Queries().URL())

			changes := readHistory(t, h.name)
			halves := splitByStream(changes, len(writers))
			tokens := make([]string, len(writers))
			var importing, moving sync.WaitGroup
			for i, half := range halves {
				importing.Go(func() { tokens[i] = importHistory(t, writers[i], half) })
			}
			imported := make(chan struct{})
			moving.Go(func() { joinAndLeave(stack, first, imported) })
			importing.Wait()
			close(imported)
			moving.Wait()
			require.False(t, t.Failed())

			requireRows(t, oracle(t, changes), queries, tokens[0]+","+tokens[1])
			requireVerified(t, stack)

			alone := newStack(t)
			client := platform.NewClient(t, alone.Writer().URL())
			alone.Projector()
			token := importHistory(t, client, changes)
			requireRows(t, oracle(t, changes), platform.NewClient(t, alone.Queries().URL()), token)
			for _, name := range []string{"files", "days"} { // authors hold paths chosen by seq, which two writers assign in another order
				require.Equal(t, storedRows(t, alone, name), storedRows(t, stack, name))
			}
		})
	}
}

// joinAndLeave keeps starting a second projector and stopping the older one,
// by turns gracefully and by kill -9, until done is closed.
func joinAndLeave(stack *platform.Stack, older *platform.Program, done chan struct{}) {
	for round := 0; ; round++ {
		younger := stack.Projector()
		select {
		case <-done:
			return
		case <-time.After(700 * time.Millisecond): // a storm has a rhythm; nothing is asserted about it
		}
		if round%2 == 0 {
			older.Stop()
		} else {
			older.Kill()
		}
		older = younger
	}
}

// splitByStream gives each stream to one of n lists, keeping the order within it.
func splitByStream(changes []*change, n int) [][]*change {
	lists := make([][]*change, n)
	for _, c := range changes {
		h := fnv.New32a()
		h.Write([]byte(c.Path))
		i := int(h.Sum32()) % n
		lists[i] = append(lists[i], c)
	}
	return lists
}

func requireRows(t *testing.T, want rows, c *platform.Client, token string) {
	t.Helper()
	for name, rows := range want {
		got := c.Rows(name, keyFields[name], token)
		require.Len(t, got, len(rows), name)
		for key, row := range rows {
			require.Equal(t, row, got[key], "%s %s", name, key)
		}
	}
}

// requireVerified runs refold's own checks over log, topics and rows.
func requireVerified(t *testing.T, stack *platform.Stack) {
	t.Helper()
	out, errs, code := stack.Run("writer", "verify")
	require.Zero(t, code, "writer verify: %s%s", out, errs)
	for name := range keyFields {
		out, errs, code := stack.Run("projector", "verify", name)
		require.Zero(t, code, "projector verify %s: %s%s", name, out, errs)
	}
}

// storedRows returns the rows of a projection as they stand in the table.
func storedRows(t *testing.T, stack *platform.Stack, name string) map[string]string {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, stack.DatabaseURL)
	require.NoError(t, err)
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, `select key, data::text from refold.projections where projection_name = $1`, name)
	require.NoError(t, err)
	stored := make(map[string]string)
	var key, data string
	_, err = pgx.ForEachRow(rows, []any{&key, &data}, func() error {
		stored[key] = data
		return nil
	})
	require.NoError(t, err)
	return stored
}

// The history arrives twice, as after a client's crash: event ids make the
// second one a replay.
func TestImportedTwiceIsThereOnce(t *testing.T) {
	stack := newStack(t)
	writer := platform.NewClient(t, stack.Writer().URL())
	changes := readHistory(t, "river")[:500]
	var body bytes.Buffer
	for i, c := range changes {
		body.Write(c.appendLineWithID(i))
	}
	once := importPositions(t, writer, body.Bytes(), 201)
	again := importPositions(t, writer, body.Bytes(), 200)
	require.Equal(t, once, again)
	out, errs, code := stack.Run("writer", "verify")
	require.Zero(t, code, "%s%s", out, errs)
}

func importPositions(t *testing.T, c *platform.Client, body []byte, status int) []string {
	t.Helper()
	var positions []string
	_, err := c.Import(bytes.NewReader(body), func(line platform.ImportLine) {
		require.Equal(t, status, line.Status, "%s", line.Problem)
		positions = append(positions, line.Appends[0].Events[0].Position)
	})
	require.NoError(t, err)
	return positions
}
