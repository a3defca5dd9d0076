package engine

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// refusal is what the server said of a row that an event made.
type refusal struct {
	why   string
	tries int
}

// settle folds a batch and commits it. It is not done when the server refused its
// data: then nothing has happened, and the caller gathers anew, in smaller
// batches, until the refused event is alone and known for poison.
func (w *worker) settle(ctx context.Context, b *batch) (done bool, err error) {
	if err := w.fold(ctx, b); err != nil {
		return false, err
	}
	if err := w.breaker.check(len(b.parkedStreams)); err != nil {
		return false, err
	}
	err = w.commit(ctx, b)
	switch class := postgres.Classify(err); {
	case class == postgres.ClassData, class == postgres.ClassConstraint:
		return false, w.narrow(b, err)
	case err != nil:
		return false, fmt.Errorf("committing: %w", fenced(err))
	}
	w.committed(b)
	return true, nil
}

// narrow goes back to what is committed and makes batches smaller.
func (w *worker) narrow(b *batch, err error) error {
	w.rows.drop()
	switch n := len(b.events); {
	case n == 0:
		return fmt.Errorf("committing: %w", err)
	case n > 1:
		w.limit = n / 2
	default:
		r := w.poison[b.events[0].event.ID]
		if r.tries > 2 { // it is parked already, and still the server refuses something
			return fmt.Errorf("committing: %w", err)
		}
		w.poison[b.events[0].event.ID] = refusal{"the database refuses the row: " + err.Error(), r.tries + 1}
	}
	return nil
}

// committed makes what a batch has done the state of the worker.
func (w *worker) committed(b *batch) {
	w.next, w.seqs = b.to, b.seqs
	for stream := range b.newlyParked {
		w.parked[stream] = true
	}
	if b.answer != nil {
		b.answer.committed(w)
	} else {
		w.breaker.parked(len(b.parkedStreams))
	}
	for i := range b.events {
		if len(w.poison) == 0 {
			break
		}
		delete(w.poison, b.events[i].event.ID)
	}
	w.limit = min(w.engine.cfg.MaxBatch, 2*w.limit)
	if !w.feed.Plan.Shared() {
		w.rows.keep(b.touched)
	}
	clear(b.events) // the records that they came from may go
	w.spare = b.events
	w.runs()
	e, name := w.engine, w.feed.Version.Projection
	e.announcer.announce(w.announcement(b))
	e.metrics.applied.WithLabelValues(name).Add(float64(max(0, b.counts.applied)))
	e.metrics.parked.WithLabelValues(name).Add(float64(len(b.parkedEvents)))
	if b.last > 0 {
		e.metrics.newest.WithLabelValues(name, strconv.Itoa(w.feed.Version.Number)).Set(float64(b.last.Std().UnixMicro()) / 1e6)
	}
}

// announcement says what a batch that was committed has changed.
func (w *worker) announcement(b *batch) readmodel.Announcement {
	v := w.feed.Version
	a := readmodel.Announcement{Projection: v.Projection, Version: v.Number, Category: w.category.Name, Generation: w.category.Generation, Partition: w.partition,
		From: b.from, To: b.to, Seqs: slices.Clone(w.seqs.seqs), Many: len(b.touched) > readmodel.MaxAnnouncedKeys}
	if !a.Many {
		for _, r := range b.touched {
			a.Keys = append(a.Keys, readmodel.HashKey(r.key))
		}
	}
	return a
}

// maxRows is the most rows in one statement: larger ones cost more per row.
const maxRows = 1000

// commit writes progress and rows in one transaction: a pipeline without BEGIN,
// whose first statement raises an error when the partition has another owner.
func (w *worker) commit(ctx context.Context, b *batch) error {
	var through []int64
	if b.answer != nil {
		through = b.answer.conclude(b)
	}
	trip := &pgx.Batch{}
	if w.engine.faults.splitTransaction {
		w.queueRows(trip, b)
		if err := w.conn.SendBatch(ctx, trip).Close(); err != nil {
			return err
		}
		w.engine.faults.between()
		trip = &pgx.Batch{}
		w.queueProgress(trip, b)
	} else {
		w.queueProgress(trip, b)
		w.queueRows(trip, b)
	}
	w.queueParked(trip, b)
	if b.answer != nil {
		b.answer.queue(trip, w, through)
	}
	return w.conn.SendBatch(ctx, trip).Close() // valid only now: a failing commit is reported by Close
}

func (w *worker) queueProgress(trip *pgx.Batch, b *batch) {
	if w.engine.faults.noFence {
		v := w.feed.Version
		trip.Queue(`update refold.progress set next_offset = $6, seqs = $7, last_ids = $8 where projection = $1 and version = $2 and category = $3 and generation = $4 and partition = $5`,
			v.Projection, v.Number, w.category.Name, w.category.Generation, w.partition, b.to, b.seqs.seqs, b.seqs.uuids())
		return
	}
	v, c := w.feed.Version, b.counts
	var last *time.Time
	if b.last != 0 {
		at := b.last.Std()
		last = &at
	}
	var stopped *string
	if b.changed {
		text := listOf(b.seqs.stopped)
		stopped = &text
	}
	trip.Queue(`select refold.progress_move($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)`, v.Projection, v.Number, w.category.Name,
		w.category.Generation, w.partition, w.epoch, b.from, b.to, b.seqs.seqs, b.seqs.uuids(), c.applied, c.duplicates, c.filtered, c.parked, c.skipped, c.foreign, c.filled, c.held, stopped, last)
}

func (w *worker) queueRows(trip *pgx.Batch, b *batch) {
	v, plan := w.feed.Version, w.feed.Plan
	slices.SortFunc(b.touched, func(x, y *rowState) int { return strings.Compare(x.key, y.key) })
	sql := plan.UpsertSQL(v.Table())
	var keys, data, gone []string
	var states []*string
	flush := func() {
		if len(keys) > 0 {
			trip.Queue(sql, v.Projection, v.Number, keys, data, states)
			keys, data, states = nil, nil, nil
		}
	}
	for _, r := range b.touched {
		if !r.row.Exists() {
			gone = append(gone, r.key)
			continue
		}
		keys, data = append(keys, r.key), append(data, string(r.row.AppendData(nil)))
		if state := r.row.AppendState(nil); state != nil {
			text := string(state)
			states = append(states, &text)
		} else {
			states = append(states, nil)
		}
		if len(keys) == maxRows {
			flush()
		}
	}
	flush()
	if len(gone) > 0 {
		trip.Queue(`delete from `+v.Table()+` where key = any($1)`, gone)
	}
}

func (w *worker) queueParked(trip *pgx.Batch, b *batch) {
	v := w.feed.Version
	for _, p := range b.parkedStreams {
		trip.Queue(`insert into refold.parked_stream (projection, version, category, stream, slot, error) values ($1, $2, $3, $4, $5, $6)`,
			v.Projection, v.Number, p.e.Category, p.e.Stream, p.e.Slot, clean(p.why))
	}
	for _, p := range b.parkedEvents {
		e := p.e
		trip.Queue(`insert into refold.parked_event (projection, version, category, stream, slot, seq, stream_version, id, type, time, recorded, actor, correlation_id, causation_id, traceparent, value, error)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, nullif($12, ''), nullif($13, ''), nullif($14, ''), nullif($15, ''), $16, nullif($17, ''))`,
			v.Projection, v.Number, e.Category, e.Stream, e.Slot, e.Seq, e.Version, [16]byte(e.ID), clean(e.Type), e.Time.Std(), e.Recorded.Std(),
			clean(e.Metadata.Actor), clean(e.Metadata.CorrelationID), clean(e.Metadata.CausationID), clean(e.Metadata.Traceparent), e.Value, clean(p.why))
	}
}

// clean returns text that Postgres takes, whatever a record held.
func clean(s string) string {
	const most = 4000
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}

// parkedEvent is an event that is parked, and why; "" for one that only waits.
type parkedEvent struct {
	e   *event.Event
	why string
}
