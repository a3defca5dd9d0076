package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
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

// stallTime is how long a topic may give nothing before it is said why.
const stallTime = 10 * time.Second

// readTopic reads a partition from its start to the pinned end, without a group.
func (j *job) readTopic(ctx context.Context, p *part, to taker) error {
	if p.start >= p.end {
		return nil
	}
	client, err := j.client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{p.category.Topic: {int32(p.partition): kgo.NewOffset().At(p.start)}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()), kgo.KeepControlRecords(), kgo.FetchMaxWait(500*time.Millisecond),
		kgo.FetchMaxBytes(fetchBytes), kgo.FetchMaxPartitionBytes(fetchBytes), kgo.MaxBufferedRecords(20_000), kgo.MaxBufferedBytes(4*fetchBytes))
	if err != nil {
		return err
	}
	defer client.Close()
	var e event.Event
	at := p.start
	for at < p.end {
		poll, cancel := context.WithTimeout(ctx, stallTime)
		fetches := client.PollRecords(poll, 10_000)
		cancel()
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := fetchError(fetches, p); err != nil {
			return err
		}
		var n int
		var size int64
		for iter := fetches.RecordIter(); !iter.Done(); {
			record := iter.Next()
			if record.Offset >= p.end {
				break
			}
			n, size, at = n+1, size+int64(len(record.Key)+len(record.Value)), record.Offset+1
			if record.Attrs.IsControl() || len(record.Key) > 0 && !to.wants(record.Key) {
				continue
			}
			event := &e
			if kafka.Parse(record, p.category.Name, p.category.Slots, p.category.Partitions, event) != nil {
				event = nil // anybody may write to a topic
			}
			if err := to.event(event); err != nil {
				return err
			}
		}
		if n == 0 {
			j.meter.wait(fmt.Sprintf("%s/%d gives nothing from offset %d on", p.category.Topic, p.partition, at))
			continue
		}
		if err := to.chunk(ctx, n, size, at-p.start); err != nil {
			return err
		}
	}
	return nil
}

// fetchBytes is the most that one fetch brings; what is buffered counts against
// the memory of the process.
const fetchBytes = 4 << 20

// errRecreated says that a topic is not the one that was pinned.
var errRecreated = errors.New("the topic was truncated or made anew while it was read")

func fetchError(fetches kgo.Fetches, p *part) error {
	for _, e := range fetches.Errors() {
		var lost *kgo.ErrDataLoss
		switch {
		case errors.Is(e.Err, context.DeadlineExceeded):
		case errors.As(e.Err, &lost), errors.Is(e.Err, kerr.OffsetOutOfRange), errors.Is(e.Err, kerr.UnknownTopicID), errors.Is(e.Err, kerr.InconsistentTopicID):
			return fmt.Errorf("%w: %s/%d: %w", errRecreated, p.category.Topic, p.partition, e.Err)
		default:
			return fmt.Errorf("reading %s/%d: %w: %w", p.category.Topic, p.partition, errBroker, e.Err)
		}
	}
	return nil
}

// errBroker marks what the brokers may do better the next time.
var errBroker = errors.New("the brokers do not answer as they should")

const tableSQL = `select seq, version, id, time, recorded, stream, type, value, actor, correlation_id, causation_id, traceparent
	from refold.event where category = $1 and slot = $2 and seq > $3 and seq <= $4 order by seq`

// tableChunk is how many events of a slot are read in one statement, so that no
// snapshot lives long.
const tableChunk = 20_000

// readTable reads the slots of a partition from the event table, up to heads.
func readTable(ctx context.Context, conn *pgx.Conn, c eventstore.Category, slots []int, heads []int64, to taker) error {
	var done int64
	for i, slot := range slots {
		for after := int64(0); after < heads[i]; {
			to1 := min(heads[i], after+tableChunk)
			n, size, err := readRange(ctx, conn, c, slot, after, to1, to)
			if err != nil {
				return err
			}
			after, done = to1, done+int64(n)
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
