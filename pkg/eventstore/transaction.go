package eventstore

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
)

const prepareSQL = `select recorded, heads, versions, taken_keys, taken_requests, taken_events, holder_categories, holder_streams
	from refold.append_prepare($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`

const insertSQL = `insert into refold.event (category, slot, seq, version, id, time, recorded, stream, type, value, actor, correlation_id, causation_id, traceparent)
	select c, s, q, v, i, t, $14, st, ty, va, ac, co, ca, tp
	from unnest($1::smallint[], $2::smallint[], $3::bigint[], $4::bigint[], $5::uuid[], $6::timestamptz[], $7::text[], $8::text[], $9::bytea[],
	            $10::text[], $11::text[], $12::text[], $13::text[]) u (c, s, q, v, i, t, st, ty, va, ac, co, ca, tp)`

// attempt carries out the batch once: in one trip or in two. Where the answer to a
// COMMIT was lost it first makes sure that this one takes effect no more, by ending
// its backend, and then judges the batch anew under the same locks: what it did is
// found by the ids of its events, like any request that is repeated.
func (l *lane) attempt(ctx context.Context, w *work) (err error) {
	if err := l.connect(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*l.store.cfg.TripTimeout)
	defer cancel()
	defer func() {
		if err != nil && !l.usable(err) {
			l.disconnect() // rolls back, and leaves nothing of the session behind
		}
	}()
	if w.lost != nil {
		if err := w.lost.End(ctx, l.conn, 5*time.Second); err != nil {
			return err
		}
	} else if w.alone() {
		err := l.firstTrip(ctx, func(ctx context.Context) error { return l.single(ctx, w) })
		if !w.long || w.lost != nil {
			return err
		}
	}
	s := scopeOf(w.requests)
	err = l.firstTrip(ctx, func(ctx context.Context) (err error) {
		w.batch, err = l.lockAndRead(ctx, &s)
		return err
	})
	if err != nil {
		return err
	}
	w.judge(l.store.metrics)
	return l.write(ctx, &s, w)
}

// firstTrip bounds the trip that may wait for locks, and sees to who holds them.
func (l *lane) firstTrip(ctx context.Context, trip func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, l.store.cfg.TripTimeout)
	defer cancel()
	defer l.clearWay(ctx)()
	return trip(ctx)
}

// usable tells whether the session is fit for the next attempt after an error: the
// server refused one call of its own accord, and no transaction is open.
func (l *lane) usable(err error) bool {
	return definite(err) && !l.conn.IsClosed() && l.conn.PgConn().TxStatus() == 'I'
}

// judge decides about every request that is not settled. After a lost COMMIT those
// that are found in the log are settled now, whatever becomes of this attempt.
func (w *work) judge(m *metrics) {
	found := 0
	for i, p := range w.requests {
		if w.settled[i] {
			continue
		}
		w.outcomes[i] = w.batch.judge(p.request)
		if result := w.outcomes[i].result; w.lost != nil && w.sent[i] && result != nil && result.Replayed {
			result.Replayed = w.outcomes[i].foreign(p.request)
			w.settled[i] = true
			found++
		}
	}
	if w.lost == nil {
		return
	}
	w.lost = nil // what was sent is in the log now, or never will be
	clear(w.sent)
	if found > 0 {
		m.lost.WithLabelValues("happened").Inc()
	} else {
		m.lost.WithLabelValues("not_happened").Inc()
	}
}

// foreign tells whether a result is that of other events than the request's own:
// those of an earlier request under the same key.
func (o outcome) foreign(r *request) bool {
	return o.result.Appends[0].Events[0].ID != r.writes[0].Events[0].ID
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
	b := newBatch(event.TimeOf(recorded), l.store.categoryNames())
	b.on = l.on
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

// write is the second trip. A batch that changes nothing is rolled back: its answers
// speak of what was committed before, and it costs no flush of the log. A key whose
// request was found by the ids of its events is a change: it stands for that request
// from now on.
func (l *lane) write(ctx context.Context, s *scope, w *work) error {
	b := w.batch
	if len(b.rows) == 0 && len(b.used) == 0 {
		if _, err := l.conn.Exec(ctx, "rollback"); err != nil {
			l.disconnect()
		}
		return nil
	}
	trip := &pgx.Batch{}
	queueEvents(trip, b)
	queueKeys(trip, s, b)
	queueIDs(trip, w)
	queueClaims(trip, s, b)
	trip.Queue("commit")
	if l.store.faults.answerEarly {
		l.answer(w, nil)
		w.requests = nil
	}
	// An answer is valid only after Close, which reports a COMMIT that fails. A
	// COMMIT of a failed transaction is a ROLLBACK that succeeds, but the pipeline
	// skips it when a statement before it fails, so there was none.
	ctx, cancel := context.WithTimeout(ctx, l.store.cfg.TripTimeout)
	defer cancel()
	if err := l.conn.SendBatch(ctx, trip).Close(); err != nil {
		return l.lose(w, fmt.Errorf("committing %d events: %w", len(b.rows), err))
	}
	return nil
}

// lose remembers, unless err says that the server has rolled back or heard
// nothing, that the batch's COMMIT may have happened or may still. What it may have
// written is from now on looked for by its ids.
func (l *lane) lose(w *work, err error) error {
	if definite(err) {
		return err
	}
	self := l.self
	w.lost, w.long = &self, true
	for i, p := range w.requests {
		if accepted := w.outcomes[i].err == nil && !w.settled[i]; accepted {
			w.sent[i] = true
			for j := range p.request.writes {
				p.request.writes[j].chosen = true
			}
		}
	}
	return err
}

// definite tells whether it is certain that nothing of a failed trip happened or
// will happen.
func definite(err error) bool {
	return pgconn.SafeToRetry(err) || postgres.Code(err) != "" && !postgres.ConnectionLost(err)
}

func queueEvents(trip *pgx.Batch, b *batch) {
	n := len(b.rows)
	if n == 0 {
		return
	}
	categories, slots, seqs, versions := make([]int16, n), make([]int16, n), make([]int64, n), make([]int64, n)
	ids, times, streams, types := make([][16]byte, n), make([]time.Time, n), make([]string, n), make([]string, n)
	values := make([][]byte, n)
	for i := range b.rows {
		r := &b.rows[i]
		categories[i], slots[i], seqs[i], versions[i] = r.w.category.ID, int16(r.w.slot), r.seq, r.version
		at := b.recorded
		if r.e.Time != nil {
			at = *r.e.Time
		}
		ids[i], times[i], streams[i], types[i], values[i] = r.e.ID, at.Std(), r.w.Stream, r.e.Type, r.e.Value
	}
	trip.Queue(insertSQL, categories, slots, seqs, versions, ids, times, streams, types, values,
		b.column(func(m *event.Metadata) *string { return &m.Actor }), b.column(func(m *event.Metadata) *string { return &m.CorrelationID }),
		b.column(func(m *event.Metadata) *string { return &m.CausationID }), b.column(func(m *event.Metadata) *string { return &m.Traceparent }), b.recorded.Std())
}

// column returns one member of the metadata of every row, nil where it is empty;
// where all are, nil for the whole column, which costs neither side anything.
func (b *batch) column(member func(*event.Metadata) *string) []*string {
	var column []*string
	for i := range b.rows {
		text := member(b.rows[i].m)
		if *text == "" {
			continue
		}
		if column == nil {
			column = make([]*string, len(b.rows))
		}
		column[i] = text
	}
	return column
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

// queueIDs removes the ids of refused requests, which were only locks.
func queueIDs(trip *pgx.Batch, w *work) {
	var categories []int16
	var ids []event.ID
	for i, p := range w.requests {
		if w.outcomes[i].err == nil {
			continue
		}
		for j := range p.request.writes {
			write := &p.request.writes[j]
			if !write.chosen {
				continue
			}
			for k := range write.Events {
				if _, known := w.batch.ids[idKey{write.category.ID, write.Events[k].ID}]; !known {
					categories, ids = append(categories, write.category.ID), append(ids, write.Events[k].ID)
				}
			}
		}
	}
	if len(ids) > 0 {
		trip.Queue(`delete from refold.chosen_id c using unnest($1::smallint[], $2::uuid[]) u (category, id) where c.category = u.category and c.id = u.id`,
			categories, uuids(ids))
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
