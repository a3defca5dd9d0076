package reaction

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
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
	w.progress = make([]place, w.category.Slots)
	rows, err := w.deps.Pool.Query(ctx, `select slot, seq, event from refold.reaction_progress where reaction = $1 and category = $2`, w.cfg.Name, w.cfg.Category)
	if err != nil {
		return fmt.Errorf("reading the progress of %s: %w", w.cfg.Name, err)
	}
	var slot int16
	var p place
	var id *[16]byte
	_, err = pgx.ForEachRow(rows, []any{&slot, &p.seq, &id}, func() error {
		p.id = event.ID{}
		if id != nil {
			p.id = *id
		}
		w.progress[slot] = p
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the progress of %s: %w", w.cfg.Name, err)
	}
	parked, err := ParkedStreams(ctx, w.deps.Pool, w.cfg.Name)
	for _, p := range parked {
		w.parked[p.Stream] = true
	}
	w.metrics.parked.Set(float64(len(parked)))
	return err
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

const moveSQL = `update refold.reaction_progress set seq = $4, event = $5, updated = clock_timestamp() where reaction = $1 and category = $2 and slot = $3`

// move notes that the events of a slot up to a place are dealt with.
func (w *worker) move(ctx context.Context, slot int, to place) error {
	err := w.fenced(ctx, func(b *pgx.Batch) {
		b.Queue(moveSQL, w.cfg.Name, w.cfg.Category, slot, to.seq, [16]byte(to.id))
	})
	if err == nil {
		w.progress[slot] = to
	}
	return err
}

// park holds a stream at an event, in the transaction in which the slot goes on.
func (w *worker) park(ctx context.Context, slot int, e *event.Event, attempts int, cause error) error {
	err := w.fenced(ctx, func(b *pgx.Batch) {
		b.Queue(`insert into refold.reaction_parked (reaction, category, stream, version, event, attempts, error) values ($1, $2, $3, $4, $5, $6, $7)`,
			w.cfg.Name, w.cfg.Category, e.Stream, e.Version, [16]byte(e.ID), attempts, cause.Error())
		b.Queue(moveSQL, w.cfg.Name, w.cfg.Category, slot, e.Seq, [16]byte(e.ID))
	})
	if err != nil {
		return err
	}
	w.log.Error("a stream is parked", "category", e.Category, "stream", e.Stream, "event_id", e.ID, "event_type", e.Type, "attempts", attempts, "err", cause)
	w.progress[slot] = place{e.Seq, e.ID}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.parked[e.Stream] = true
	w.metrics.parked.Set(float64(len(w.parked)))
	return nil
}

func readParked(ctx context.Context, pool *pgxpool.Pool, sql string, args ...any) ([]Parked, error) {
	rows, err := pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("reading parked streams: %w", err)
	}
	var list []Parked
	var p Parked
	var id [16]byte
	_, err = pgx.ForEachRow(rows, []any{&p.Category, &p.Stream, &p.Version, &id, &p.Attempts, &p.Error, &p.Since, &p.Request}, func() error {
		p.Event = id
		list = append(list, p)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading parked streams: %w", err)
	}
	return list, nil
}

// carryOut does what was asked about parked streams. No slot is worked on
// meanwhile, so nothing of the streams is handled twice or out of order.
func (w *worker) carryOut(ctx context.Context) error {
	asked, err := readParked(ctx, w.deps.Pool, `select category, stream, version, event, attempts, error, since, request
		from refold.reaction_parked where reaction = $1 and request is not null order by since`, w.cfg.Name)
	if err != nil {
		return err
	}
	for _, p := range asked {
		if err := w.resume(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// resume handles the events of a parked stream that its slot has passed.
func (w *worker) resume(ctx context.Context, p Parked) error {
	next := p.Version
	if p.Request == "skip" {
		next++
	}
	reached := w.progress[w.category.SlotOf(p.Stream)].seq
	for {
		events, err := w.reader.StreamEvents(ctx, w.category, p.Stream, next-1, batch, false)
		if err != nil {
			return err
		}
		for i := range events {
			e := &events[i]
			if e.Seq > reached {
				return w.unpark(ctx, p)
			}
			attempts, err := w.insist(ctx, e)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				return w.parkAgain(ctx, e, attempts, err)
			}
			next = e.Version + 1
		}
		if len(events) < batch {
			return w.unpark(ctx, p)
		}
	}
}

func (w *worker) unpark(ctx context.Context, p Parked) error {
	err := w.fenced(ctx, func(b *pgx.Batch) {
		b.Queue(`delete from refold.reaction_parked where reaction = $1 and category = $2 and stream = $3`, w.cfg.Name, w.cfg.Category, p.Stream)
	})
	if err != nil {
		return err
	}
	w.log.Info("a stream goes on", "category", p.Category, "stream", p.Stream, "request", p.Request)
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.parked, p.Stream)
	w.metrics.parked.Set(float64(len(w.parked)))
	return nil
}

func (w *worker) parkAgain(ctx context.Context, e *event.Event, attempts int, cause error) error {
	w.log.Error("a stream stays parked", "category", e.Category, "stream", e.Stream, "event_id", e.ID, "event_type", e.Type, "attempts", attempts, "err", cause)
	return w.fenced(ctx, func(b *pgx.Batch) {
		b.Queue(`update refold.reaction_parked set version = $4, event = $5, attempts = $6, error = $7, request = null, reason = null
			where reaction = $1 and category = $2 and stream = $3`, w.cfg.Name, w.cfg.Category, e.Stream, e.Version, [16]byte(e.ID), attempts, cause.Error())
	})
}
