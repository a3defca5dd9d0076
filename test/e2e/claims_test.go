package e2e_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/test/platform"
)

// 64 clients fight for 1,000 addresses by creating, changing and deleting
// accounts through two writers, which are killed again and again. In every
// snapshot of the database no address has two holders, and the table of claims is
// what the log makes.
func TestAtMostOneAccountHoldsAnAddress(t *testing.T) {
	stack := platform.New(t, devstack.Database(t), nil)
	writers := []*platform.Program{stack.Writer("--relay=off"), stack.Writer("--relay=off")}
	pool, err := pgxpool.New(context.Background(), stack.DatabaseURL)
	require.NoError(t, err)
	defer pool.Close()

	fight := fight{t: t, writers: writers, done: make(chan struct{})}
	var all sync.WaitGroup
	for n := range 64 {
		all.Go(func() { fight.client(n) })
	}
	rounds := 6
	for round := range rounds {
		time.Sleep(1500 * time.Millisecond) // the length of a round of the fight; nothing is waited for
		victim := writers[round%len(writers)]
		victim.Kill()
		requireOneHolder(t, pool)
		victim.Start()
		requireOneHolder(t, pool)
	}
	close(fight.done)
	all.Wait()
	events, holders := requireOneHolder(t, pool)
	_, stderr, code := stack.Run("writer", "claims")
	require.Zero(t, code, stderr)
	t.Logf("%d events, %d addresses held, %d commands done, %d addresses refused, %d times tried again", events, holders, fight.won.Load(), fight.refused.Load(), fight.again.Load())
	require.Greater(t, fight.won.Load(), int64(500))
	require.Greater(t, fight.refused.Load(), int64(50))
	require.Greater(t, fight.again.Load(), int64(0), "no client has noticed a kill")
}

type fight struct {
	t                   *testing.T
	writers             []*platform.Program
	done                chan struct{}
	won, refused, again atomic.Int64
}

func (f *fight) over() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// client owns some accounts and works on them until the end.
func (f *fight) client(n int) {
	clients := make([]*platform.Client, len(f.writers))
	for i, w := range f.writers {
		clients[i] = platform.NewClient(f.t, w.URL())
		clients[i].HTTP.Timeout = 15 * time.Second
	}
	random := rand.New(rand.NewPCG(uint64(n), 1))
	var mine []string
	for made := 0; !f.over(); {
		address := fmt.Sprintf(`{"email":"%d@example.com"}`, random.IntN(1000))
		switch action := random.IntN(10); {
		case action < 4 || len(mine) == 0:
			id := fmt.Sprintf("c%d-%d", n, made)
			made++
			if f.command(clients, random, id, "create", address) {
				mine = append(mine, id)
			}
		case action < 8:
			f.command(clients, random, mine[random.IntN(len(mine))], "changeEmail", address)
		default:
			last := len(mine) - 1
			at := random.IntN(len(mine))
			f.command(clients, random, mine[at], "delete", `{}`)
			mine[at], mine = mine[last], mine[:last]
		}
	}
}

// command sends a command until it is known what became of it, with one key.
func (f *fight) command(clients []*platform.Client, random *rand.Rand, id, name, body string) bool {
	header := http.Header{"Idempotency-Key": {fmt.Sprintf("%s-%s-%d", id, name, random.Uint64())}}
	for {
		answer, err := clients[random.IntN(len(clients))].Do("POST", "/v1/commands/User/"+id+"/"+name, header, []byte(body))
		switch {
		case err != nil || answer.Status == http.StatusServiceUnavailable:
			if f.over() {
				return false
			}
			f.again.Add(1)
			time.Sleep(20 * time.Millisecond) // as a client would; a killed writer says nothing when it is back
		case answer.Status == http.StatusCreated || answer.Status == http.StatusOK:
			f.won.Add(1)
			return true
		case answer.Status == http.StatusConflict && problemType(answer) == "/problems/claim-taken":
			f.refused.Add(1)
			return false
		default:
			f.t.Errorf("%s of %s: %d %s", name, id, answer.Status, answer.Body)
			return false
		}
	}
}

func problemType(a platform.Answer) string {
	var p struct{ Type string }
	if err := json.Unmarshal(a.Body, &p); err != nil {
		return ""
	}
	return p.Type
}

// requireOneHolder folds the log in one snapshot and compares it with the table
// of claims in the same one.
func requireOneHolder(t *testing.T, pool *pgxpool.Pool) (events, held int) {
	t.Helper()
	ctx := context.Background()
	addresses, claims := make(map[string]string), make(map[string]string) // of the accounts; who claims an address
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `select stream, type, value from refold.event order by stream, version`)
		if err != nil {
			return err
		}
		var stream, typ string
		var value []byte
		_, err = pgx.ForEachRow(rows, []any{&stream, &typ, &value}, func() error {
			events++
			switch typ {
			case "UserCreated":
				_, rest := avroString(value[5:]) // the id comes first
				addresses[stream], _ = avroString(rest)
			case "UserEmailChanged":
				addresses[stream], _ = avroString(value[5:])
			case "UserDeleted":
				delete(addresses, stream)
			}
			return nil
		})
		if err != nil {
			return err
		}
		rows, err = tx.Query(ctx, `select value, coalesce(stream, '') from refold.claim where namespace = 'user.email'`)
		if err != nil {
			return err
		}
		var address string
		_, err = pgx.ForEachRow(rows, []any{&address, &stream}, func() error {
			claims[address] = stream
			return nil
		})
		return err
	})
	require.NoError(t, err)
	holders := make(map[string]string)
	for stream, address := range addresses {
		require.Empty(t, holders[address], "%s has a second holder, %s", address, stream)
		holders[address] = stream
	}
	require.Equal(t, holders, claims)
	return events, len(holders)
}

// avroString reads a string of Avro's binary encoding and returns what follows.
func avroString(b []byte) (string, []byte) {
	n, size := binary.Varint(b)
	return string(b[size : size+int(n)]), b[size+int(n):]
}
