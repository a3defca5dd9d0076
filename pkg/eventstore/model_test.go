package eventstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
)

// model is what the store promises, written down plainly: one request after the
// other, everything in maps.
type model struct {
	streams map[string][]event.ID // category/stream to the ids of its events
	ids     map[string]place      // category/id
	claims  map[eventstore.Claim]string
	keys    map[string]done
}

type place struct {
	stream  string
	version int
}

type done struct {
	hash   []byte
	answer string
}

func newModel() *model {
	return &model{streams: make(map[string][]event.ID), ids: make(map[string]place), claims: make(map[eventstore.Claim]string), keys: make(map[string]done)}
}

func nameOf(a *eventstore.Append) string { return a.Category + "/" + a.Stream }

// append answers a request as the store must, in words that both can be put into.
func (m *model) append(r *eventstore.Request) string {
	if first, met := m.keys[r.Key]; met && r.Key != "" {
		if !bytes.Equal(first.hash, r.Hash) {
			return "key reused"
		}
		return "again " + first.answer
	}
	answer, met := m.judgeIDs(r)
	if !met {
		if refusal := m.judgeState(r); refusal != "" {
			return refusal
		}
		answer = m.write(r)
	} else if answer == "" {
		return "id taken"
	}
	if r.Key != "" {
		m.keys[r.Key] = done{r.Hash, answer}
	}
	if met {
		return "again " + answer
	}
	return answer
}

// judgeIDs tells whether ids of the request were met before, and the answer if
// that makes it a replay; an empty one if it is refused.
func (m *model) judgeIDs(r *eventstore.Request) (answer string, met bool) {
	seen := make(map[string]bool)
	whole := true
	for i := range r.Appends {
		a := &r.Appends[i]
		first := 0
		for j, e := range a.Events {
			key := a.Category + e.ID.String()
			if !e.ID.IsZero() && seen[key] {
				return "", true
			}
			seen[key] = true
			at, known := m.ids[key]
			if e.ID.IsZero() || !known {
				whole = false
				continue
			}
			met = true
			if j == 0 {
				first = at.version
			}
			whole = whole && at.stream == nameOf(a) && at.version == first+j
		}
		answer += fmt.Sprintf("%s %d-%d;", nameOf(a), first, first+len(a.Events)-1)
	}
	if !whole {
		answer = ""
	}
	return answer, met
}

func (m *model) judgeState(r *eventstore.Request) (refusal string) {
	for i := range r.Appends {
		a := &r.Appends[i]
		actual := int64(len(m.streams[nameOf(a)]))
		n, exact := a.Expected.Version()
		if exact && n != actual || a.Expected == eventstore.Exists && actual == 0 {
			return fmt.Sprintf("conflict %s at %d", nameOf(a), actual)
		}
	}
	after := make(map[eventstore.Claim]string)
	for c, holder := range m.claims {
		after[c] = holder
	}
	for i := range r.Appends {
		a := &r.Appends[i]
		for _, c := range a.Releases {
			if after[c] == nameOf(a) {
				delete(after, c)
			}
		}
		for _, c := range a.Claims {
			if holder, held := after[c]; held && holder != nameOf(a) {
				return "claim held by " + holder
			}
			after[c] = nameOf(a)
		}
	}
	m.claims = after
	return ""
}

func (m *model) write(r *eventstore.Request) (answer string) {
	for i := range r.Appends {
		a := &r.Appends[i]
		name := nameOf(a)
		from := len(m.streams[name]) + 1
		for _, e := range a.Events {
			m.streams[name] = append(m.streams[name], e.ID)
			if !e.ID.IsZero() {
				m.ids[a.Category+e.ID.String()] = place{name, len(m.streams[name])}
			}
		}
		answer += fmt.Sprintf("%s %d-%d;", name, from, len(m.streams[name]))
	}
	return answer
}

// inWords puts the store's answer as the model has it.
func inWords(result *eventstore.Result, err error) string {
	var conflict *eventstore.VersionConflict
	var taken *eventstore.ClaimTaken
	var id *eventstore.EventIDTaken
	switch {
	case errors.As(err, &conflict):
		return fmt.Sprintf("conflict %s/%s at %d", conflict.Category, conflict.Stream, conflict.Actual)
	case errors.As(err, &taken):
		return fmt.Sprintf("claim held by %s/%s", taken.Category, taken.Stream)
	case errors.As(err, &id):
		return "id taken"
	case errors.Is(err, eventstore.ErrKeyReused):
		return "key reused"
	case err != nil:
		return err.Error()
	}
	answer := ""
	if result.Replayed {
		answer = "again "
	}
	for _, a := range result.Appends {
		answer += fmt.Sprintf("%s/%s %d-%d;", a.Category, a.Stream, a.FirstVersion, a.LastVersion)
	}
	return answer
}

// drawRequest draws from few streams, keys, ids and values, so that they meet. run
// keeps what one run names apart from the others, on the same database.
func drawRequest(t *rapid.T, run int64, ids []event.ID) *eventstore.Request {
	r := &eventstore.Request{}
	names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"User/a", "User/b", "User/c", "Order/a"}), 1, 2, rapid.ID[string]).Draw(t, "streams")
	claims := func(what string) (list []eventstore.Claim) {
		for _, v := range rapid.SliceOfN(rapid.SampledFrom([]string{"x", "y"}), 0, 2).Draw(t, what) {
			list = append(list, eventstore.Claim{Namespace: fmt.Sprint("n", run), Value: v})
		}
		return list
	}
	withClaims := rapid.IntRange(0, 2).Draw(t, "with claims") == 0
	for _, name := range names {
		category, stream, _ := bytes.Cut([]byte(name), []byte("/"))
		a := eventstore.Append{Category: string(category), Stream: fmt.Sprintf("%s-%d", stream, run), Expected: rapid.SampledFrom([]eventstore.Expected{
			eventstore.Any, eventstore.Any, eventstore.None, eventstore.Exists, eventstore.Exactly(1), eventstore.Exactly(2), eventstore.Exactly(3)}).Draw(t, "expected")}
		chosen := rapid.IntRange(0, 2).Draw(t, "chosen ids") == 0
		for range rapid.IntRange(1, 2).Draw(t, "events") {
			e := eventstore.NewEvent{Type: "UserCreated", Value: []byte("v")}
			if chosen {
				e.ID = rapid.SampledFrom(ids).Draw(t, "id")
			}
			a.Events = append(a.Events, e)
		}
		if withClaims {
			a.Claims, a.Releases = claims("claims"), claims("releases")
		}
		r.Appends = append(r.Appends, a)
	}
	if rapid.IntRange(0, 2).Draw(t, "keyed") == 0 {
		r.Key, r.Hash = fmt.Sprintf("%s-%d", rapid.SampledFrom([]string{"k", "l"}).Draw(t, "key"), run), []byte(rapid.SampledFrom([]string{"h", "g"}).Draw(t, "hash"))
	}
	return r
}

// sameShape tells whether two requests under one key could be the same request:
// with one hash, as the API makes it, they always are.
func sameShape(a, b *eventstore.Request) bool {
	if len(a.Appends) != len(b.Appends) {
		return false
	}
	for i := range a.Appends {
		if nameOf(&a.Appends[i]) != nameOf(&b.Appends[i]) || len(a.Appends[i].Events) != len(b.Appends[i].Events) {
			return false
		}
	}
	return true
}

// copyOf keeps a request as the model reads it: the store gives its events ids.
func copyOf(r *eventstore.Request) *eventstore.Request {
	c := *r
	c.Appends = nil
	for _, a := range r.Appends {
		a.Events = append([]eventstore.NewEvent(nil), a.Events...)
		c.Appends = append(c.Appends, a)
	}
	return &c
}

// The store, alone and in batches, answers as the model does.
func TestStoreIsTheModel(t *testing.T) {
	t.Parallel()
	pool := devstack.MigratedDatabase(t)
	store := start(t, pool, eventstore.Config{DatabaseURL: pool.Config().ConnString(), Lanes: 1}, io.Discard) // so that requests take effect in their order
	var runs atomic.Int64
	rapid.Check(t, func(t *rapid.T) {
		run := runs.Add(1)
		m := newModel()
		ids := []event.ID{event.NewID(), event.NewID(), event.NewID(), event.NewID()}
		keyed := make(map[string]*eventstore.Request)
		for range rapid.IntRange(1, 6).Draw(t, "rounds") {
			var pending []*eventstore.Pending
			var asked []*eventstore.Request
			for range rapid.IntRange(1, 5).Draw(t, "requests") {
				r := drawRequest(t, run, ids)
				if r.Key != "" { // a digest stands for what was asked
					name := r.Key + string(r.Hash)
					if first := keyed[name]; first != nil && !sameShape(first, r) {
						r = copyOf(first)
					} else if first == nil {
						keyed[name] = copyOf(r)
					}
				}
				asked = append(asked, copyOf(r))
				p, err := store.Submit(ctx, r)
				require.NoError(t, err)
				pending = append(pending, p)
			}
			for i, p := range pending {
				want := m.append(asked[i])
				got := inWords(p.Wait(ctx))
				if got != want {
					t.Fatalf("%+v\nthe store says %q, the model %q", asked[i], got, want)
				}
			}
		}
	})
	report, err := eventstore.VerifyLog(ctx, pool)
	require.NoError(t, err)
	require.Positive(t, report.Events)
	var locks int
	require.NoError(t, pool.QueryRow(ctx, `select count(*) from refold.claim where stream is null`).Scan(&locks))
	require.Zero(t, locks)
}
