package eventstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// LogReport is what [VerifyLog] counted.
type LogReport struct {
	Categories int   `json:"categories"`
	Slots      int64 `json:"slots"`
	Streams    int64 `json:"streams"`
	Events     int64 `json:"events"`
	Claims     int64 `json:"claims"`
}

// Breaks are looked for in one snapshot, so that appends meanwhile do not matter.
const (
	slotBreakSQL = `select c.name || '/' || slot || '/' || expected from (
		select e.category, e.slot, e.seq, s.floor + row_number() over (partition by e.slot, e.category order by e.seq) expected
		from refold.event e join refold.slot s using (category, slot)) e join refold.category c on c.id = e.category
		where seq <> expected order by 1 limit 1`
	streamBreakSQL = `select c.name || '/' || stream || ' version ' || expected from (
		select category, stream, version, row_number() over (partition by stream, category order by version) expected,
		       row_number() over (partition by stream, category order by seq) by_seq from refold.event) e join refold.category c on c.id = e.category
		where version <> expected or version <> by_seq order by 1 limit 1`
	countSQL = `select (select count(*) from refold.category), count(distinct (category, slot)), count(distinct (category, stream)), count(*),
		(select count(*) from refold.claim) from refold.event`
	// Whether the holder should hold it only its aggregate knows.
	claimBreakSQL = `select k.namespace || ' held by ' || coalesce(c.name || '/' || k.stream, 'nobody') from refold.claim k left join refold.category c on c.id = k.category
		where not exists (select from refold.event e where e.category = k.category and e.stream = k.stream) order by 1 limit 1`
)

// ErrBroken is wrapped by what [VerifyLog] finds.
var ErrBroken = errors.New("the log is broken")

// VerifyLog reads the whole log and checks that the sequence of every slot and
// the versions of every stream are dense and in the same order, and that whoever
// holds a claim exists. The error names the first break and wraps [ErrBroken].
func VerifyLog(ctx context.Context, pool *pgxpool.Pool) (LogReport, error) {
	var report LogReport
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, countSQL).Scan(&report.Categories, &report.Slots, &report.Streams, &report.Events, &report.Claims); err != nil {
			return err
		}
		for _, check := range []struct{ sql, what string }{{slotBreakSQL, "the slot's sequence breaks at"}, {streamBreakSQL, "the stream's versions break at"},
			{claimBreakSQL, "a claim's holder has no events: a value within"}} {
			var place string
			err := tx.QueryRow(ctx, check.sql).Scan(&place)
			if errors.Is(err, pgx.ErrNoRows) {
				continue
			}
			if err != nil {
				return err
			}
			return fmt.Errorf("%w: %s %s", ErrBroken, check.what, place)
		}
		return nil
	})
	if err != nil && !errors.Is(err, ErrBroken) {
		err = fmt.Errorf("verifying the log: %w", err)
	}
	return report, err
}
