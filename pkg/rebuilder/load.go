package rebuilder

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/registry"
)

// load loads every partition that is not loaded.
func (j *job) load(ctx context.Context) error {
	if err := j.eachPart(ctx, j.loadPart); err != nil {
		return err
	}
	return j.advance(ctx, StepIndex, nil)
}

// eachPart does something with every partition that is not loaded. One whose
// topic is not whole is read from the event table, where that is allowed.
func (j *job) eachPart(ctx context.Context, do func(context.Context, *part) error) error {
	return j.eachOf(ctx, func(p *part) bool { return p.loaded && !j.faults.loadAgain }, func(ctx context.Context, p *part) error {
		err := do(ctx, p)
		if source := j.rebuild.Options.Source; source == FromEither && p.source == FromTopic && incomplete(err) {
			j.log.Warn("a partition is read from the event store", "topic", p.category.Topic, "partition", p.partition, "err", err)
			p.source = FromEventStore
			p.meter.source.Store(p.source)
			err = do(ctx, p)
		}
		return err
	})
}

// eachOf does something with every partition that is not done, a few at a time.
func (j *job) eachOf(ctx context.Context, done func(*part) bool, do func(context.Context, *part) error) error {
	group, doing := j.group(ctx)
	for _, p := range j.parts {
		if done(p) {
			continue
		}
		group.Go(func() error {
			if err := do(doing, p); err != nil {
				return fmt.Errorf("%s/%d: %w", p.category.Name, p.partition, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// group runs as much at a time as the rebuild may.
func (j *job) group(ctx context.Context) (*errgroup.Group, context.Context) {
	group, doing := errgroup.WithContext(ctx)
	group.SetLimit(j.rebuild.Options.Parallel)
	return group, doing
}

func incomplete(err error) bool {
	var missing *Incomplete
	return errors.As(err, &missing) || errors.Is(err, errRecreated)
}

// codeLoaded is what refold.rebuild_loaded raises.
const codeLoaded = "RF050"

// transient tells whether the steps may be tried again from the catalogue.
func transient(err error) bool {
	return postgres.Transient(err) || errors.Is(err, errBroker) || errors.Is(err, registry.ErrUnavailable) || postgres.IsCode(err, codeLoaded)
}

// loadPart loads one partition: its rows, progress and digest go in one
// transaction, which commits only under the job's lease and only once. The rows
// of a pass are copied when it ends; most partitions need one.
func (j *job) loadPart(ctx context.Context, p *part) error {
	point := fmt.Sprintf("load %s/%d", p.category.Name, p.partition)
	if err := j.stopAt("before " + point); err != nil {
		return err
	}
	conn, err := j.connect(ctx, j.name)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) // which rolls back what was not committed
	l, err := j.newLoader(ctx, conn, p, j.target())
	if err != nil {
		return err
	}
	if err := l.run(ctx); err != nil {
		return err
	}
	if j.faults.splitTransaction {
		if _, err := conn.Exec(ctx, `commit; begin`); err != nil {
			return err
		}
	}
	if err := j.stopAt("within " + point); err != nil {
		return err
	}
	if err := l.commit(ctx, l.queueProgress); err != nil {
		return err
	}
	return j.stopAt("after " + point)
}

// run makes the passes, again when streams had to be parked too late.
func (l *loader) run(ctx context.Context) error {
	for {
		err := l.passes(ctx)
		if !errors.Is(err, errAgain) {
			return err
		}
		if !l.opened {
			continue
		}
		if _, err := l.conn.Exec(ctx, `rollback`); err != nil {
			return fmt.Errorf("starting over: %w", err)
		}
		l.opened = false
	}
}

// done notes that the partition is loaded.
func (p *part) done(l *loader) {
	p.loaded, p.rows, p.digest = true, l.written, int64(l.digest)
	p.meter.reach(p.meter.total)
	p.meter.loaded.Store(true)
	l.job.show(l.job.told())
}

// target is the table that partitions are loaded into.
func (j *job) target() string {
	if j.plan.Shared() {
		return partsTable(j.version)
	}
	return j.version.Table()
}

// commit ends the transaction of the load in one message, so that the lease is
// never held by a client that was paused in between. also, unless it is nil, adds
// what else belongs to it.
func (l *loader) commit(ctx context.Context, also func(*pgx.Batch)) error {
	p, trip := l.part, &pgx.Batch{}
	trip.Queue(`update refold.rebuild_partition set source = $5 where rebuild = $1 and category = $2 and generation = $3 and partition = $4`,
		l.job.id, p.category.Name, p.category.Generation, p.partition, p.source)
	if l.job.faults.loadAgain {
		trip.Queue(`update refold.rebuild_partition set loaded = null where rebuild = $1 and partition = $2`, l.job.id, p.partition)
	}
	trip.Queue(`select refold.rebuild_loaded($1, $2, $3, $4, $5, $6, $7)`, l.job.id, p.category.Name, p.category.Generation, p.partition, l.events(), l.written, int64(l.digest))
	if also != nil {
		also(trip)
	}
	trip.Queue(postgres.VerifyLeaseSQL, l.job.lease.Name, l.job.lease.Fence, l.job.lease.Nonce)
	trip.Queue(`commit`)
	if err := l.conn.SendBatch(ctx, trip).Close(); err != nil {
		return fmt.Errorf("committing the load of %s/%d: %w", p.category.Name, p.partition, err)
	}
	p.done(l)
	return nil
}

// queueProgress sets the progress of the partition, from which an engine goes on.
func (l *loader) queueProgress(trip *pgx.Batch) {
	v, p, c := l.job.version, l.part, l.counts
	var last any
	if l.lastRecorded != 0 {
		last = l.lastRecorded.Std()
	}
	ids := make([][16]byte, len(l.sequence.ids))
	for i, id := range l.sequence.ids {
		ids[i] = id
	}
	parked := int64(len(l.parkedEvents()))
	trip.Queue(`select refold.progress_load($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`, v.Projection, v.Number, p.category.Name, p.category.Generation,
		p.partition, p.topicID, p.end, l.sequence.seqs, ids, l.events()-c.filtered-c.skipped-parked, c.duplicates, c.filtered, parked, c.skipped, c.foreign, last)
	l.queueParked(trip)
}

func (l *loader) queueParked(trip *pgx.Batch) {
	v := l.job.version
	for _, s := range l.parked {
		first := s.events[0]
		trip.Queue(`insert into refold.parked_stream (projection, version, category, stream, slot, error) values ($1, $2, $3, $4, $5, $6)`,
			v.Projection, v.Number, first.Category, first.Stream, first.Slot, s.why)
		for i, e := range s.events {
			why := ""
			if i == 0 {
				why = s.why
			}
			trip.Queue(`insert into refold.parked_event (projection, version, category, stream, slot, seq, stream_version, id, type, time, recorded, actor, correlation_id, causation_id, traceparent, value, error)
				values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, nullif($12, ''), nullif($13, ''), nullif($14, ''), nullif($15, ''), $16, nullif($17, ''))`,
				v.Projection, v.Number, e.Category, e.Stream, e.Slot, e.Seq, e.Version, [16]byte(e.ID), e.Type, e.Time.Std(), e.Recorded.Std(),
				e.Metadata.Actor, e.Metadata.CorrelationID, e.Metadata.CausationID, e.Metadata.Traceparent, e.Value, why)
		}
	}
}
