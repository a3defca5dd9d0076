package eventstore

import (
	"bytes"
	"slices"
	"strings"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
)

type slotKey struct {
	category int16
	slot     int
}

type streamKey struct {
	category int16
	stream   string
}

type idKey struct {
	category int16
	id       event.ID
}

// known is an event that the log has already, as replays need it.
type known struct {
	categoryName string
	stream       string
	version      int64
	slot         int
	seq          int64
	recorded     event.Time
}

type holder struct {
	category int16
	stream   string
}

// batch judges requests one after the other against what the database said under
// their locks, and against those before it in the same batch. It does no IO.
type batch struct {
	recorded event.Time
	heads    map[slotKey]int64
	versions map[streamKey]int64
	keys     map[string]keyed
	ids      map[idKey]known
	claims   map[Claim]holder // the zero holder: free
	names    map[int16]string // of categories
	on       postgres.Incarnation

	rows    []newRow
	changed map[Claim]bool
	used    map[string]*request // keys that this batch gives a meaning
}

func newBatch(recorded event.Time, names map[int16]string) *batch {
	return &batch{recorded: recorded, heads: make(map[slotKey]int64), versions: make(map[streamKey]int64), keys: make(map[string]keyed), ids: make(map[idKey]known),
		claims: make(map[Claim]holder), names: names, changed: make(map[Claim]bool), used: make(map[string]*request)}
}

// keyed is what is behind an idempotency key.
type keyed struct {
	request []byte
	events  []byte // ids
	result  *Result
}

// newRow is an event with its place.
type newRow struct {
	w       *write
	e       *NewEvent
	m       *event.Metadata
	version int64
	seq     int64
}

// outcome is what is answered for one request once the batch has committed.
type outcome struct {
	result *Result
	err    error
}

// judge decides about one request. A refusal leaves no trace.
func (b *batch) judge(r *request) outcome {
	if r.Key != "" {
		if first, taken := b.keys[r.Key]; taken {
			return b.replayKey(r, first)
		}
	}
	out, replay := b.judgeIDs(r)
	if !replay && out.err == nil {
		out = b.judgeState(r)
	}
	if r.Key != "" && out.err == nil { // later requests of this batch meet the key as taken
		b.keys[r.Key] = keyed{request: r.Hash, events: r.ids(), result: out.result}
		b.used[r.Key] = r
	}
	return out
}

func (b *batch) replayKey(r *request, first keyed) outcome {
	if !bytes.Equal(first.request, r.Hash) {
		return outcome{err: ErrKeyReused}
	}
	if first.result != nil {
		return outcome{result: &Result{Replayed: true, Appends: first.result.Appends}}
	}
	result, ok := b.replay(r, first.events)
	if !ok {
		return outcome{err: ErrKeyReused}
	}
	return outcome{result: result}
}

// judgeIDs recognises a retry by the ids that the client chose.
func (b *batch) judgeIDs(r *request) (out outcome, replay bool) {
	seen := make(map[idKey]bool)
	found, chosen := 0, 0
	for i := range r.writes {
		w := &r.writes[i]
		if !w.chosen {
			continue
		}
		for j := range w.Events {
			key := idKey{w.category.ID, w.Events[j].ID}
			if seen[key] {
				return outcome{err: &EventIDTaken{key.id}}, false
			}
			seen[key] = true
			chosen++
			if k, ok := b.ids[key]; ok {
				if k.stream != w.Stream {
					return outcome{err: &EventIDTaken{key.id}}, false
				}
				found++
			}
		}
	}
	if found == 0 {
		return outcome{}, false
	}
	result, ok := b.replay(r, r.ids())
	if found != chosen || !ok {
		return outcome{err: &EventIDTaken{b.firstKnown(r)}}, false
	}
	return outcome{result: result}, true
}

func (b *batch) firstKnown(r *request) event.ID {
	for i := range r.writes {
		for _, e := range r.writes[i].Events {
			if _, ok := b.ids[idKey{r.writes[i].category.ID, e.ID}]; ok {
				return e.ID
			}
		}
	}
	return event.ID{}
}

// replay builds the first answer from the ids of the events that it made. It
// fails unless all of them are there, in the same streams and in one run each.
func (b *batch) replay(r *request, ids []byte) (*Result, bool) {
	result := &Result{Replayed: true}
	for i := range r.writes {
		w := &r.writes[i]
		a := AppendResult{Category: w.Category, Stream: w.Stream}
		for j := range w.Events {
			if len(ids) < 16 {
				return nil, false
			}
			id := event.ID(ids[:16])
			ids = ids[16:]
			k, ok := b.ids[idKey{w.category.ID, id}]
			if !ok || k.stream != w.Stream || j > 0 && k.version != a.LastVersion+1 {
				return nil, false
			}
			if j == 0 {
				a.FirstVersion = k.version
			}
			a.LastVersion = k.version
			a.Events = append(a.Events, Appended{ID: id, Version: k.version, Position: event.Position{Category: w.Category, Slot: k.slot, Seq: k.seq}, Recorded: k.recorded})
		}
		result.Appends = append(result.Appends, a)
	}
	return result, len(ids) == 0
}

// judgeState checks versions and claims and, if all is well, takes effect.
func (b *batch) judgeState(r *request) outcome {
	if r.Seen != (postgres.Incarnation{}) && r.Seen != b.on {
		return outcome{err: ErrFailedOver}
	}
	for i := range r.guards {
		g := &r.guards[i]
		if actual := b.versions[streamKey{g.category.ID, g.Stream}]; !g.Expected.met(actual) {
			return outcome{err: &VersionConflict{Append: -1, Category: g.Category, Stream: g.Stream, Expected: g.Expected, Actual: actual}}
		}
	}
	for i := range r.writes {
		w := &r.writes[i]
		if actual := b.versions[streamKey{w.category.ID, w.Stream}]; !w.Expected.met(actual) {
			return outcome{err: &VersionConflict{Append: i, Category: w.Category, Stream: w.Stream, Expected: w.Expected, Actual: actual}}
		}
	}
	if err := b.claim(r); err != nil {
		return outcome{err: err}
	}
	result := &Result{}
	for i := range r.writes {
		result.Appends = append(result.Appends, b.append(&r.writes[i], &r.Metadata))
	}
	return outcome{result: result}
}

// claim releases and takes what the request asks, or nothing of it. Within one
// append releases take effect first.
func (b *batch) claim(r *request) error {
	after := make(map[Claim]holder)
	now := func(c Claim) holder {
		if h, ok := after[c]; ok {
			return h
		}
		return b.claims[c]
	}
	for i := range r.writes {
		w := &r.writes[i]
		self := holder{w.category.ID, w.Stream}
		for _, c := range w.Releases {
			if now(c) == self {
				after[c] = holder{}
			}
		}
		for _, c := range w.Claims {
			switch h := now(c); h {
			case holder{}:
				after[c] = self
			case self:
			default:
				return &ClaimTaken{Claim: c, Category: b.names[h.category], Stream: h.stream}
			}
		}
	}
	for c, h := range after {
		b.claims[c] = h
		b.changed[c] = true
	}
	return nil
}

func (b *batch) append(w *write, m *event.Metadata) AppendResult {
	stream, slot := streamKey{w.category.ID, w.Stream}, slotKey{w.category.ID, w.slot}
	version, seq := b.versions[stream], b.heads[slot]
	a := AppendResult{Category: w.Category, Stream: w.Stream, FirstVersion: version + 1, Events: make([]Appended, len(w.Events))}
	for i := range w.Events {
		version, seq = version+1, seq+1
		e := &w.Events[i]
		b.rows = append(b.rows, newRow{w, e, m, version, seq})
		a.Events[i] = Appended{ID: e.ID, Version: version, Position: event.Position{Category: w.Category, Slot: w.slot, Seq: seq}, Recorded: b.recorded}
		if w.chosen {
			b.ids[idKey{w.category.ID, e.ID}] = known{w.Category, w.Stream, version, w.slot, seq, b.recorded}
		}
	}
	a.LastVersion = version
	b.versions[stream], b.heads[slot] = version, seq
	return a
}

// scope is everything that a batch locks and reads, sorted.
type scope struct {
	slots   []slotKey
	streams []streamKey
	keys    []*request // those with a key, one for each key
	chosen  []idKey
	claims  []Claim
}

func scopeOf(requests []*Pending) scope {
	var s scope
	seen := make(map[string]bool)
	for _, p := range requests {
		r := p.request
		if r.Key != "" && !seen[r.Key] {
			seen[r.Key] = true
			s.keys = append(s.keys, r)
		}
		for i := range r.guards {
			g := &r.guards[i]
			s.slots = append(s.slots, slotKey{g.category.ID, g.slot})
			s.streams = append(s.streams, streamKey{g.category.ID, g.Stream})
		}
		for i := range r.writes {
			w := &r.writes[i]
			s.slots = append(s.slots, slotKey{w.category.ID, w.slot})
			s.streams = append(s.streams, streamKey{w.category.ID, w.Stream})
			s.claims = append(append(s.claims, w.Claims...), w.Releases...)
			for j := range w.Events {
				if w.chosen {
					s.chosen = append(s.chosen, idKey{w.category.ID, w.Events[j].ID})
				}
			}
		}
	}
	s.sort()
	return s
}

func (s *scope) sort() {
	s.slots = sorted(s.slots, func(a, b slotKey) int {
		if a.category != b.category {
			return int(a.category) - int(b.category)
		}
		return a.slot - b.slot
	})
	s.streams = sorted(s.streams, func(a, b streamKey) int {
		if a.category != b.category {
			return int(a.category) - int(b.category)
		}
		return strings.Compare(a.stream, b.stream)
	})
	slices.SortFunc(s.keys, func(a, b *request) int { return strings.Compare(a.Key, b.Key) })
	s.chosen = sorted(s.chosen, func(a, b idKey) int {
		if c := bytes.Compare(a.id[:], b.id[:]); c != 0 {
			return c
		}
		return int(a.category) - int(b.category)
	})
	s.claims = sorted(s.claims, func(a, b Claim) int {
		if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
			return c
		}
		return strings.Compare(a.Value, b.Value)
	})
}

func sorted[T comparable](list []T, compare func(a, b T) int) []T {
	slices.SortFunc(list, compare)
	return slices.Compact(list)
}
