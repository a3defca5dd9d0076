package relay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/kafka"
)

type key struct {
	category   int16
	generation int
	partition  int
}

// partition is a topic partition that this session owns.
type partition struct {
	key
	number       int
	name         string // of the category
	topic        string
	slotCount    int
	partitions   int
	fence        int64
	nonce        [16]byte
	slots        []int16
	sent         []place // by slot: the last event handed to the producer
	acked        []place // by slot: the last event of the unbroken run of acknowledgements
	end          int64   // offset up to which every record is known
	compared     int64   // as the cursor row has it
	foreign      int64   // counted and not yet written
	dirty        bool    // acked or end moved since the cursor was written
	pending      int     // records in flight
	failed       bool    // a record failed: wait for the rest, then begin again at the cursor
	stopped      bool    // a divergence or another topic: nothing is sent
	topicID      [16]byte
	knownTopicID bool
}

// place is an event of a slot; the zero value stands before the first.
type place struct {
	seq int64
	id  event.ID
}

func (p *partition) index(slot int) int { return slices.Index(p.slots, int16(slot)) }

func (p *partition) String() string { return fmt.Sprintf("%s/%d", p.topic, p.number) }

const (
	ensureSQL = `insert into refold.relay_partition (category, generation, partition, slots, seqs, ids)
		select c.id, c.generation, p, array_agg(s::smallint order by s), array_agg(0::bigint), array_agg('00000000-0000-0000-0000-000000000000'::uuid)
		from refold.category c, generate_series(0, c.partitions - 1) p, generate_series(p, c.slots - 1, c.partitions) s
		where not exists (select from refold.relay_partition r where r.category = c.id and r.generation = c.generation)
		group by c.id, c.generation, p on conflict do nothing`
	memberSQL = `insert into refold.relay_member (owner, expires) values ($1, clock_timestamp() + $2::interval)
		on conflict (owner) do update set expires = excluded.expires`
	shareSQL = `select (select count(*) from refold.relay_member where expires > clock_timestamp()),
		(select count(*) from refold.relay_partition)`
	renewSQL = `update refold.relay_partition set expires = clock_timestamp() + $6::interval
		where category = $1 and generation = $2 and partition = $3 and fence = $4 and nonce = $5`
	takeSQL = `update refold.relay_partition r set owner = $1, fence = fence + 1, nonce = $2, expires = clock_timestamp() + $3::interval
		from refold.category c
		where c.id = r.category and (r.category, r.generation, r.partition) in (
			select category, generation, partition from refold.relay_partition
			where expires <= clock_timestamp() order by expires, category, partition limit $4 for update skip locked)
		returning r.category, r.generation, r.partition, c.name, c.topic, c.slots, c.partitions, r.fence, r.slots, r.seqs, r.ids, r.compared, r.topic_id`
)

// share renews the leases, takes over what nobody owns, up to a fair share, and
// gives back what is beyond it.
func (r *Relay) share(ctx context.Context) error {
	lease := r.cfg.Lease.String()
	if _, err := r.conn.Exec(ctx, ensureSQL); err != nil {
		return fmt.Errorf("making the partitions' rows: %w", err)
	}
	if _, err := r.conn.Exec(ctx, memberSQL, r.cfg.Owner, lease); err != nil {
		return fmt.Errorf("renewing the membership: %w", err)
	}
	var members, partitions int
	if err := r.conn.QueryRow(ctx, shareSQL).Scan(&members, &partitions); err != nil {
		return fmt.Errorf("counting members: %w", err)
	}
	for k, p := range r.owned {
		tag, err := r.conn.Exec(ctx, renewSQL, p.category, p.generation, p.number, p.fence, p.nonce, lease)
		if err != nil {
			return fmt.Errorf("renewing the lease of %s: %w", p, err)
		}
		if tag.RowsAffected() != 1 {
			r.drop(k, "its lease was taken over")
		}
	}
	fair := (partitions + max(1, members) - 1) / max(1, members)
	if err := r.giveBack(ctx, fair); err != nil {
		return err
	}
	if err := r.take(ctx, fair-len(r.owned), lease); err != nil {
		return err
	}
	if err := r.lookAtEnds(ctx); err != nil {
		return err
	}
	return r.measure(ctx)
}

// drop forgets a partition; acknowledgements that still come for it are ignored.
func (r *Relay) drop(k key, why string) {
	r.log.Warn("relay lost a partition", "topic", r.owned[k].topic, "partition", k.partition, "err", why)
	r.metrics.fenced.Inc()
	r.inFlight -= r.owned[k].pending
	delete(r.owned, k)
}

// giveBack releases partitions beyond the fair share, once they are quiet.
func (r *Relay) giveBack(ctx context.Context, fair int) error {
	for k, p := range r.owned {
		if len(r.owned) <= fair {
			return nil
		}
		if p.pending > 0 || p.dirty {
			continue
		}
		if _, err := r.conn.Exec(ctx, `update refold.relay_partition set expires = '-infinity', owner = null
			where category = $1 and generation = $2 and partition = $3 and fence = $4 and nonce = $5`, p.category, p.generation, p.number, p.fence, p.nonce); err != nil {
			return fmt.Errorf("giving back %s: %w", p, err)
		}
		delete(r.owned, k)
	}
	return nil
}

// take takes over at most n partitions and compares their tails.
func (r *Relay) take(ctx context.Context, n int, lease string) error {
	if n <= 0 {
		return nil
	}
	var nonce [16]byte
	rand.Read(nonce[:]) // never fails, see crypto/rand
	rows, err := r.conn.Query(ctx, takeSQL, r.cfg.Owner, nonce, lease, n)
	if err != nil {
		return fmt.Errorf("taking over partitions: %w", err)
	}
	taken, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*partition, error) {
		p := &partition{nonce: nonce}
		var slots16, partitions16 int16
		var seqs []int64
		var ids [][16]byte
		var topicID *[16]byte
		err := row.Scan(&p.category, &p.generation, &p.number, &p.name, &p.topic, &slots16, &partitions16, &p.fence, &p.slots, &seqs, &ids, &p.compared, &topicID)
		if err != nil {
			return nil, err
		}
		p.partition, p.slotCount, p.partitions = p.number, int(slots16), int(partitions16)
		for i := range seqs {
			p.acked = append(p.acked, place{seqs[i], ids[i]})
		}
		if topicID != nil {
			p.topicID, p.knownTopicID = *topicID, true
		}
		return p, nil
	})
	if err != nil {
		return fmt.Errorf("taking over partitions: %w", err)
	}
	for _, p := range taken {
		r.owned[p.key] = p
	}
	for _, p := range taken {
		if err := r.takeOver(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// takeOver checks that the topic is the one that the cursor speaks of, and that
// every record which was not compared yet is the event that it claims to be.
// Events that a former owner has sent and not noted move the cursor.
func (r *Relay) takeOver(ctx context.Context, p *partition) error {
	topic, err := kafka.ReadTopic(ctx, r.admin, p.topic)
	if id, ours := r.created[p.topic]; ours && err != nil {
		topic, err = kafka.Topic{ID: id, Partitions: p.partitions}, nil
	}
	switch {
	case errors.Is(err, kafka.ErrNoTopic) && p.knownTopicID:
		return r.alarm(ctx, p, "the topic is gone; its events are in the event table, and nothing is relayed until it is restored")
	case errors.Is(err, kafka.ErrNoTopic):
		topic, err = kafka.EnsureTopic(ctx, r.admin, p.topic, p.partitions)
		r.created[p.topic] = topic.ID
	}
	if err != nil {
		return err
	}
	if p.knownTopicID && topic.ID != p.topicID {
		return r.alarm(ctx, p, fmt.Sprintf("the topic was recreated: its id is %x, the cursor speaks of %x", topic.ID, p.topicID))
	}
	if !p.knownTopicID {
		if _, err := r.conn.Exec(ctx, `update refold.relay_partition set topic_id = $6
			where category = $1 and generation = $2 and partition = $3 and fence = $4 and nonce = $5`, p.category, p.generation, p.number, p.fence, p.nonce, topic.ID); err != nil {
			return fmt.Errorf("noting the id of %s: %w", p.topic, err)
		}
		p.topicID, p.knownTopicID = topic.ID, true
	}
	p.end = p.compared
	end := int64(0)
	if _, fresh := r.created[p.topic]; !fresh || p.compared > 0 { // one that we just made is not known to every broker yet, and was empty
		if end, err = r.endOffset(ctx, p); err != nil {
			return err
		}
	}
	if p.compared > end {
		return r.alarm(ctx, p, fmt.Sprintf("the partition ends at offset %d and was compared up to %d: records were lost", end, p.compared))
	}
	if r.faults.noCompare {
		p.end = end
	} else if err := r.compareTo(ctx, p, end); err != nil {
		return err
	}
	p.sent = slices.Clone(p.acked)
	if !p.stopped {
		_, err = r.conn.Exec(ctx, `update refold.relay_partition set alarm = null where category = $1 and generation = $2 and partition = $3 and fence = $4 and nonce = $5 and alarm is not null`,
			p.category, p.generation, p.number, p.fence, p.nonce)
	}
	return err
}

// alarm stops a partition and says why, in the log, in the database and in the
// metrics. It stays with its owner, so that nobody else starts over.
func (r *Relay) alarm(ctx context.Context, p *partition, why string) error {
	p.stopped = true
	r.log.Error("relay stops a partition", "topic", p.topic, "partition", p.number, "err", why)
	r.metrics.stopped.WithLabelValues(p.topic).Inc()
	_, err := r.conn.Exec(ctx, `update refold.relay_partition set alarm = $6
		where category = $1 and generation = $2 and partition = $3 and fence = $4 and nonce = $5`, p.category, p.generation, p.number, p.fence, p.nonce, why)
	return err
}
