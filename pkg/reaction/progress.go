package reaction

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/postgres"
)

// Begin decides what is history: slots that have no progress yet begin at their
// head, or before their first event with Config.FromStart. Run does it too; a
// program that must not miss what happens from now on calls it before it lets
// anything happen. One statement makes all slots, so a crash leaves all or none.
func (c *Consumer) Begin(ctx context.Context) error {
	if err := c.Check(); err != nil {
		return err
	}
	category, ok := c.deps.Store.Category(c.cfg.Category)
	if !ok {
		return fmt.Errorf("%w: %s", eventstore.ErrUnknownCategory, c.cfg.Category)
	}
	_, err := c.deps.Pool.Exec(ctx, `insert into refold.reaction_progress (reaction, category, slot, seq, event)
		select $1, $2, s.slot, case when $4 then s.floor else coalesce(l.seq, s.floor) end, case when $4 then null else l.id end
		from refold.slot s left join lateral (select e.seq, e.id from refold.event e where e.category = s.category and e.slot = s.slot order by e.seq desc limit 1) l on true
		where s.category = $3 on conflict do nothing`, c.cfg.Name, c.cfg.Category, category.ID, c.cfg.FromStart)
	if err != nil {
		return fmt.Errorf("beginning the reaction %s: %w", c.cfg.Name, err)
	}
	return nil
}

// begin reads how far the reaction has come.
func (w *worker) begin(ctx context.Context) error {
	if err := w.Begin(ctx); err != nil {
		return err
	}
	progress := make([]place, w.category.Slots)
	var stopped []int
	rows, err := w.deps.Pool.Query(ctx, `select slot, seq, event, stopped is not null from refold.reaction_progress where reaction = $1 and category = $2`, w.cfg.Name, w.cfg.Category)
	if err != nil {
		return fmt.Errorf("reading the progress of %s: %w", w.cfg.Name, err)
	}
	var slot int16
	var seq int64
	var id *[16]byte
	var stands bool
	_, err = pgx.ForEachRow(rows, []any{&slot, &seq, &id, &stands}, func() error {
		progress[slot] = placeOf(seq, id)
		if stands {
			stopped = append(stopped, int(slot))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the progress of %s: %w", w.cfg.Name, err)
	}
	parked, err := readParked(ctx, w.deps.Pool, `select `+parkedColumns+` from refold.reaction_parked p where reaction = $1 and category = $2`, w.cfg.Name, w.cfg.Category)
	if err != nil {
		return err
	}
	w.schedule = newSchedule(progress, parked, w.category.SlotOf)
	for _, slot := range stopped {
		w.schedule.stop(slot)
	}
	w.metrics.stopped.Set(float64(len(stopped)))
	w.metrics.parked.Set(float64(len(parked)))
	return nil
}

// heads returns the last event of every slot. Its id tells too when other events
// stand where those were that have been read.
func (w *worker) heads(ctx context.Context) ([]place, error) {
	heads := make([]place, 0, w.category.Slots)
	rows, err := w.deps.Pool.Query(ctx, `select coalesce(l.seq, s.floor), l.id
		from refold.slot s left join lateral (select e.seq, e.id from refold.event e where e.category = s.category and e.slot = s.slot order by e.seq desc limit 1) l on true
		where s.category = $1 order by s.slot`, w.category.ID)
	if err != nil {
		return nil, fmt.Errorf("reading the heads of %s: %w", w.cfg.Category, err)
	}
	var seq int64
	var id *[16]byte
	_, err = pgx.ForEachRow(rows, []any{&seq, &id}, func() error {
		heads = append(heads, placeOf(seq, id))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the heads of %s: %w", w.cfg.Category, err)
	}
	return heads, nil
}

func placeOf(seq int64, id *[16]byte) place {
	if id == nil {
		return place{seq: seq}
	}
	return place{seq, *id}
}

// fenced carries out statements in one transaction, unless the lease is in other
// hands: then none of them takes effect.
func (w *worker) fenced(ctx context.Context, queue func(*pgx.Batch)) error {
	b := &pgx.Batch{}
	b.Queue("begin isolation level read committed")
	b.Queue(postgres.VerifyLeaseSQL, w.lease.Name, w.lease.Fence, w.lease.Nonce)
	queue(b)
	b.Queue("commit")
	conn, err := w.deps.Pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("writing the progress of %s: %w", w.cfg.Name, err)
	}
	if err = conn.SendBatch(ctx, b).Close(); err != nil {
		conn.Conn().Close(context.WithoutCancel(ctx)) // it may stand in the failed transaction
		err = fmt.Errorf("writing the progress of %s: %w", w.cfg.Name, err)
	}
	conn.Release()
	return err
}

// move writes down up to where the events of slots are dealt with.
func (w *worker) move(ctx context.Context, to map[int]place) error {
	if len(to) == 0 {
		return nil
	}
	var slots []int16
	var seqs []int64
	var ids [][16]byte
	for slot, at := range to {
		slots, seqs, ids = append(slots, int16(slot)), append(seqs, at.seq), append(ids, at.id)
	}
	return w.fenced(ctx, func(b *pgx.Batch) {
		b.Queue(`update refold.reaction_progress p set seq = u.seq, event = u.event, updated = clock_timestamp()
			from unnest($3::smallint[], $4::bigint[], $5::uuid[]) u (slot, seq, event) where p.reaction = $1 and p.category = $2 and p.slot = u.slot`,
			w.cfg.Name, w.cfg.Category, slots, seqs, ids)
	})
}

// park writes down that a stream is held at an event, before its slot passes it; or
// that it is still, after a request. A request that was made about the same event
// meanwhile stands.
func (w *worker) park(ctx context.Context, c *chain, e *event.Event, cause error) error {
	var carried *[16]byte
	if c.request != nil {
		carried = &c.request.asked
	}
	err := w.fenced(ctx, func(b *pgx.Batch) {
		b.Queue(`insert into refold.reaction_parked as p (reaction, category, stream, version, event, attempts, error) values ($1, $2, $3, $4, $5, $6, $7)
			on conflict (reaction, category, stream) do update set attempts = excluded.attempts, error = excluded.error, version = excluded.version, event = excluded.event,
				request = case when p.version = excluded.version and p.asked is distinct from $8 then p.request end,
				reason = case when p.version = excluded.version and p.asked is distinct from $8 then p.reason end`,
			w.cfg.Name, w.cfg.Category, e.Stream, e.Version, [16]byte(e.ID), c.attempts, storable(cause), carried)
	})
	if err != nil {
		return err
	}
	w.log.Error("a stream is parked", "category", e.Category, "stream", e.Stream, "event_id", e.ID, "event_type", e.Type, "attempts", c.attempts, "err", cause)
	w.schedule.park(c)
	w.metrics.parked.Set(float64(w.schedule.parkedStreams()))
	return nil
}

// maxError bounds what is kept of an error.
const maxError = 4 << 10

// storable returns an error's text as Postgres takes it.
func storable(err error) string {
	text := strings.ReplaceAll(err.Error(), "\x00", "")
	return strings.ToValidUTF8(text[:min(len(text), maxError)], "")
}

// stop holds a slot whose log does not go on behind the progress that stands beside
// it in the same database: somebody has changed one of them by hand, or restored
// only one. What was handled is not known, so somebody must say where to go on, see
// [Resume].
func (w *worker) stop(ctx context.Context, slot int, at place) error {
	var known *[16]byte
	if !at.id.IsZero() {
		id := [16]byte(at.id)
		known = &id
	}
	var stopped bool
	err := w.fenced(ctx, func(b *pgx.Batch) {
		b.Queue(`update refold.reaction_progress set stopped = clock_timestamp() where reaction = $1 and category = $2 and slot = $3 and seq = $4 and event is not distinct from $5`,
			w.cfg.Name, w.cfg.Category, slot, at.seq, known).Exec(func(tag pgconn.CommandTag) error {
			stopped = tag.RowsAffected() == 1
			return nil
		})
	})
	if err != nil {
		return err
	}
	if !stopped { // the progress has gone back with the log
		return errTail
	}
	w.log.Error("a slot is stopped: the log does not go on behind what was handled", "category", w.category.Name, "slot", slot, "seq", at.seq, "event_id", at.id)
	w.schedule.stop(slot)
	w.metrics.stopped.Inc()
	return nil
}

// goOn has a stopped slot go on if somebody has said where.
func (w *worker) goOn(ctx context.Context, slot int) error {
	var seq int64
	var id *[16]byte
	err := w.deps.Pool.QueryRow(ctx, `select seq, event from refold.reaction_progress where reaction = $1 and category = $2 and slot = $3 and stopped is null`,
		w.cfg.Name, w.cfg.Category, slot).Scan(&seq, &id)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the progress of %s: %w", w.cfg.Name, err)
	}
	w.schedule.begin(slot, placeOf(seq, id))
	w.metrics.stopped.Dec()
	w.log.Info("a slot goes on", "category", w.category.Name, "slot", slot, "seq", seq)
	return nil
}

const parkedColumns = `category, stream, version, event, attempts, error, since, coalesce(request, ''), coalesce(asked, '00000000-0000-0000-0000-000000000000'),
	coalesce((select e.seq from refold.event e join refold.category c on c.id = e.category where c.name = p.category and e.stream = p.stream and e.version = p.version), 0)`

func readParked(ctx context.Context, pool *pgxpool.Pool, sql string, args ...any) ([]Parked, error) {
	rows, err := pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("reading parked streams: %w", err)
	}
	var list []Parked
	var p Parked
	var id [16]byte
	_, err = pgx.ForEachRow(rows, []any{&p.Category, &p.Stream, &p.Version, &id, &p.Attempts, &p.Error, &p.Since, &p.Request, &p.asked, &p.seq}, func() error {
		p.Event = id
		list = append(list, p)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading parked streams: %w", err)
	}
	return list, nil
}

// carryOut begins to do what was asked about parked streams.
func (w *worker) carryOut(ctx context.Context) error {
	asked, err := readParked(ctx, w.deps.Pool, `select `+parkedColumns+` from refold.reaction_parked p where reaction = $1 and category = $2 and request is not null order by since`,
		w.cfg.Name, w.cfg.Category)
	if err != nil {
		return err
	}
	for _, p := range asked {
		if p.Request == "skip" && !w.passed(p) {
			continue
		}
		if c := w.schedule.ask(w.category.SlotOf(p.Stream), p); c != nil {
			if err := w.feed(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// passed tells whether the slot of a stream has left its parked event behind for
// good: one that is skipped before would be met again after a crash.
func (w *worker) passed(p Parked) bool {
	return w.schedule.settled(w.category.SlotOf(p.Stream)).seq >= p.seq
}

// feed gives a request the next events of its stream that the slot has left out; if
// there are no more, the stream is no longer parked.
func (w *worker) feed(ctx context.Context, c *chain) error {
	events, err := w.reader.StreamEvents(ctx, w.category, c.stream, c.after, batch, false)
	if err != nil || w.schedule.feed(c, events, w.wanted) {
		return err
	}
	err = w.fenced(ctx, func(b *pgx.Batch) {
		b.Queue(`delete from refold.reaction_parked where reaction = $1 and category = $2 and stream = $3`, w.cfg.Name, w.cfg.Category, c.stream)
	})
	if err != nil {
		return err
	}
	w.schedule.release(c.stream)
	w.log.Info("a stream goes on", "category", w.cfg.Category, "stream", c.stream, "request", c.request.Request)
	w.metrics.parked.Set(float64(w.schedule.parkedStreams()))
	return nil
}
