package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// A rebuild of the kind [Fields] fills fields that are new into the rows of the
// version that serves, while it is fed and read.
//
//	preflight -> rehearse -> fill -> verify -> promote
//
// The rehearsal folds the whole history by the new plan and writes nothing: it
// proves that the history is whole and that no stream has to be parked which the
// version has applied. Then one transaction makes the version be fed by the new
// plan, see [readmodel.BeginCompletion]; queries keep the old one until promote.
//
// A row of one stream is completed by whoever comes first: the engine, when an
// event concerns it, or the fill. Both fold its stream from the log up to what
// the partition has applied; the row itself says whether it is whole, so a job
// that was killed goes on with the rows that are not. The fill holds the lock of
// the partition's progress while it does a few rows: so nothing is applied
// meanwhile, and it never touches a row that an engine has in its cache, because
// such a row is whole.
//
// Shared rows are never read before they are written. The engine merges what
// comes after the change of plan into all fields, and the fill merges into the
// new ones what came before, from parts which it deletes in the same transaction.

// fields begins or goes on with what is to be done with the rows that there are.
func (j *job) fields() *fields {
	f := &fields{job: j}
	for _, x := range j.plan.Fields() {
		f.all = append(f.all, x.Name)
	}
	return f
}

type fields struct {
	*job
	all []string // names of the fields that a whole row has
}

// Unfit says that new fields cannot be filled into rows that are there, because
// the new plan cannot apply an event that the version has applied.
type Unfit struct {
	Projection, Stream, Why string
}

func (e *Unfit) Error() string {
	return fmt.Sprintf("the new fields of %s cannot be filled into the rows that are there: the stream %s would be parked: %s; `rebuild run --fresh %s` builds a version, which parks it", e.Projection, e.Stream, e.Why, e.Projection)
}

// errChanged says that the version is not the one that was compared with.
var errChanged = errors.New("another version serves since the rebuild was begun; cancel it and run again")

// preflightFields pins what the rehearsal reads.
func (j *job) preflightFields(ctx context.Context) error {
	parts, err := j.pin(ctx, j.rebuild.Options.Source)
	if err != nil {
		return err
	}
	active, err := j.catalogue.Active(ctx, j.name)
	if err != nil {
		return err
	}
	return j.advance(ctx, StepRehearse, func(tx pgx.Tx) error {
		return j.keepParts(ctx, tx, active, parts)
	})
}

// rehearse folds what was pinned and writes nothing, and then makes the version
// be fed by the new plan.
func (j *job) rehearse(ctx context.Context) error {
	if err := j.eachPart(ctx, j.rehearsePart); err != nil {
		return err
	}
	served, err := j.findVersion(ctx, j.name, j.version.Number)
	if err != nil {
		return err
	}
	err = j.advance(ctx, StepFill, func(tx pgx.Tx) error {
		if err := readmodel.BeginCompletion(ctx, tx, served, j.plan); err != nil {
			return err
		}
		if !j.plan.Shared() {
			return nil
		}
		// What the version has applied now is what the parts are made of.
		if _, err := tx.Exec(ctx, `update refold.rebuild_partition r set source = 'eventstore', loaded = null, heads = p.seqs from refold.progress p where r.rebuild = $1
			and p.projection = $2 and p.version = $3 and p.category = r.category and p.generation = r.generation and p.partition = r.partition`, j.id, j.name, served.Number); err != nil {
			return fmt.Errorf("pinning what was applied: %w", err)
		}
		return createParts(ctx, tx, served)
	})
	if errors.Is(err, readmodel.ErrNotServable) {
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	if err != nil {
		return err
	}
	return j.reload(ctx)
}

// rehearsePart folds one partition and looks whether a stream has to be parked
// that the version has not parked.
func (j *job) rehearsePart(ctx context.Context, p *part) error {
	l, err := j.newLoader(ctx, nil, p, "")
	if err != nil {
		return err
	}
	if err := l.run(ctx); err != nil {
		return err
	}
	parked, err := j.parkedFrom(ctx, j.pool, j.version, p.category.Name)
	if err != nil {
		return err
	}
	applied, err := j.applied(ctx, j.pool, p, "")
	if err != nil {
		return err
	}
	for stream, s := range l.parked {
		slot := p.category.SlotOf(stream)
		if from, is := parked[stream]; s.from <= applied.seqs[p.place(slot)] && (!is || s.from < from) {
			return &Unfit{j.name, stream, s.why}
		}
	}
	return j.noteLoaded(ctx, l)
}

// noteLoaded writes down that a partition is done, without rows of its own.
func (j *job) noteLoaded(ctx context.Context, l *loader) error {
	p := l.part
	err := j.write(ctx, fmt.Sprintf("rehearse %s/%d", p.category.Name, p.partition), func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `select refold.rebuild_loaded($1, $2, $3, $4, $5, $6, $7)`, j.id, p.category.Name, p.category.Generation, p.partition, l.events(), l.written, int64(l.digest))
		return err
	})
	if err != nil {
		return fmt.Errorf("noting the rehearsal of %s/%d: %w", p.category.Name, p.partition, err)
	}
	p.done(l)
	return nil
}

// position is how far the version is in one partition.
type position struct {
	next int64 // offset
	seqs []int64
}

// applied reads how far the version is in a partition; lock is empty or "for
// update", which holds its feeding up until the transaction ends.
func (j *job) applied(ctx context.Context, q querier, p *part, lock string) (at position, err error) {
	err = q.QueryRow(ctx, `select next_offset, seqs from refold.progress where projection = $1 and version = $2 and category = $3 and generation = $4 and partition = $5 `+lock,
		j.name, j.version.Number, p.category.Name, p.category.Generation, p.partition).Scan(&at.next, &at.seqs)
	if err != nil {
		return at, fmt.Errorf("reading the progress of %s/%d: %w", p.category.Name, p.partition, err)
	}
	return at, nil
}

// fill completes all rows.
func (j *job) fill(ctx context.Context) error {
	f := j.fields()
	var err error
	if j.plan.Shared() {
		err = f.fillShared(ctx)
	} else {
		err = f.fillOwn(ctx)
	}
	if err != nil {
		return err
	}
	j.meter.wait("")
	return j.advance(ctx, StepVerify, nil)
}

// newTypes returns the event types that the new plan uses and the former does
// not: they may make rows which the former has not made.
func newTypes(before, after *projection.Plan, types func(category string) []string) (list []string) {
	for _, category := range after.Categories() {
		for _, typ := range types(category) {
			if after.Uses(category, typ) && !before.Uses(category, typ) {
				list = append(list, typ)
			}
		}
	}
	return list
}

// types returns the event types of a category.
func (r *Rebuilder) types(category string) (names []string) {
	if c, known := r.deps.Contracts.Category(category); known {
		for _, t := range c.Types {
			names = append(names, t.Name)
		}
	}
	return names
}

// addedFields returns the names of fields that only the later plan has.
func addedFields(before, after *projection.Plan) (names []string) {
	for _, x := range after.Fields() {
		if !slices.ContainsFunc(before.Fields(), func(y projection.Field) bool { return x.Name == y.Name }) {
			names = append(names, x.Name)
		}
	}
	return names
}

// publish lets queries go by the new definition, with its indexes.
func (j *job) publish(ctx context.Context) error {
	conn, err := j.connect(ctx, j.name)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := j.stopAt("before promote"); err != nil {
		return err
	}
	now := j.meter.read(time.Now())
	err = readmodel.ChangeIndexes(ctx, conn, j.version, j.plan, func(ctx context.Context, tx pgx.Tx) error {
		if err := j.noteDone(ctx, tx, now); err != nil {
			return err
		}
		if err := j.stopAt("within promote"); err != nil {
			return err
		}
		return j.lease.Verify(ctx, tx)
	})
	if err != nil {
		return err
	}
	j.ended("the fields are offered", now)
	return j.stopAt("after promote")
}
