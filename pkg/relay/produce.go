package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/kafka"
)

// readSQL reads on from the last event that was sent of each slot, that event
// included, so that a table which has another event there is noticed.
const readSQL = `
	select e.slot, e.seq, e.version, e.id, e.time, e.recorded, e.stream, e.type, e.value,
	       coalesce(e.actor, ''), coalesce(e.correlation_id, ''), coalesce(e.causation_id, ''), coalesce(e.traceparent, '')
	from unnest($2::smallint[], $3::bigint[]) u (slot, seq),
	     lateral (select * from refold.event e where e.category = $1 and e.slot = u.slot and e.seq >= u.seq order by e.seq limit $4) e
	order by e.slot, e.seq`

// produce reads what is new and hands it to the producer. It returns how many
// events that were.
func (r *Relay) produce(ctx context.Context) (n int, err error) {
	byCategory := make(map[int16][]*partition)
	for _, p := range r.owned {
		if !p.stopped && !p.failed {
			byCategory[p.category] = append(byCategory[p.category], p)
		}
	}
	for category, partitions := range byCategory {
		sent, err := r.produceCategory(ctx, category, partitions)
		if err != nil {
			return n, err
		}
		n += sent
	}
	return n, nil
}

func (r *Relay) produceCategory(ctx context.Context, category int16, partitions []*partition) (n int, err error) {
	var slots []int16
	var seqs []int64
	bySlot := make(map[int]*partition)
	for _, p := range partitions {
		for i, slot := range p.slots {
			slots, seqs = append(slots, slot), append(seqs, p.sent[i].seq)
			bySlot[int(slot)] = p
		}
	}
	limit := max(2, (r.cfg.MaxInFlight-r.inFlight)/len(slots))
	rows, err := r.conn.Query(ctx, readSQL, category, slots, seqs, limit)
	if err != nil {
		return 0, fmt.Errorf("reading new events: %w", err)
	}
	seen := make(map[int]bool) // slots whose last event was met again, or sent by this call
	var e event.Event
	var slot int16
	var id [16]byte
	var at, recorded time.Time
	_, err = pgx.ForEachRow(rows, []any{&slot, &e.Seq, &e.Version, &id, &at, &recorded, &e.Stream, &e.Type, &e.Value,
		&e.Metadata.Actor, &e.Metadata.CorrelationID, &e.Metadata.CausationID, &e.Metadata.Traceparent}, func() error {
		p := bySlot[int(slot)]
		e.Category, e.Slot, e.ID, e.Time, e.Recorded = p.name, int(slot), id, event.TimeOf(at), event.TimeOf(recorded)
		if p.stopped {
			return nil
		}
		sent := &p.sent[p.index(e.Slot)]
		switch {
		case e.Seq == sent.seq:
			seen[e.Slot] = true
			if e.ID != sent.id {
				p.stopped = true
				return r.later(p, fmt.Sprintf("%v: event %s was relayed at %s/%d/%d, the event table has event %s there", errDiverged, sent.id, p.name, e.Slot, e.Seq, e.ID))
			}
			return nil
		case e.Seq != sent.seq+1 || sent.seq > 0 && !seen[e.Slot]:
			p.stopped = true
			return r.later(p, fmt.Sprintf("%v: event %s was relayed at %s/%d/%d, the event table goes on with seq %d", errDiverged, sent.id, p.name, e.Slot, sent.seq, e.Seq))
		}
		e.PrevID = sent.id
		r.send(ctx, p, &e)
		*sent, seen[e.Slot] = place{e.Seq, e.ID}, true
		e.Value = nil // the next row gets memory of its own
		n++
		return nil
	})
	if err != nil {
		return n, fmt.Errorf("reading new events: %w", err)
	}
	return n, r.raiseLater(ctx)
}

// later notes an alarm to be raised once the rows are read: the session is busy
// with them.
func (r *Relay) later(p *partition, why string) error {
	r.alarms = append(r.alarms, pendingAlarm{p, why})
	return nil
}

type pendingAlarm struct {
	p   *partition
	why string
}

func (r *Relay) raiseLater(ctx context.Context) error {
	for _, a := range r.alarms {
		if err := r.alarm(ctx, a.p, a.why); err != nil {
			return err
		}
	}
	r.alarms = nil
	return nil
}

// send hands one event to the producer.
func (r *Relay) send(ctx context.Context, p *partition, e *event.Event) {
	slot, seq, id := e.Slot, e.Seq, e.ID
	p.pending++
	r.inFlight++
	if r.faults.cursorEarly {
		p.acked[p.index(slot)], p.dirty = place{seq, id}, true
	}
	// The producer must not give up records in the middle of a slot because our
	// context ends: stopping waits for what is in flight.
	r.client.Produce(context.WithoutCancel(ctx), kafka.ToRecord(e, p.topic, int32(p.number)), func(record *kgo.Record, err error) {
		r.mu.Lock()
		r.acks = append(r.acks, ack{p, slot, seq, id, record.Offset, err})
		r.mu.Unlock()
		r.Wake()
	})
}

// settle takes in the acknowledgements that have come and moves the cursors.
func (r *Relay) settle(ctx context.Context) error {
	r.mu.Lock()
	acks := r.acks
	r.acks = nil
	r.mu.Unlock()
	for i := range acks {
		if err := r.acknowledge(ctx, &acks[i]); err != nil {
			return err
		}
	}
	for _, p := range r.owned {
		if p.failed && p.pending == 0 {
			p.failed, p.sent = false, slices.Clone(p.acked)
		}
	}
	return r.moveCursors(ctx)
}

func (r *Relay) acknowledge(ctx context.Context, a *ack) error {
	p := a.p
	if r.owned[p.key] != p {
		return nil // of a former ownership
	}
	p.pending--
	r.inFlight--
	if a.err != nil {
		if !p.failed {
			r.log.Error("relay could not send an event", "topic", p.topic, "partition", p.number, "slot", a.slot, "seq", a.seq, "event_id", a.id, "err", a.err)
			r.metrics.failed.WithLabelValues(p.topic).Inc()
		}
		p.failed = true
		return nil
	}
	if a.offset > p.end { // somebody else has written in between
		if err := r.compareTo(ctx, p, a.offset); err != nil {
			return err
		}
	}
	p.end = max(p.end, a.offset+1)
	if at := p.index(a.slot); a.seq == p.acked[at].seq+1 {
		p.acked[at] = place{a.seq, a.id}
	}
	p.dirty = true
	r.metrics.published.Inc()
	return nil
}

// moveCursors writes how far the acknowledged records go, in one trip. Each
// cursor proves, in its transaction, that it is still ours and that the events
// which it stands for are in the table.
func (r *Relay) moveCursors(ctx context.Context) error {
	trip := &pgx.Batch{}
	var moved []*partition
	for _, p := range r.owned {
		if p.dirty && !p.stopped {
			trip.Queue(moveSQL, r.moveArgs(p)...)
			moved = append(moved, p)
		}
	}
	if len(moved) == 0 {
		return nil
	}
	err := r.conn.SendBatch(ctx, trip).Close()
	var refused *pgconn.PgError
	switch {
	case err == nil:
		for _, p := range moved {
			p.moved()
		}
		return nil
	case errors.As(err, &refused):
		return r.moveOneByOne(ctx, moved)
	default:
		return fmt.Errorf("moving the cursors: %w", err)
	}
}

const moveSQL = `select refold.relay_move($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`

func (r *Relay) moveArgs(p *partition) []any {
	seqs, ids := make([]int64, len(p.slots)), make([][16]byte, len(p.slots))
	for i, at := range p.acked {
		seqs[i], ids[i] = at.seq, at.id
	}
	return []any{int64(r.incarnation.Timeline), r.incarnation.Started, p.category, p.generation, p.number, p.fence, p.nonce, p.slots, seqs, ids, p.end, p.foreign}
}

func (p *partition) moved() { p.dirty, p.foreign, p.compared = false, 0, p.end }

// moveOneByOne finds out which cursor was refused.
func (r *Relay) moveOneByOne(ctx context.Context, moved []*partition) error {
	for _, p := range moved {
		_, err := r.conn.Exec(ctx, moveSQL, r.moveArgs(p)...)
		var refused *pgconn.PgError
		switch {
		case err == nil:
			p.moved()
		case errors.As(err, &refused) && refused.Code == "RF001":
			r.drop(p.key, refused.Message)
		case errors.As(err, &refused) && refused.Code == "RF002":
			if err := r.alarm(ctx, p, fmt.Sprintf("%v: %s", errDiverged, refused.Message)); err != nil {
				return err
			}
		default:
			return fmt.Errorf("moving the cursor of %s: %w", p, err)
		}
	}
	return nil
}
