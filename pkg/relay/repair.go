package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
)

// What a relay cannot decide, an operator does: each repair is one transaction
// that sets the cursor right and raises the fence, so that the partition's owner,
// if it has one, begins anew behind it. A crash before its commit leaves everything
// as it was.

// Trouble is a partition or a slot that does not flow.
type Trouble struct {
	Topic     string    `json:"topic"`
	Partition int       `json:"partition"`
	Slot      *int      `json:"slot,omitempty"` // nil: the whole partition
	Seq       int64     `json:"seq,omitempty"`  // the first event that is not relayed
	Kind      string    `json:"kind"`           // alarm, refused, diverged
	Reason    string    `json:"reason"`
	Since     time.Time `json:"since,omitzero"`
}

// Errors of repairs.
var (
	ErrNotDiverged = errors.New("the slot has not diverged")
	// ErrTaken means that lost events cannot come back.
	ErrTaken = errors.New("the event table has gone on without the lost events")
	// ErrComparing passes by itself while a relay runs, mostly in less than a second.
	ErrComparing = errors.New("the relay has not compared all of the partition yet, try again in a moment")
)

// Troubles lists what does not flow, in order of topics and partitions.
func Troubles(ctx context.Context, pool *pgxpool.Pool) ([]Trouble, error) {
	rows, err := pool.Query(ctx, `
		select c.topic, r.partition, null::int as slot, 0::bigint, 'alarm', r.alarm, 'epoch'::timestamptz
			from refold.relay_partition r join refold.category c on c.id = r.category and c.generation = r.generation where r.alarm is not null
		union all
		select c.topic, o.slot % c.partitions, o.slot, o.seq, o.kind, o.reason, o.since
			from refold.relay_stop o join refold.category c on c.id = o.category and c.generation = o.generation
		order by 1, 2, slot nulls first`)
	if err != nil {
		return nil, fmt.Errorf("listing what is not relayed: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t Trouble, err error) {
		err = row.Scan(&t.Topic, &t.Partition, &t.Slot, &t.Seq, &t.Kind, &t.Reason, &t.Since)
		if t.Since.Unix() == 0 {
			t.Since = time.Time{}
		}
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("listing what is not relayed: %w", err)
	}
	return list, nil
}

// Republish has the topic of a category read again from its beginning, and what it
// lacks of the log sent to it. That is the way back for a topic that was deleted,
// made anew, or has lost its end; with a whole topic it changes nothing. Slots whose
// events the topic contradicts stop again.
func Republish(ctx context.Context, pool *pgxpool.Pool, category eventstore.Category) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `update refold.relay_partition r set seqs = array_fill(0::bigint, array[cardinality(r.slots)]),
			ids = array_fill('00000000-0000-0000-0000-000000000000'::uuid, array[cardinality(r.slots)]), compared = 0, topic_id = null, alarm = null,
			fence = fence + 1, nonce = null, owner = null, expires = '-infinity'
			from refold.category c where c.id = r.category and c.generation = r.generation and c.id = $1`, category.ID); err != nil {
			return fmt.Errorf("beginning the topic of %s again: %w", category.Name, err)
		}
		if _, err := tx.Exec(ctx, `delete from refold.relay_stop where category = $1`, category.ID); err != nil {
			return fmt.Errorf("beginning the topic of %s again: %w", category.Name, err)
		}
		return nil
	})
}

// KeepLog takes the event table's side in a divergence: the slot's events go out
// again from the first one that the topic contradicts. Readers that have applied
// lost events notice by the chain of ids, and their projections must be rebuilt
// from the event store. The topic holds both branches for ever; [Repairs] tells
// which of its records are of the lost one. It refuses with [ErrComparing] while
// there are records in the partition that no relay has compared.
func KeepLog(ctx context.Context, pool *pgxpool.Pool, cfg kafka.Config, category eventstore.Category, slot int) error {
	// Nothing of a stopped slot is sent, so the lost branch ends before this end.
	end, err := endOf(ctx, cfg, category, slot)
	if err != nil {
		return err
	}
	// The cursor of a busy partition is always a little behind its end.
	for deadline := time.Now().Add(comparedWithin); ; wait(ctx, 50*time.Millisecond) {
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return keepLog(ctx, tx, category, slot, end) })
		if !errors.Is(err, ErrComparing) || time.Now().After(deadline) {
			return err
		}
	}
}

// comparedWithin is how long a repair waits for the relay's cursor.
const comparedWithin = 2 * time.Second

func keepLog(ctx context.Context, tx pgx.Tx, category eventstore.Category, slot int, end int64) error {
	why, head, err := lockDiverged(ctx, tx, category, slot)
	if err != nil {
		return err
	}
	var compared, cursor int64
	if err := tx.QueryRow(ctx, `select r.compared, r.seqs[$3] from refold.relay_partition r join refold.category c on c.id = r.category and c.generation = r.generation
		where c.id = $1 and r.partition = $2 for update of r`, category.ID, slot%category.Partitions, slot/category.Partitions+1).Scan(&compared, &cursor); err != nil {
		return fmt.Errorf("reading the cursor of slot %d of %s: %w", slot, category.Name, err)
	}
	// The next owner compares from there on, and would stop at the lost branch again.
	if compared < end || end <= why.offset {
		return fmt.Errorf("slot %d of %s: %w", slot, category.Name, ErrComparing)
	}
	// The topic may contradict an event far behind the first one that it lacks.
	place := place{seq: min(why.seq-1, head.seq, cursor)}
	if place.seq > 0 {
		if err := tx.QueryRow(ctx, `select id from refold.event where category = $1 and slot = $2 and seq = $3`, category.ID, slot, place.seq).Scan((*[16]byte)(&place.id)); err != nil {
			return fmt.Errorf("reading %s/%d/%d: %w", category.Name, slot, place.seq, err)
		}
	}
	if err := noteRepair(ctx, tx, category, slot, Repair{Seq: place.seq + 1, Until: end}); err != nil {
		return err
	}
	return resume(ctx, tx, category, slot, place)
}

// Restore takes the topic's side in a divergence: events that the database has
// lost are put back from the topic, with their ids, versions and times. It refuses
// with [ErrTaken] once other events stand in their places. Claims and idempotency
// keys of the lost appends are in no topic and do not come back. It returns the
// number of events.
func Restore(ctx context.Context, pool *pgxpool.Pool, cfg kafka.Config, category eventstore.Category, slot int) (n int, err error) {
	relayed, err := slotRecords(ctx, cfg, category, slot)
	if err != nil {
		return 0, err
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		why, head, err := lockDiverged(ctx, tx, category, slot)
		if err != nil {
			return err
		}
		if head.seq >= why.seq {
			return fmt.Errorf("%w: %s/%d/%d is event %s now; --keep-log keeps it", ErrTaken, category.Name, slot, head.seq, head.id)
		}
		for i := range relayed {
			e := &relayed[i]
			if e.Seq <= head.seq {
				continue
			}
			if e.Seq != head.seq+1 || e.PrevID != head.id {
				return fmt.Errorf("%w: the topic goes on with event %s at seq %d behind event %s, the log ends with event %s at seq %d",
					ErrTaken, e.ID, e.Seq, e.PrevID, head.id, head.seq)
			}
			if err := putBack(ctx, tx, category, e); err != nil {
				return err
			}
			head = place{e.Seq, e.ID}
			n++
		}
		return resume(ctx, tx, category, slot, head)
	})
	return n, err
}

// lockDiverged locks the slot against appends and returns its stop and its head.
func lockDiverged(ctx context.Context, tx pgx.Tx, category eventstore.Category, slot int) (why stop, head place, err error) {
	if _, err = tx.Exec(ctx, `select from refold.slot where category = $1 and slot = $2 for no key update`, category.ID, slot); err != nil {
		return why, head, fmt.Errorf("locking slot %d of %s: %w", slot, category.Name, err)
	}
	err = tx.QueryRow(ctx, `select o.seq, coalesce(o.topic_offset, -1) from refold.relay_stop o join refold.category c on c.id = o.category and c.generation = o.generation
		where o.category = $1 and o.slot = $2 and o.kind = 'diverged' for update of o`, category.ID, slot).Scan(&why.seq, &why.offset)
	if errors.Is(err, pgx.ErrNoRows) {
		return why, head, fmt.Errorf("%w: slot %d of %s", ErrNotDiverged, slot, category.Name)
	}
	if err != nil {
		return why, head, fmt.Errorf("reading why slot %d of %s is stopped: %w", slot, category.Name, err)
	}
	err = tx.QueryRow(ctx, `select seq, id from refold.event where category = $1 and slot = $2 order by seq desc limit 1`, category.ID, slot).Scan(&head.seq, (*[16]byte)(&head.id))
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return why, head, fmt.Errorf("reading the head of slot %d of %s: %w", slot, category.Name, err)
	}
	return why, head, nil
}

// putBack inserts a lost event. Its stream must stand at the version before it.
func putBack(ctx context.Context, tx pgx.Tx, category eventstore.Category, e *event.Event) error {
	tag, err := tx.Exec(ctx, `insert into refold.event (category, slot, seq, version, id, time, recorded, stream, type, value, actor, correlation_id, causation_id, traceparent)
		select $1, $2, $3, $4::bigint, $5, $6, $7, $8::text, $9, $10, nullif($11, ''), nullif($12, ''), nullif($13, ''), nullif($14, '')
		where $4::bigint - 1 = coalesce((select max(version) from refold.event where category = $1 and stream = $8::text), 0)`,
		category.ID, e.Slot, e.Seq, e.Version, [16]byte(e.ID), e.Time.Std(), e.Recorded.Std(), e.Stream, e.Type, e.Value,
		e.Metadata.Actor, e.Metadata.CorrelationID, e.Metadata.CausationID, e.Metadata.Traceparent)
	if err != nil {
		return fmt.Errorf("putting event %s back at %s: %w", e.ID, e.Position(), err)
	}
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("%w: event %s is version %d of %s/%s, which has another version", ErrTaken, e.ID, e.Version, category.Name, e.Stream)
	}
	return nil
}

// resume lets the slot go on behind a place.
func resume(ctx context.Context, tx pgx.Tx, category eventstore.Category, slot int, behind place) error {
	at := slot/category.Partitions + 1
	tag, err := tx.Exec(ctx, `update refold.relay_partition r set seqs[$3] = $4, ids[$3] = $5, fence = fence + 1, nonce = null, owner = null, expires = '-infinity'
		from refold.category c where c.id = r.category and c.generation = r.generation and c.id = $1 and r.partition = $2`,
		category.ID, slot%category.Partitions, at, behind.seq, [16]byte(behind.id))
	if err != nil || tag.RowsAffected() != 1 {
		return fmt.Errorf("setting the cursor of slot %d of %s: %d rows: %w", slot, category.Name, tag.RowsAffected(), err)
	}
	if _, err := tx.Exec(ctx, `delete from refold.relay_stop o using refold.category c
		where c.id = o.category and c.generation = o.generation and c.id = $1 and o.slot = $2`, category.ID, slot); err != nil {
		return fmt.Errorf("letting slot %d of %s go on: %w", slot, category.Name, err)
	}
	return nil
}

// slotRecords reads the first occurrences of a slot's events from the topic.
func slotRecords(ctx context.Context, cfg kafka.Config, category eventstore.Category, slot int) ([]event.Event, error) {
	partition := int32(event.PartitionOf(slot, category.Partitions))
	end, err := endOf(ctx, cfg, category, slot)
	if err != nil {
		return nil, err
	}
	options, err := cfg.Options()
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(append(options, kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{category.Topic: {partition: kgo.NewOffset().AtStart()}}))...)
	if err != nil {
		return nil, fmt.Errorf("making a client to read %s: %w", category.Topic, err)
	}
	defer client.Close()
	var events []event.Event
	for next := int64(0); next < end; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("reading %s/%d: %w", category.Topic, partition, err)
		}
		for _, record := range fetches.Records() {
			next = record.Offset + 1
			var e event.Event
			if record.Attrs.IsControl() || kafka.Parse(record, category.Name, category.Slots, category.Partitions, &e) != nil || e.Slot != slot {
				continue
			}
			if len(events) == 0 || e.Seq > events[len(events)-1].Seq {
				events = append(events, e)
			}
		}
	}
	return events, nil
}
