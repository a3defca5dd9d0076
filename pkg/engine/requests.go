package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
)

// request is what somebody asks of a parked stream. The worker that owns its
// partition carries it out between batches, in transactions that are fenced like
// those of batches and note in the request's row what they have done: so it is
// done once, and no event of the stream overtakes another.
type request struct {
	id       int64
	category string
	stream   string
	slot     int
	skip     bool // the event that failed; what waits behind it is applied
	begun    bool // it was skipped by a transaction before
}

// requestEvery is how often requests are looked for, and with every so many looks
// decisions and requests that nobody is left to answer.
const (
	requestEvery = 500 * time.Millisecond
	sweepEvery   = 20
)

// watchRequests hands open requests to the workers that own their partitions.
func (e *Engine) watchRequests(ctx context.Context) {
	for looks := 0; ctx.Err() == nil; looks++ {
		if err := e.findRequests(ctx, looks%sweepEvery == 0); err != nil && ctx.Err() == nil {
			e.log.Debug("looking for requests about parked streams", "err", err)
		}
		e.collect()
		wait(ctx, requestEvery)
	}
}

const openRequestsSQL = `select id, projection, category, stream, slot, action = 'skip', outcomes, begun from refold.row_request where done is null order by id limit 1000`

func (e *Engine) findRequests(ctx context.Context, sweep bool) error {
	rows, err := e.pool.Query(ctx, openRequestsSQL)
	if err != nil {
		return err
	}
	type found struct {
		request
		projection      string
		outcomes, begun map[string]json.RawMessage
	}
	var open []found
	var f found
	var slot int16
	_, err = pgx.ForEachRow(rows, []any{&f.id, &f.projection, &f.category, &f.stream, &slot, &f.skip, &f.outcomes, &f.begun}, func() error {
		f.slot = int(slot)
		open = append(open, f)
		f.outcomes, f.begun = nil, nil
		return nil
	})
	if err != nil {
		return err
	}
	e.each(func(w *worker) {
		version := strconv.Itoa(w.feed.Version.Number)
		var mine []request
		for _, f := range open {
			if f.projection == w.feed.Version.Projection && f.category == w.category.Name && event.PartitionOf(f.slot, w.category.Partitions) == w.partition && f.outcomes[version] == nil {
				f.request.begun = f.begun[version] != nil
				mine = append(mine, f.request)
			}
		}
		w.offer(mine)
	})
	if !sweep {
		return nil
	}
	if err := e.findDecisions(ctx); err != nil {
		return err
	}
	for _, f := range open { // of versions that are retired meanwhile, or of streams that are not parked any more
		if _, err := e.pool.Exec(ctx, `select refold.request_end($1)`, f.id); err != nil {
			return err
		}
	}
	return nil
}

// findDecisions tells the workers of other versions which events somebody has
// decided to skip lately. Those of before were read with the claims.
func (e *Engine) findDecisions(ctx context.Context) error {
	rows, err := e.pool.Query(ctx, `select projection, category, slot, seq, id from refold.decision where decided > clock_timestamp() - $1::interval`, 10*sweepEvery*requestEvery)
	if err != nil {
		return err
	}
	type decision struct {
		projection, category string
		slot                 int16
		seq                  int64
		id                   [16]byte
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d decision, err error) {
		return d, row.Scan(&d.projection, &d.category, &d.slot, &d.seq, &d.id)
	})
	if err != nil || len(list) == 0 {
		return err
	}
	e.each(func(w *worker) {
		mine := make(Decisions)
		for _, d := range list {
			if d.projection == w.feed.Version.Projection && d.category == w.category.Name && event.PartitionOf(int(d.slot), w.category.Partitions) == w.partition {
				mine[place{int(d.slot), d.seq}] = d.id
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.decided = mine
	})
	return nil
}

// offer replaces what the worker is asked to do.
func (w *worker) offer(list []request) {
	w.mu.Lock()
	w.requests = list
	w.mu.Unlock()
	if len(list) > 0 {
		select {
		case w.asked <- struct{}{}:
		default:
		}
	}
}

// carryOut does what the worker is asked to do.
func (w *worker) carryOut(ctx context.Context) error {
	w.mu.Lock()
	list, decided := w.requests, w.decided
	w.requests, w.decided = nil, nil
	w.mu.Unlock()
	maps.Copy(w.skipped, decided)
	for _, r := range list {
		if err := w.carryOutOne(ctx, r); err != nil && !postgres.IsCode(err, "RF012") { // answered: the look was older than that
			return fmt.Errorf("carrying out request %d: %w", r.id, err)
		}
	}
	return nil
}

// requestPatience is how long the events that come wait for a request: what is
// left of it then is taken up again at the next look.
const requestPatience = 2 * time.Second

// carryOutOne applies what is parked of a stream, a piece in each transaction,
// until it is through or fails again.
func (w *worker) carryOutOne(ctx context.Context, r request) error {
	total := answer{}
	if r.skip && r.begun {
		total.skipped = 1
	}
	for end := time.Now().Add(requestPatience); time.Now().Before(end) && !w.stopping(); {
		events, left, err := w.readParkedEvents(ctx, r)
		if err != nil {
			return err
		}
		b := w.newBatch()
		b.answer = &answer{request: r, events: events, left: left, applied: total.applied, skipped: total.skipped}
		if r.skip && !r.begun && len(events) > 0 {
			b.answer.skips = &events[0]
			b.counts.skipped++
			events = events[1:]
		}
		for i := range events[:min(len(events), w.limit)] {
			b.events = append(b.events, taken{event: events[i], source: fromParked})
		}
		done, err := w.settle(ctx, b)
		if err != nil {
			return err
		}
		if !done {
			continue
		}
		if b.answer.outcome != "" {
			w.logRequest(r, b.answer.outcome)
			return nil
		}
		total, r.begun = *b.answer, true
	}
	return nil
}

func (w *worker) logRequest(r request, outcome string) {
	v := w.feed.Version
	action := "retry"
	if r.skip {
		action = "skip"
	}
	w.engine.log.Info("a request is carried out", "projection", v.Projection, "version", v.Number, "request", r.id, "action", action, "category", r.category, "stream", r.stream, "outcome", outcome)
}

// readParkedEvents reads the first events that are parked of a stream, as many as
// fit the memory, and how many are parked.
func (w *worker) readParkedEvents(ctx context.Context, r request) (events []event.Event, parked int, err error) {
	v := w.feed.Version
	rows, err := w.conn.Query(ctx, `select slot, seq, stream_version, id, type, time, recorded, coalesce(actor, ''), coalesce(correlation_id, ''), coalesce(causation_id, ''), coalesce(traceparent, ''), value, total
		from (select p.*, sum(length(value)) over (order by seq) - length(value) as before,
				(select count(*) from refold.parked_event where projection = $1 and version = $2 and category = $3 and stream = $4) as total
			from refold.parked_event p where projection = $1 and version = $2 and category = $3 and stream = $4 order by seq limit 1000) p
		where before < $5 order by seq`, v.Projection, v.Number, r.category, r.stream, maxBatchBytes)
	if err != nil {
		return nil, 0, fmt.Errorf("reading parked events: %w", err)
	}
	e := event.Event{Category: r.category, Stream: r.stream}
	var slot int16
	var id [16]byte
	var at, recorded time.Time
	_, err = pgx.ForEachRow(rows, []any{&slot, &e.Seq, &e.Version, &id, &e.Type, &at, &recorded, &e.Metadata.Actor, &e.Metadata.CorrelationID, &e.Metadata.CausationID, &e.Metadata.Traceparent, &e.Value, &parked}, func() error {
		e.Slot, e.ID, e.Time, e.Recorded = int(slot), id, event.TimeOf(at), event.TimeOf(recorded)
		events = append(events, e)
		e.Value = nil // the next one gets memory of its own
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("reading parked events: %w", err)
	}
	return events, parked, nil
}

// answer is what a batch does about a request.
type answer struct {
	request request
	events  []event.Event // parked, the first ones in order; with that which is skipped
	left    int           // how many events are parked before the batch
	skips   *event.Event
	failed  string // why the event with the seq at could not be applied, empty when all could
	at      int64

	applied, skipped int    // with those of the transactions before
	outcome          string // empty while the request is not at its end
}

// through returns the events that are not parked any more after the batch: those
// that it has skipped or folded.
func (a *answer) through(b *batch) (seqs []int64) {
	if a.skips != nil {
		seqs = append(seqs, a.skips.Seq)
	}
	for i := range b.events {
		if a.failed != "" && b.events[i].event.Seq >= a.at {
			break
		}
		seqs = append(seqs, b.events[i].event.Seq)
	}
	return seqs
}

// conclude says what the batch, when it is committed, has done. It is called once
// the events are folded.
func (a *answer) conclude(b *batch) (through []int64) {
	through = a.through(b)
	n := len(through)
	if a.skips != nil {
		a.skipped, n = 1, n-1
	}
	a.applied += n
	a.left -= len(through)
	b.counts.parked -= int64(len(through))
	switch {
	case a.failed != "":
		a.outcome = fmt.Sprintf("%s%s%s/%d/%d failed: %s", a.done(), failedAgain, a.request.category, a.request.slot, a.at, a.failed)
	case a.left == 0 && a.applied+a.skipped == 0:
		a.outcome = "nothing was parked"
	case a.left == 0:
		a.outcome = a.done()
	}
	return through
}

// failedAgain is in the outcome of a request behind which the stream is still
// parked.
const failedAgain = "; then "

func (a *answer) done() string {
	text := fmt.Sprintf("%d applied", a.applied)
	if a.skipped > 0 {
		text = "1 skipped, " + text
	}
	return text
}

// queue adds to the batch's transaction what it does to the request and to the
// tables of what is parked.
func (a *answer) queue(trip *pgx.Batch, w *worker, through []int64) {
	v, r := w.feed.Version, a.request
	if len(through) > 0 {
		trip.Queue(`delete from refold.parked_event where projection = $1 and version = $2 and category = $3 and slot = $4 and seq = any($5)`, v.Projection, v.Number, r.category, r.slot, through)
	}
	if s := a.skips; s != nil {
		trip.Queue(`insert into refold.decision (projection, category, slot, seq, id, reason) select $1, $2, $3, $4, $5, reason from refold.row_request where id = $6
			on conflict (projection, category, slot, seq) do update set id = excluded.id, reason = excluded.reason, decided = clock_timestamp()`,
			v.Projection, r.category, s.Slot, s.Seq, [16]byte(s.ID), r.id)
	}
	switch {
	case a.failed != "":
		trip.Queue(`update refold.parked_stream set error = $5 where projection = $1 and version = $2 and category = $3 and stream = $4`, v.Projection, v.Number, r.category, r.stream, clean(a.failed))
		trip.Queue(`update refold.parked_event set error = $6 where projection = $1 and version = $2 and category = $3 and slot = $4 and seq = $5`, v.Projection, v.Number, r.category, r.slot, a.at, clean(a.failed))
	case a.left == 0:
		trip.Queue(`delete from refold.parked_stream where projection = $1 and version = $2 and category = $3 and stream = $4`, v.Projection, v.Number, r.category, r.stream)
	}
	if a.outcome != "" {
		trip.Queue(`select refold.request_answer($1, $2, $3)`, r.id, v.Number, clean(a.outcome))
	} else {
		trip.Queue(`update refold.row_request set begun = begun || jsonb_build_object($2::text, true) where id = $1`, r.id, strconv.Itoa(v.Number))
	}
}

// committed makes it known to the worker.
func (a *answer) committed(w *worker) {
	if a.skips != nil {
		w.skipped[place{a.skips.Slot, a.skips.Seq}] = a.skips.ID
	}
	if a.left == 0 {
		delete(w.parked, a.request.stream)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if a.outcome != "" {
		w.requests = slices.DeleteFunc(w.requests, func(r request) bool { return r.id == a.request.id })
	}
}
