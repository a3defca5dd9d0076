package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
)

// stopKind says why a slot was stopped.
type stopKind string

const (
	// refused: the broker does not take a record. It is tried again.
	refused stopKind = "refused"
	// diverged: topic and event table name different events. It needs [Repair].
	diverged stopKind = "diverged"
)

// stop is why nothing of a slot is sent.
type stop struct {
	kind       stopKind
	seq        int64    // the first event that is not relayed
	event      event.ID // what the event table has there
	topicEvent event.ID // what the topic has there, of a divergence
	offset     int64    // of that record; -1 if unknown
	reason     string
	stored     bool
	retryAt    time.Time // of a refused one
	tries      int
}

// maxRetry bounds how long a refused record waits to be tried again.
const maxRetry = time.Minute

// stopSlot stops one slot; the others of its partition flow.
func (s *session) stopSlot(p *partition, at *slot, why *stop) {
	if before := at.stop; before != nil && before.kind == why.kind && before.seq == why.seq {
		why.tries, why.stored = before.tries+1, before.stored && before.reason == why.reason
	}
	if why.kind == diverged {
		why.reason += fmt.Sprintf("; `writer repair %s --slot=%d --restore` puts them back while their places are free, --keep-log goes on without them", p.name, at.number)
	}
	if why.kind == refused {
		why.retryAt = time.Now().Add(min(maxRetry, s.cfg.RetryRefused<<min(why.tries, 6)))
	}
	if !why.stored {
		s.log.Error("relay stops a slot", "topic", p.topic, "partition", p.number, "category", p.name, "slot", at.number, "seq", why.seq, "event_id", why.event, "err", why.reason)
	}
	at.stop = why
}

const (
	storeStopSQL = `insert into refold.relay_stop (category, generation, slot, seq, kind, event, topic_event, topic_offset, reason)
		select r.category, r.generation, $6, $7, $8, $9, $10, $11, $12 from refold.relay_partition r
		where category = $1 and generation = $2 and partition = $3 and fence = $4 and nonce = $5
		on conflict (category, generation, slot) do update set seq = excluded.seq, kind = excluded.kind, event = excluded.event,
			topic_event = excluded.topic_event, topic_offset = excluded.topic_offset, reason = excluded.reason, since = clock_timestamp()`
	dropStopSQL = `delete from refold.relay_stop o using refold.relay_partition r
		where r.category = $1 and r.generation = $2 and r.partition = $3 and r.fence = $4 and r.nonce = $5
		and o.category = r.category and o.generation = r.generation and o.slot = $6 and o.kind = 'refused'`
)

// storeStops writes what was stopped and what goes on, under the fence.
func (s *session) storeStops(ctx context.Context) error {
	for _, p := range s.owned {
		for i := range p.slots {
			at := &p.slots[i]
			if at.stop != nil && !at.stop.stored {
				tag, err := s.conn.Exec(ctx, storeStopSQL, p.category, p.generation, p.number, p.fence, p.nonce, at.number, at.stop.seq, string(at.stop.kind),
					nullable(at.stop.event), nullable(at.stop.topicEvent), at.stop.offset, at.stop.reason)
				if err != nil {
					return fmt.Errorf("noting that slot %d of %s is stopped: %w", at.number, p.name, err)
				}
				if tag.RowsAffected() != 1 {
					s.drop(p, "its lease was taken over")
					break
				}
				at.stop.stored = true
			}
			if at.released {
				if _, err := s.conn.Exec(ctx, dropStopSQL, p.category, p.generation, p.number, p.fence, p.nonce, at.number); err != nil {
					return fmt.Errorf("noting that slot %d of %s goes on: %w", at.number, p.name, err)
				}
				at.released = false
			}
		}
	}
	return nil
}

func nullable(id event.ID) *[16]byte {
	if id.IsZero() {
		return nil
	}
	return (*[16]byte)(&id)
}

// loadStops reads which slots of our partitions are stopped.
func (s *session) loadStops(ctx context.Context, categories []int16) error {
	rows, err := s.conn.Query(ctx, stopsSQL, categories)
	if err != nil {
		return fmt.Errorf("reading which slots are stopped: %w", err)
	}
	var category, number int16
	var generation int
	var kind string
	var inTable, inTopic *[16]byte
	var why stop
	_, err = pgx.ForEachRow(rows, []any{&category, &generation, &number, &why.seq, &kind, &inTable, &inTopic, &why.offset, &why.reason}, func() error {
		for _, p := range s.owned {
			if p.category == category && p.generation == generation && int(number)%p.partitions == p.number {
				found := why
				found.kind, found.stored = stopKind(kind), true
				if inTable != nil {
					found.event = *inTable
				}
				if inTopic != nil {
					found.topicEvent = *inTopic
				}
				p.slots[p.index(int(number))].stop = &found
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading which slots are stopped: %w", err)
	}
	return nil
}

// goOn lets a slot flow whose refused record was taken.
func (s *session) goOn(p *partition, at *slot) {
	s.log.Info("relay goes on with a slot", "topic", p.topic, "partition", p.number, "category", p.name, "slot", at.number, "seq", at.stop.seq)
	at.stop, at.released, at.look = nil, true, true
}

// dueProbe returns a slot whose refused record is to be tried again; -1 for none.
func (p *partition) dueProbe(now time.Time) int {
	for i := range p.slots {
		if stop := p.slots[i].stop; stop != nil && stop.kind == refused && !now.Before(stop.retryAt) {
			return i
		}
	}
	return -1
}
