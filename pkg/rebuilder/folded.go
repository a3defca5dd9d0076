package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// folded is what the log makes, for a version to be compared with: a fold of the
// event table in a temporary table of a session.
//
// It takes as long as the rate of the rebuild has it take, and holds nothing
// meanwhile: no snapshot and no transaction, which would keep the server from
// vacuuming. So the version goes on under it, and the fold is brought forward to
// where the version is, in the end within the snapshot that compares the two. That
// one lives for a few events and for what it takes to compare rows in SQL.
//
// What it parks it finds itself. What somebody decides to skip while it is made
// would make it wrong: then it is made anew.
type folded struct {
	rowsAt
	job       *job
	conn      *pgx.Conn
	version   readmodel.Version
	decisions map[string]engine.Decisions // by category, as they were when it was begun
	took      time.Duration
}

// foldedTable is where the rows are, partsOfFold where parts of shared rows wait
// to be merged.
const (
	foldedTable = "pg_temp.refold_folded"
	partsOfFold = "pg_temp.refold_parts"
)

// errDecided says that somebody has decided to skip an event since a fold was begun.
var errDecided = errors.New("it was decided to skip an event meanwhile")

// foldLog folds the event table up to the progress of the version.
func (j *job) foldLog(ctx context.Context, conn *pgx.Conn, v readmodel.Version) (*folded, error) {
	began := time.Now()
	f := &folded{job: j, conn: conn, version: v, decisions: make(map[string]engine.Decisions)}
	f.rowsAt = rowsAt{table: foldedTable, plan: j.plan, parked: make(map[string]map[string]int64)}
	var err error
	for _, c := range j.categories {
		f.parked[c.Name] = make(map[string]int64)
		if f.decisions[c.Name], err = engine.ReadDecisions(ctx, conn, j.name, c.Name, nil); err != nil {
			return nil, err
		}
	}
	if f.at, err = heads(ctx, conn, v.Projection, v.Number); err != nil {
		return nil, err
	}
	if err := makeRowTable(ctx, conn, foldedTable, ""); err != nil {
		return nil, err
	}
	folding := j.beside(v)
	defer j.meter.follow(&folding.meter)()
	for _, p := range folding.partsUpTo(f.at) {
		if err := f.part(ctx, folding, p); err != nil {
			return nil, fmt.Errorf("folding %s/%d: %w", p.category.Name, p.partition, err)
		}
	}
	err = f.catchUp(ctx)
	f.took = time.Since(began)
	return f, err
}

// partsUpTo returns the partitions of the event table up to a position.
func (j *job) partsUpTo(at positions) []*part {
	var list []*part
	for _, category := range j.categories {
		for n := range category.Partitions {
			p := &part{category: category, partition: n, source: FromEventStore, heads: make([]int64, category.Slots/category.Partitions)}
			for i := range p.heads {
				p.heads[i] = at[category.Name][p.slot(i)]
			}
			list = append(list, p)
		}
	}
	j.setParts(list)
	return list
}

// part folds one partition, by the load's own passes within the memory budget.
// Each of its statements commits by itself.
func (f *folded) part(ctx context.Context, folding *job, p *part) error {
	into := foldedTable
	if f.plan.Shared() {
		into = partsOfFold
	}
	l, err := folding.newLoader(ctx, f.conn, p, into)
	if err != nil {
		return err
	}
	l.opened = true
	for again := true; again; {
		if f.plan.Shared() {
			if _, err := f.conn.Exec(ctx, `drop table if exists `+partsOfFold+`; create temp table refold_parts (category text collate "C", partition integer, key text collate "C", data jsonb, state jsonb)`); err != nil {
				return fmt.Errorf("making a table of parts: %w", err)
			}
		}
		err = l.passes(ctx)
		again = errors.Is(err, errAgain)
	}
	if err != nil {
		return err
	}
	for stream, s := range l.parked {
		f.parked[p.category.Name][stream] = s.from
	}
	if !f.plan.Shared() {
		return nil
	}
	return pgx.BeginFunc(ctx, f.conn, func(tx pgx.Tx) error { return folding.mergeRows(ctx, tx, p, foldedTable, partsOfFold) })
}

const (
	// roundEvents is about how many events a fold is brought forward by at a time.
	roundEvents = 20_000
	// maxStalls is how often the version may have got further ahead meanwhile, before
	// the fold is compared from where it is.
	maxStalls = 10
)

// catchUp brings the fold forward to where the version is, but for a few events,
// in short transactions and as fast as that goes.
func (f *folded) catchUp(ctx context.Context) error {
	for last, stalls := int64(0), 0; stalls < maxStalls; {
		behind, err := f.round(ctx)
		if err != nil || behind <= enough {
			return err
		}
		if last > 0 && behind >= last {
			stalls++
		}
		last = behind
		if err := f.job.gate(ctx, 0); err != nil {
			return err
		}
	}
	return nil
}

// round brings the fold forward by some events, and returns how many it was behind.
func (f *folded) round(ctx context.Context) (behind int64, err error) {
	var to positions
	err = pgx.BeginFunc(ctx, f.conn, func(tx pgx.Tx) error {
		now, err := heads(ctx, tx, f.version.Projection, f.version.Number)
		if err != nil {
			return err
		}
		if behind = now.beyond(f.at); behind <= enough {
			return nil
		}
		to = f.at.towards(now, roundEvents)
		s := &snapshot{job: f.job, conn: f.conn, tx: tx, version: f.version}
		if _, _, err := s.bring(ctx, &f.rowsAt, to, "refold_round"); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `delete from `+foldedTable+` where key in (select key from pg_temp.refold_round_keys);
			insert into `+foldedTable+` select * from pg_temp.refold_round`)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("bringing the fold forward: %w", err)
	}
	if to != nil {
		f.at = to
	}
	return behind, nil
}

// holds is [errDecided] when the fold is not what is to be compared with any more.
func (f *folded) holds(ctx context.Context, tx pgx.Tx) error {
	for category, before := range f.decisions {
		now, err := engine.ReadDecisions(ctx, tx, f.job.name, category, nil)
		if err != nil {
			return err
		}
		if !maps.Equal(before, now) {
			return errDecided
		}
	}
	return nil
}
