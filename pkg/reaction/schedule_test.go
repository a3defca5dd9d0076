package reaction

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/refoldhq/refold/pkg/event"
)

// Whatever comes in which order: the events of a stream are handed out one at a time
// and in order, a slot is passed up to its first event that is not dealt with and no
// further, and what a parked stream has left out is handled once it goes on.
func TestTheScheduleKeepsOrderAndForgetsNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const slots = 2
		s := newSchedule(make([]place, slots), nil, nil)
		wanted := func(e *event.Event) bool { return e.Type != "ignored" }
		log := make([][]event.Event, slots)
		versions := make(map[string]int64)
		handled, parkedAt := make(map[string]int64), make(map[string]int64) // versions: the last that was handled, where it is parked
		dealt := make(map[event.ID]bool)
		working := make(map[*chain]*event.Event)
		asked := make(map[string]*chain)

		streamEvents := func(slot int, stream string, after int64) (list []event.Event) {
			for _, e := range log[slot] {
				if e.Stream == stream && e.Version > after {
					list = append(list, e)
				}
			}
			return list
		}
		feed := func(c *chain) {
			if !s.feed(c, streamEvents(c.slot, c.stream, c.after), wanted) {
				s.release(c.stream)
				delete(parkedAt, c.stream)
				delete(asked, c.stream)
			}
		}
		check := func() {
			for slot := range log {
				_, passed, _ := s.state(slot)
				want := int64(0)
				for _, e := range log[slot] {
					if !dealt[e.ID] {
						break
					}
					want = e.Seq
				}
				if passed.seq != want {
					t.Fatalf("slot %d has passed %d, want %d", slot, passed.seq, want)
				}
			}
		}
		grow := func(slot int) {
			var page []event.Event
			for range rapid.IntRange(1, 5).Draw(t, "events") {
				stream := fmt.Sprint(slot, rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "stream"))
				versions[stream]++
				e := event.Event{Slot: slot, Seq: int64(len(log[slot]) + 1), ID: event.NewID(), Stream: stream, Version: versions[stream],
					Type: rapid.SampledFrom([]string{"x", "x", "ignored"}).Draw(t, "type")}
				_, isParked := parkedAt[stream]
				dealt[e.ID] = isParked || !wanted(&e)
				log[slot], page = append(log[slot], e), append(page, e)
			}
			s.add(slot, page, wanted)
		}
		take := func() bool {
			if len(s.ready) == 0 {
				return false
			}
			c, e := s.next()
			for _, other := range working {
				require.NotEqual(t, other.Stream, e.Stream, "two events of a stream at once")
			}
			for _, before := range streamEvents(c.slot, c.stream, handled[c.stream]) {
				if before.Version < e.Version {
					require.Equal(t, "ignored", before.Type, "event %d of %s before %d", e.Version, e.Stream, before.Version)
				}
			}
			working[c] = e
			return true
		}
		finish := func(c *chain, park bool) {
			e := working[c]
			delete(working, c)
			if !park {
				handled[e.Stream] = e.Version
				dealt[e.ID] = true
				s.handled(c)
				return
			}
			s.park(c)
			delete(asked, e.Stream)
			parkedAt[e.Stream] = e.Version
			for _, behind := range streamEvents(c.slot, e.Stream, e.Version-1) {
				dealt[behind.ID] = true
			}
		}
		retry := func(stream string, version int64) {
			if c := s.ask(int(stream[0]-'0'), Parked{Stream: stream, Version: version, Request: "retry"}); c != nil {
				asked[stream] = c
				feed(c)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"grow": func(*rapid.T) { grow(rapid.IntRange(0, slots-1).Draw(t, "slot")) },
			"take": func(*rapid.T) { take() },
			"finish": func(*rapid.T) {
				for c := range working {
					finish(c, rapid.IntRange(0, 4).Draw(t, "fate") == 0)
					return
				}
			},
			"retry": func(*rapid.T) {
				for stream, version := range parkedAt {
					if asked[stream] == nil {
						retry(stream, version)
						return
					}
				}
			},
			"feed": func(*rapid.T) {
				for _, c := range s.takeIdle() {
					feed(c)
				}
			},
			"": func(*rapid.T) { check() },
		})
		for end := time.Now().Add(time.Minute); time.Now().Before(end); { // all goes well from now on
			for stream, version := range parkedAt {
				retry(stream, version)
			}
			for take() {
			}
			for c := range working {
				finish(c, false)
			}
			for _, c := range s.takeIdle() {
				feed(c)
			}
			if len(parkedAt) == 0 && len(working) == 0 && len(s.ready) == 0 {
				break
			}
		}
		for stream, version := range versions {
			for _, e := range streamEvents(int(stream[0]-'0'), stream, handled[stream]) {
				require.Equal(t, "ignored", e.Type, "%s of %s was never handled, of %d", fmt.Sprint(e.Version), stream, version)
			}
		}
		require.False(t, s.busy())
		require.Zero(t, s.bytes)
		check()
	})
}
