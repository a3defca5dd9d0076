package relay

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
)

// Repair tells the two branches of a slot apart that a topic holds after
// [KeepLog]: of what lies below the offset Until, everything from Seq on was lost by
// the database. The log's own events lie behind it.
type Repair struct {
	Seq, Until int64
}

// Branches holds the repairs of a category's present topic, by slot.
type Branches map[int][]Repair

// Lost tells whether the record of an event is of a branch that the log has lost.
func (b Branches) Lost(slot int, seq, offset int64) bool {
	for _, r := range b[slot] {
		if seq >= r.Seq && offset < r.Until {
			return true
		}
	}
	return false
}

// Repairs reads the repairs of a category's topic; none of one that was made anew
// since. A database without the table has none.
func Repairs(ctx context.Context, q interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, category eventstore.Category, topic [16]byte) (Branches, error) {
	rows, err := q.Query(ctx, `select slot, seq, until_offset from refold.relay_repair where category = $1 and generation = $2 and topic_id = $3`,
		category.ID, category.Generation, topic)
	if err != nil {
		return nil, fmt.Errorf("reading the repairs of %s: %w", category.Topic, err)
	}
	found := make(Branches)
	var slot int16
	var r Repair
	if _, err := pgx.ForEachRow(rows, []any{&slot, &r.Seq, &r.Until}, func() error {
		found[int(slot)] = append(found[int(slot)], r)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("reading the repairs of %s: %w", category.Topic, err)
	}
	return found, nil
}

// noteRepair writes a repair down, of the topic that the cursor speaks of.
func noteRepair(ctx context.Context, tx pgx.Tx, category eventstore.Category, slot int, r Repair) error {
	tag, err := tx.Exec(ctx, `insert into refold.relay_repair (category, generation, slot, seq, until_offset, topic_id)
		select p.category, p.generation, $3, $4, $5, p.topic_id from refold.relay_partition p join refold.category c on c.id = p.category and c.generation = p.generation
		where c.id = $1 and p.partition = $2
		on conflict (category, generation, slot, until_offset) do update set seq = least(relay_repair.seq, excluded.seq), topic_id = excluded.topic_id`,
		category.ID, event.PartitionOf(slot, category.Partitions), slot, r.Seq, r.Until)
	if err != nil || tag.RowsAffected() != 1 {
		return fmt.Errorf("noting the repair of slot %d of %s: %d rows: %w", slot, category.Name, tag.RowsAffected(), err)
	}
	return nil
}

// endOf returns the end of the partition that holds a slot.
func endOf(ctx context.Context, cfg kafka.Config, category eventstore.Category, slot int) (int64, error) {
	options, err := cfg.Options()
	if err != nil {
		return 0, err
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return 0, fmt.Errorf("making a client to look at %s: %w", category.Topic, err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, category.Topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("listing the ends of %s: %w", category.Topic, err)
	}
	end, ok := ends.Lookup(category.Topic, int32(event.PartitionOf(slot, category.Partitions)))
	if !ok {
		return 0, fmt.Errorf("the end of the partition of slot %d in %s is not known", slot, category.Topic)
	}
	return end.Offset, nil
}
