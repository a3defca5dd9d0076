package eventstore

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
)

const prepareSQL = `select recorded, heads, versions, taken_keys, taken_requests, taken_events, holder_categories, holder_streams
	from refold.append_prepare($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`

const insertSQL = `insert into refold.event (category, slot, seq, version, id, time, recorded, stream, type, value, actor, correlation_id, causation_id, traceparent)
	select c, s, q, v, i, t, $14, st, ty, va, nullif(ac, ''), nullif(co, ''), nullif(ca, ''), nullif(tp, '')
	from unnest($1::smallint[], $2::smallint[], $3::bigint[], $4::bigint[], $5::uuid[], $6::timestamptz[], $7::text[], $8::text[], $9::bytea[],
	            $10::text[], $11::text[], $12::text[], $13::text[]) u (c, s, q, v, i, t, st, ty, va, ac, co, ca, tp)`

// lostCommit says that a COMMIT was sent and its answer did not come.
type lostCommit struct {
	backend postgres.Backend
	// first is one event of the transaction: it is there if all are.
	first    known
	id       event.ID
	category int16
	outcomes []outcome
	batch    *batch
	cause    error
}

func (e *lostCommit) Error() string {
	return fmt.Sprintf("the answer to a COMMIT was lost: %v", e.cause)
}
func (e *lostCommit) Unwrap() error { return e.cause }

// attempt carries out the batch once. With lost it first finds out, under the
// same locks, whether that commit took place, and is done if it did.
func (l *lane) attempt(ctx context.Context, requests []*Pending, lost *lostCommit) (outcomes []outcome, b *batch, err error) {
	if err := l.connect(ctx); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			l.disconnect() // rolls back, and leaves nothing of the session behind
		}
	}()
	if lost != nil { // its session may hold our locks still, with the COMMIT under way
		if _, err := lost.backend.Terminate(ctx, l.conn); err != nil {
			return nil, nil, err
		}
	}
	s := scopeOf(requests)
	if b, err = l.lockAndRead(ctx, &s); err != nil {
		return nil, nil, err
	}
	if lost != nil {
		happened, err := l.happened(ctx, lost)
		if err != nil {
			return nil, nil, err
		}
		if happened {
			_, err := l.conn.Exec(ctx, "rollback")
			return lost.outcomes, lost.batch, err
		}
	}
	for _, p := range requests {
		outcomes = append(outcomes, b.judge(p.request))
	}
	return outcomes, b, l.write(ctx, &s, b, outcomes)
}

// lockAndRead is the first trip.
func (l *lane) lockAndRead(ctx context.Context, s *scope) (*batch, error) {
	var slotCategories, slotNumbers, streamCategories, chosenCategories []int16
	var streams, keys, namespaces, values []string
	var hashes, events [][]byte
	var chosen []event.ID
	for _, k := range s.slots {
		slotCategories, slotNumbers = append(slotCategories, k.category), append(slotNumbers, int16(k.slot))
	}
	for _, k := range s.streams {
		streamCategories, streams = append(streamCategories, k.category), append(streams, k.stream)
	}
	for _, r := range s.keys {
		keys, hashes, events = append(keys, r.Key), append(hashes, r.Hash), append(events, r.ids())
	}
	for _, k := range s.chosen {
		chosenCategories, chosen = append(chosenCategories, k.category), append(chosen, k.id)
	}
	for _, c := range s.claims {
		namespaces, values = append(namespaces, c.Namespace), append(values, c.Value)
	}
	var recorded time.Time
	var heads, versions []int64
	var takenKeys []string
	var takenRequests, takenEvents [][]byte
	var holderCategories []*int16
	var holderStreams []*string

	trip := &pgx.Batch{}
	trip.Queue("begin isolation level read committed")
	trip.Queue(prepareSQL, emptyNotNull(slotCategories), emptyNotNull(slotNumbers), emptyNotNull(streamCategories), emptyNotNull(streams), emptyNotNull(keys),
		emptyNotNull(hashes), emptyNotNull(events), emptyNotNull(chosenCategories), emptyNotNull(uuids(chosen)), emptyNotNull(namespaces), emptyNotNull(values)).
		QueryRow(func(row pgx.Row) error {
			return row.Scan(&recorded, &heads, &versions, &takenKeys, &takenRequests, &takenEvents, &holderCategories, &holderStreams)
		})
	if err := l.conn.SendBatch(ctx, trip).Close(); err != nil {
		return nil, fmt.Errorf("locking and reading %d slots: %w", len(s.slots), err)
	}
	b := &batch{recorded: event.TimeOf(recorded), heads: make(map[slotKey]int64, len(heads)), versions: make(map[streamKey]int64, len(versions)),
		keys: make(map[string]keyed), ids: make(map[idKey]known), claims: make(map[Claim]holder), names: l.store.categoryNames(), changed: make(map[Claim]bool),
		used: make(map[string]*request)}
	for i, k := range s.slots {
		b.heads[k] = heads[i]
	}
	for i, k := range s.streams {
		b.versions[k] = versions[i]
	}
	wanted := chosen
	for i, key := range takenKeys {
		b.keys[key] = keyed{request: takenRequests[i], events: takenEvents[i]}
		for ids := takenEvents[i]; len(ids) >= 16; ids = ids[16:] {
			wanted = append(wanted, event.ID(ids[:16]))
		}
	}
	for i, c := range s.claims {
		if i < len(holderCategories) && holderCategories[i] != nil {
			b.claims[c] = holder{*holderCategories[i], *holderStreams[i]}
		}
	}
	return b, l.readKnown(ctx, b, wanted)
}

// readKnown reads events that may be replayed. It is a trip of its own, and only
// where clients chose ids or a key was met again.
func (l *lane) readKnown(ctx context.Context, b *batch, ids []event.ID) error {
	if len(ids) == 0 {
		return nil
	}
	rows, err := l.conn.Query(ctx, `select category, id, stream, version, slot, seq, recorded from refold.event where id = any($1)`, uuids(ids))
	if err != nil {
		return fmt.Errorf("reading known events: %w", err)
	}
	var category, slot int16
	var id [16]byte
	var k known
	var recorded time.Time
	_, err = pgx.ForEachRow(rows, []any{&category, &id, &k.stream, &k.version, &slot, &k.seq, &recorded}, func() error {
		k.slot, k.recorded, k.categoryName = int(slot), event.TimeOf(recorded), b.names[category]
		b.ids[idKey{category, id}] = k
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading known events: %w", err)
	}
	return nil
}

// happened tells, under the batch's locks, whether a lost commit took place.
func (l *lane) happened(ctx context.Context, lost *lostCommit) (there bool, err error) {
	err = l.conn.QueryRow(ctx, `select exists (select from refold.event where category = $1 and slot = $2 and seq = $3 and id = $4)`,
		lost.category, lost.first.slot, lost.first.seq, [16]byte(lost.id)).Scan(&there)
	if err != nil {
		return false, fmt.Errorf("looking for the lost commit: %w", err)
	}
	return there, nil
}

// write is the second trip.
func (l *lane) write(ctx context.Context, s *scope, b *batch, outcomes []outcome) error {
	trip := &pgx.Batch{}
	queueEvents(trip, b)
	queueKeys(trip, s, b)
	queueClaims(trip, s, b)
	trip.Queue("commit")
	if err := l.conn.SendBatch(ctx, trip).Close(); err != nil { // an answer is valid only now: a failing COMMIT is reported by Close
		if postgres.ConnectionLost(err) && len(b.rows) > 0 {
			first := b.rows[0]
			return &lostCommit{backend: l.self, first: known{slot: first.w.slot, seq: first.seq}, id: first.e.ID, category: first.w.category.ID,
				outcomes: outcomes, batch: b, cause: err}
		}
		return fmt.Errorf("committing %d events: %w", len(b.rows), err)
	}
	// A COMMIT of a failed transaction is a ROLLBACK that succeeds, but the
	// pipeline skips it when a statement before it fails, so there was none.
	return nil
}

func queueEvents(trip *pgx.Batch, b *batch) {
	n := len(b.rows)
	if n == 0 {
		return
	}
	categories, slots, seqs, versions := make([]int16, n), make([]int16, n), make([]int64, n), make([]int64, n)
	ids, times, streams, types := make([][16]byte, n), make([]time.Time, n), make([]string, n), make([]string, n)
	values := make([][]byte, n)
	actors, correlations, causations, parents := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	for i := range b.rows {
		r := &b.rows[i]
		categories[i], slots[i], seqs[i], versions[i] = r.w.category.ID, int16(r.w.slot), r.seq, r.version
		at := b.recorded
		if r.e.Time != nil {
			at = *r.e.Time
		}
		ids[i], times[i], streams[i], types[i], values[i] = r.e.ID, at.Std(), r.w.Stream, r.e.Type, r.e.Value
		actors[i], correlations[i], causations[i], parents[i] = r.m.Actor, r.m.CorrelationID, r.m.CausationID, r.m.Traceparent
	}
	trip.Queue(insertSQL, categories, slots, seqs, versions, ids, times, streams, types, values, actors, correlations, causations, parents, b.recorded.Std())
}

// queueKeys removes the keys of refused requests, and gives a key that a later
// request of the batch has used what that one did.
func queueKeys(trip *pgx.Batch, s *scope, b *batch) {
	var unused []string
	for _, r := range s.keys {
		if _, taken := b.keys[r.Key]; !taken {
			unused = append(unused, r.Key)
		} else if used := b.used[r.Key]; used != nil && used != r {
			trip.Queue(`update refold.idempotency_key set request = $2, events = $3 where key = $1`, r.Key, used.Hash, used.ids())
		}
	}
	if len(unused) > 0 {
		trip.Queue(`delete from refold.idempotency_key where key = any($1)`, unused)
	}
}

// queueClaims writes who holds what now, and removes the rows that only were locks.
func queueClaims(trip *pgx.Batch, s *scope, b *batch) {
	for _, c := range s.claims {
		h := b.claims[c]
		switch {
		case h == holder{}:
			trip.Queue(`delete from refold.claim where namespace = $1 and value = $2`, c.Namespace, c.Value)
		case b.changed[c]:
			trip.Queue(`update refold.claim set category = $3, stream = $4 where namespace = $1 and value = $2`, c.Namespace, c.Value, h.category, h.stream)
		}
	}
}

// emptyNotNull makes an empty array of a nil slice, which would be NULL.
func emptyNotNull[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func uuids(ids []event.ID) [][16]byte {
	out := make([][16]byte, len(ids))
	for i, id := range ids {
		out[i] = id
	}
	return out
}

func (s *Store) categoryNames() map[int16]string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names := make(map[int16]string, len(s.categories))
	for _, c := range s.categories {
		names[c.ID] = c.Name
	}
	return names
}
