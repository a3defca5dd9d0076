package rebuilder

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/projection/projectiontest"
	"github.com/refoldhq/refold/schemas"
)

// sameAsLive rebuilds every projection at three parallelisms, from either source,
// while events come and are applied live. Each time, the rows and what is parked
// are what the live version has, byte for byte.
func (w *world) sameAsLive(events []*event.Event) {
	w.t.Helper()
	w.append(events[:len(events)/2]...)
	rest := events[len(events)/2:]
	w.follow()
	type run struct {
		parallel int
		source   Source
	}
	runs := []run{{1, FromTopic}, {2, FromEventStore}, {8, FromTopic}}
	for _, d := range w.definitions {
		for i, run := range runs {
			share := len(rest) / (len(runs) - i)
			if d != w.definitions[len(w.definitions)-1] {
				share /= 2 // the rest is for the others
			}
			coming, appended := rest[:share], make(chan struct{})
			rest = rest[share:]
			go func() {
				defer close(appended)
				for _, e := range coming {
					w.append(e)
				}
			}()
			done, err := w.rebuilder().Run(w.ctx, d.Name, Options{Parallel: run.parallel, Source: run.source, Verify: VerifyDeterministic}, nil)
			require.NoError(w.t, err, "%s", d.Source)
			require.True(w.t, done.Report.OK, "%+v\n%s", done.Report, d.Source)
			<-appended
			w.settle(d.Name, 1)
			w.settle(d.Name, done.Version)
			require.Equal(w.t, w.rows(d.Name, 1), w.rows(d.Name, done.Version), "%s", d.Source)
			require.Equal(w.t, w.parked(d.Name, 1), w.parked(d.Name, done.Version), "%s", d.Source)
		}
	}
}

// parked returns what a version has parked, in order.
func (w *world) parked(name string, version int) (text string) {
	w.t.Helper()
	require.NoError(w.t, w.pool.QueryRow(w.ctx, `select coalesce(string_agg(stream || ' ' || seq || ' ' || coalesce(error, ''), chr(10) order by stream, seq), '')
		from refold.parked_event where projection = $1 and version = $2`, name, version).Scan(&text))
	return text
}

// drawn is a generated case.
type drawn struct {
	*projectiontest.Generator
	definition string
	facts      []*projectiontest.Fact
}

// world makes the world of a case and its events, chained as the log would have it.
func (d drawn) world(t *testing.T) (*world, []*event.Event) {
	w := setupWith(t, devstack.MigratedDatabase(t), devstack.FakeKafka(t), d.FS, "Thing", 8)
	w.define(d.definition)
	contracts, err := avro.LoadContracts(d.FS)
	require.NoError(t, err)
	encoded, _ := d.Encode(contracts, d.facts, func(typ string) int { return w.ids[typ] })
	last := make(map[int]event.ID)
	var events []*event.Event
	for i := range encoded {
		e := &encoded[i]
		e.ID = event.NewID()
		e.PrevID, last[e.Slot] = last[e.Slot], e.ID
		events = append(events, e)
	}
	return w, events
}

// generatedCases is how many cases of each kind a run draws: each is three rebuilds.
const generatedCases = 4

func TestGeneratedRowsAreRebuiltByteForByte(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		cases := rapid.Custom(func(t *rapid.T) drawn {
			d := drawn{Generator: projectiontest.Generate(t)}
			d.definition = d.Definition(shared)
			d.facts = d.Facts(120, "one", "two", "three", "four", "five", "six")
			return d
		})
		for range generatedCases {
			seed := rand.IntN(1 << 30)
			t.Logf("shared %t, seed %d", shared, seed)
			w, events := cases.Example(seed).world(t)
			w.sameAsLive(events)
		}
	}
}

// The users of schemas, by all of its definitions.
func TestUsersAreRebuiltByteForByte(t *testing.T) {
	t.Parallel()
	w := setup(t)
	var err error
	w.definitions, err = projection.LoadDefinitions(schemas.FS)
	require.NoError(t, err)
	require.NotEmpty(t, w.definitions)
	var events []*event.Event
	for i := range 900 {
		stream := fmt.Sprintf("user-%d", rand.IntN(80))
		switch n := rand.IntN(20); {
		case n < 2 && w.versions[stream] > 0:
			events = append(events, w.make(stream, "UserDeleted", `{}`))
		case n < 6 || w.versions[stream] == 0:
			events = append(events, w.make(stream, "UserCreated", fmt.Sprintf(`{"id": %q, "email": "é%d@example.com", "isActive": %t, "name": "N\\u0001%d"}`, stream, i, i%2 == 0, i)))
		case n < 9:
			events = append(events, w.make(stream, "UserEmailChanged", fmt.Sprintf(`{"newEmail": "c%d@example.com"}`, i)))
		default:
			types := []string{"UserActivated", "UserEmailVerified", "UserLocked", "UserLoggedIn", "UserLoginFailed"}
			events = append(events, w.make(stream, types[n%len(types)], `{}`))
		}
	}
	w.sameAsLive(events)
}
