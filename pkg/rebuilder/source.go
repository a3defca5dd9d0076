package rebuilder

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/relay"
)

// taker takes what a source reads.
type taker interface {
	// wants tells whether the events of a stream are of use in this pass; those of
	// others may be left out.
	wants(stream []byte) bool
	// event takes an event, which is valid during the call only. e is nil for a
	// record that is not ours.
	event(e *event.Event) error
	// chunk is called after a number of events, done of the partition's total.
	chunk(ctx context.Context, events int, bytes, done int64) error
}

// readTopic reads a partition from its start to the pinned end, without a group.
func (j *job) readTopic(ctx context.Context, p *part, to taker) error {
	if p.start >= p.end {
		return nil
	}
	lost, err := relay.Repairs(ctx, j.pool, p.category, p.topicID)
	if err != nil {
		return err
	}
	client, err := j.client()
	if err != nil {
		return err
	}
	defer client.Close()
	fetching, stop := context.WithCancel(ctx)
	answers := make(chan fetched) // one is on its way while another is folded
	f := &fetcher{client: client, part: p, leader: -1, at: p.start}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.run(fetching, p.end, answers)
	}()
	defer func() { stop(); <-done }()
	walk := newBatches(p.category.Topic, p.partition)
	defer walk.close()
	t := &topicTaker{part: p, to: to, lost: lost, at: p.start, step: j.limiter.step()}
	take := func(r *kgo.Record) error { return t.record(ctx, r) }
	silent := false
	for answer := range answers {
		if answer.err != nil {
			return answer.err
		}
		before := t.at
		if err := walk.walk(answer.data, take); err != nil {
			return err
		}
		if t.at == before {
			silent = true
			j.meter.wait(fmt.Sprintf("%s/%d gives nothing from offset %d on", p.category.Topic, p.partition, t.at))
			continue
		}
		if silent {
			silent = false
			j.meter.wait("")
		}
		if err := t.chunk(ctx); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// topicTaker makes events of records.
type topicTaker struct {
	part   *part
	to     taker
	lost   relay.Branches
	at     int64 // the next offset
	event  event.Event
	step   int // events between chunks
	events int // since the last chunk
	size   int64
}

func (t *topicTaker) record(ctx context.Context, r *kgo.Record) error {
	if err := t.take(r); err != nil || t.events < t.step {
		return err
	}
	return t.chunk(ctx)
}

func (t *topicTaker) chunk(ctx context.Context) error {
	events, size := t.events, t.size
	t.events, t.size = 0, 0
	return t.to.chunk(ctx, events, size, t.at-t.part.start)
}

func (t *topicTaker) take(r *kgo.Record) error {
	if r.Offset < t.at || r.Offset >= t.part.end {
		return nil // a batch may begin before what was asked for, and go on beyond
	}
	t.events, t.size, t.at = t.events+1, t.size+int64(len(r.Key)+len(r.Value)), r.Offset+1
	if len(r.Key) > 0 && !t.to.wants(r.Key) {
		return nil
	}
	c := t.part.category
	if kafka.Parse(r, c.Name, c.Slots, c.Partitions, &t.event) != nil {
		return t.to.event(nil) // anybody may write to a topic
	}
	if len(t.lost) > 0 && t.lost.Lost(t.event.Slot, t.event.Seq, r.Offset) {
		return t.to.event(nil)
	}
	return t.to.event(&t.event)
}

// errRecreated says that a topic is not the one that was pinned.
var errRecreated = errors.New("the topic was truncated or made anew")

// errBroker marks what the brokers may do better the next time.
var errBroker = errors.New("the brokers do not answer as they should")

const tableSQL = `select seq, version, id, time, recorded, stream, type, value, actor, correlation_id, causation_id, traceparent
	from refold.event where category = $1 and slot = $2 and seq > $3 and seq <= $4 order by seq`

// tableSettings has ranges read along the primary key. The planner would collect
// the pages of each in a bitmap, sort the events, and deal that out to workers of its
// own: five times the work.
const tableSettings = `set max_parallel_workers_per_gather = 0; set enable_bitmapscan = off; set enable_seqscan = off; set enable_sort = off`

// tableChunk is how many events of a slot are read in one statement, so that no
// snapshot lives long.
const tableChunk = 20_000

// readTable reads the slots of a partition from the event table, up to heads, at
// most step events in one statement.
func readTable(ctx context.Context, conn *pgx.Conn, c eventstore.Category, slots []int, heads []int64, step int, to taker) error {
	step = min(step, tableChunk)
	var done int64
	for i, slot := range slots {
		for after := int64(0); after < heads[i]; {
			last := min(heads[i], after+int64(step))
			n, size, err := readRange(ctx, conn, c, slot, after, last, to)
			if err != nil {
				return err
			}
			after, done = last, done+int64(n)
			if err := to.chunk(ctx, n, size, done); err != nil {
				return err
			}
		}
	}
	return nil
}

func readRange(ctx context.Context, conn *pgx.Conn, c eventstore.Category, slot int, after, last int64, to taker) (n int, size int64, err error) {
	rows, err := conn.Query(ctx, tableSQL, pgx.QueryResultFormats{pgx.BinaryFormatCode}, c.ID, int16(slot), after, last)
	if err != nil {
		return 0, 0, fmt.Errorf("reading events of %s/%d: %w", c.Name, slot, err)
	}
	defer rows.Close()
	e := event.Event{Category: c.Name, Slot: slot}
	var types names
	for rows.Next() {
		raw := rows.RawValues()
		n, size = n+1, size+int64(len(raw[5])+len(raw[7]))
		if !to.wants(raw[5]) {
			continue
		}
		e.Seq, e.Version, e.ID = bigint(raw[0]), bigint(raw[1]), event.ID(raw[2])
		e.Time, e.Recorded = timestamp(raw[3]), timestamp(raw[4])
		e.Stream, e.Type, e.Value = textOf(raw[5]), types.of(raw[6]), raw[7]
		e.Metadata = event.Metadata{Actor: textOf(raw[8]), CorrelationID: textOf(raw[9]), CausationID: textOf(raw[10]), Traceparent: textOf(raw[11])}
		if err := to.event(&e); err != nil {
			return n, size, err
		}
		e.PrevID = e.ID
	}
	if err := rows.Err(); err != nil {
		return n, size, fmt.Errorf("reading events of %s/%d: %w", c.Name, slot, err)
	}
	return n, size, nil
}
