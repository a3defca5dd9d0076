package relay

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	ensureSQL = `insert into refold.relay_partition (category, generation, partition, slots, seqs, ids)
		select c.id, c.generation, p, array_agg(s::smallint order by s), array_agg(0::bigint), array_agg('00000000-0000-0000-0000-000000000000'::uuid)
		from refold.category c, generate_series(0, c.partitions - 1) p, generate_series(p, c.slots - 1, c.partitions) s
		where not exists (select from refold.relay_partition r where r.category = c.id and r.generation = c.generation)
		group by c.id, c.generation, p on conflict do nothing`
	memberSQL = `insert into refold.relay_member (owner, expires) values ($1, clock_timestamp() + $2::interval)
		on conflict (owner) do update set expires = excluded.expires`
	sweepSQL = `delete from refold.relay_member where expires < clock_timestamp() - interval '1 hour'`
	shareSQL = `select (select count(*) from refold.relay_member where expires > clock_timestamp()),
		(select count(*) from refold.relay_partition r join refold.category c on c.id = r.category and c.generation = r.generation)`
	renewSQL = `update refold.relay_partition r set expires = clock_timestamp() + $6::interval
		from unnest($1::smallint[], $2::integer[], $3::integer[], $4::bigint[], $5::uuid[]) u (category, generation, partition, fence, nonce)
		where r.category = u.category and r.generation = u.generation and r.partition = u.partition and r.fence = u.fence and r.nonce = u.nonce
		returning r.category, r.generation, r.partition`
	takeSQL = `update refold.relay_partition r set owner = $1, fence = fence + 1, nonce = $2, expires = clock_timestamp() + $3::interval
		from refold.category c
		where c.id = r.category and (r.category, r.generation, r.partition) in (
			select o.category, o.generation, o.partition from refold.relay_partition o
			join refold.category d on d.id = o.category and d.generation = o.generation
			where o.expires <= clock_timestamp() or $5 and o.owner = $1 order by o.expires, o.category, o.partition limit $4 for update of o skip locked)
		returning r.category, r.generation, r.partition, c.name, c.topic, c.slots, c.partitions, r.fence, r.slots, r.seqs, r.ids, r.compared, r.topic_id, coalesce(r.alarm, '')`
	stopsSQL = `select category, generation, slot, seq, kind, event, topic_event, coalesce(topic_offset, -1), reason
		from refold.relay_stop where category = any($1)`
	giveBackSQL = `update refold.relay_partition set expires = '-infinity', owner = null
		where category = $1 and generation = $2 and partition = $3 and fence = $4 and nonce = $5`
	noteSQL = `update refold.relay_partition set alarm = nullif($6, '')
		where category = $1 and generation = $2 and partition = $3 and fence = $4 and nonce = $5`
)

// share renews the leases, takes over what nobody owns, up to a fair share, and
// gives back what is beyond it.
func (s *session) share(ctx context.Context) error {
	lease := s.cfg.Lease.String()
	trip := &pgx.Batch{}
	trip.Queue(ensureSQL)
	trip.Queue(memberSQL, s.cfg.Owner, lease)
	trip.Queue(sweepSQL)
	if err := s.conn.SendBatch(ctx, trip).Close(); err != nil {
		return fmt.Errorf("renewing the membership: %w", err)
	}
	var members, partitions int
	if err := s.conn.QueryRow(ctx, shareSQL).Scan(&members, &partitions); err != nil {
		return fmt.Errorf("counting members: %w", err)
	}
	if err := s.renew(ctx, lease); err != nil {
		return err
	}
	fair := (partitions + max(1, members) - 1) / max(1, members)
	if err := s.leave(ctx, len(s.owned)-fair); err != nil {
		return err
	}
	if err := s.take(ctx, fair-len(s.owned), lease); err != nil {
		return err
	}
	if err := s.noteAlarms(ctx); err != nil {
		return err
	}
	s.lookAgain()
	s.lookAtEnds()
	return s.measure(ctx)
}

// renew extends the leases and drops what is in other hands.
func (s *session) renew(ctx context.Context, lease string) error {
	if len(s.owned) == 0 {
		return nil
	}
	var categories []int16
	var generations, numbers []int
	var fences []int64
	var nonces [][16]byte
	for k, p := range s.owned {
		categories, generations, numbers = append(categories, k.category), append(generations, k.generation), append(numbers, k.number)
		fences, nonces = append(fences, p.fence), append(nonces, p.nonce)
	}
	rows, err := s.conn.Query(ctx, renewSQL, categories, generations, numbers, fences, nonces, lease)
	if err != nil {
		return fmt.Errorf("renewing leases: %w", err)
	}
	ours := make(map[key]bool)
	var k key
	if _, err := pgx.ForEachRow(rows, []any{&k.category, &k.generation, &k.number}, func() error { ours[k] = true; return nil }); err != nil {
		return fmt.Errorf("renewing leases: %w", err)
	}
	for k, p := range maps.Clone(s.owned) {
		if !ours[k] && !s.faults.noFence {
			s.drop(p, "its lease was taken over")
		}
	}
	return nil
}

// drop forgets a partition that another relay has taken; answers that still come
// for it are ignored.
func (s *session) drop(p *partition, why string) {
	s.log.Warn("relay lost a partition", "topic", p.topic, "partition", p.number, "err", why)
	s.metrics.fenced.Inc()
	s.forget(p)
}

func (s *session) forget(p *partition) {
	s.abandon(p)
	s.recycle(p.staged)
	p.staged = nil
	s.leaveTail(p)
	delete(s.owned, p.key)
}

// leave gives back so many partitions, each once it is quiet.
func (s *session) leave(ctx context.Context, n int) error {
	for _, p := range s.owned {
		if p.leaving {
			n--
		}
	}
	for _, p := range maps.Clone(s.owned) {
		if !p.leaving && n > 0 {
			p.leaving = true
			n--
		}
		if p.leaving && p.flying == nil {
			if err := s.moveCursors(ctx); err != nil {
				return err
			}
			if err := s.giveBack(ctx, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// giveBack releases a partition whose cursor stands where it should.
func (s *session) giveBack(ctx context.Context, p *partition) error {
	if s.owned[p.key] != p {
		return nil
	}
	if _, err := s.conn.Exec(ctx, giveBackSQL, p.category, p.generation, p.number, p.fence, p.nonce); err != nil {
		return fmt.Errorf("giving back %s: %w", p, err)
	}
	s.forget(p)
	return nil
}

// take takes over at most n partitions.
func (s *session) take(ctx context.Context, n int, lease string) error {
	if n <= 0 {
		return nil
	}
	var nonce [16]byte
	rand.Read(nonce[:]) // never fails, see crypto/rand
	// What an earlier session of ours held need not wait for its lease: that session
	// is over, and the fence rises.
	first := len(s.owned) == 0
	rows, err := s.conn.Query(ctx, takeSQL, s.cfg.Owner, nonce, lease, n, first)
	if err != nil {
		return fmt.Errorf("taking over partitions: %w", err)
	}
	taken, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*partition, error) { return scanPartition(row, nonce) })
	if err != nil {
		return fmt.Errorf("taking over partitions: %w", err)
	}
	var categories []int16
	for _, p := range taken {
		s.owned[p.key] = p
		categories = append(categories, p.category)
	}
	if len(taken) == 0 {
		return nil
	}
	if err := s.loadStops(ctx, categories); err != nil {
		return err
	}
	return s.checkPlaces(ctx, taken)
}

func scanPartition(row pgx.CollectableRow, nonce [16]byte) (*partition, error) {
	p := &partition{nonce: nonce, limit: maxRecords, probe: -1}
	var slotCount, partitions int16
	var numbers []int16
	var seqs []int64
	var ids [][16]byte
	var topicID *[16]byte
	err := row.Scan(&p.category, &p.generation, &p.number, &p.name, &p.topic, &slotCount, &partitions, &p.fence, &numbers, &seqs, &ids, &p.end, &topicID, &p.noted)
	if err != nil {
		return nil, err
	}
	p.slotCount, p.partitions = int(slotCount), int(partitions)
	for i, number := range numbers {
		at := place{seqs[i], ids[i]}
		p.slots = append(p.slots, slot{number: int(number), kept: at, acked: at, sent: at, look: true})
	}
	if topicID != nil {
		p.topicID, p.knownTopic = *topicID, true
	}
	return p, nil
}

// troubleAfter is how long a batch may fail to be sent before the partition's row
// says so.
const troubleAfter = 5 * time.Second

// noteAlarms writes into the partitions' rows why they do not flow.
func (s *session) noteAlarms(ctx context.Context) error {
	for _, p := range s.owned {
		note := ""
		switch {
		case p.phase == alarmed:
			note = p.alarm
		case p.trouble != "" && time.Since(p.troubled) > troubleAfter:
			note = p.trouble
		case p.phase != flowing:
			continue // not known yet
		}
		if note == p.noted {
			continue
		}
		if _, err := s.conn.Exec(ctx, noteSQL, p.category, p.generation, p.number, p.fence, p.nonce, note); err != nil {
			return fmt.Errorf("noting the alarm of %s: %w", p, err)
		}
		if p.phase != alarmed && note != "" {
			s.log.Error("relay cannot send events", "topic", p.topic, "partition", p.number, "err", note)
		}
		p.noted = note
	}
	return nil
}
