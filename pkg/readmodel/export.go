package readmodel

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
)

// An export holds a snapshot, and with it a lock on the version's table that
// taking a version away waits for. So there are few at a time, and each has an end.
const (
	maxExports    = 2
	exportTimeout = 10 * time.Minute
	exportPage    = 1000
)

// Export hands all rows that a condition selects to row, by key, from one
// snapshot. Before the first it calls begin with where they come from;
// from.ChangeID() is where to follow changes without a gap. It holds a session
// until row has taken the last one, at most ten minutes. At most two exports run
// at a time in a process; another returns [ErrBusy].
func (r *Reader) Export(ctx context.Context, name string, where Condition, fresh Fresh, begin func(from Answer) error, row func(key string, data []byte) error) error {
	select {
	case r.exports <- struct{}{}:
		defer func() { <-r.exports }()
	default:
		return ErrBusy
	}
	ctx, cancel := context.WithTimeout(ctx, exportTimeout)
	defer cancel()
	// Waiting for what the client wants is done without a transaction. What one
	// snapshot has contained, every later one contains.
	if _, err := r.answer(ctx, r.current(name), fresh, func(m *Model, doubts []event.Mark, _ bool) (*snapshot, error) {
		_, of, err := m.getter.read(ctx, nil, doubts)
		return of, err
	}); err != nil {
		return classify(err)
	}
	for attempt := 0; ; attempt++ {
		m, tx, err := r.beginExport(ctx, name)
		begun := false
		if err == nil {
			err = r.export(ctx, tx, m, where, fresh, func(from Answer) error { begun = true; return begin(from) }, row)
			tx.Rollback(ctx) // it has only read
		}
		again := !begun && (isGone(err) || isNotActive(err) || isDead(err)) && attempt < maxFlips
		if !again {
			return classify(err)
		}
		if m != nil {
			r.models.forget(m)
		}
	}
}

// beginExport does not wait for as long as an export may take.
func (r *Reader) beginExport(ctx context.Context, name string) (m *Model, tx pgx.Tx, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	if m, err = r.models.current(ctx, name); err == nil {
		tx, err = r.pool.Begin(ctx)
	}
	return m, tx, err
}

func (r *Reader) export(ctx context.Context, tx pgx.Tx, m *Model, where Condition, fresh Fresh, begin func(Answer) error, row func(string, []byte) error) error {
	s := &statement{plan: m.Plan}
	condition, err := s.sql(where, 0)
	if err != nil {
		return err
	}
	of := r.watcher.validity.begin()
	trip := &pgx.Batch{}
	of.queue(trip, m.Version, r.watcher.validity.doubtful(fresh.Token, true))
	short, cancel := context.WithTimeout(ctx, r.patience)
	err = tx.SendBatch(short, trip).Close()
	cancel()
	if err != nil {
		return err
	}
	from := r.from(m, of, fresh)
	from.byStream = false
	if err := r.judge(m, of, false, from, fresh); err != nil {
		return err
	}
	if err := begin(from); err != nil {
		return err
	}
	after := s.bind("")
	sql := fmt.Sprintf(`select key, %s from %s where %s and key > %s order by key limit %d`, m.row, m.Version.Table(), condition, after, exportPage)
	for n := exportPage; n == exportPage; {
		rows, err := tx.Query(ctx, sql, s.args...)
		if err != nil {
			return err
		}
		n = 0
		var key string
		var data []byte
		_, err = pgx.ForEachRow(rows, []any{&key, &data}, func() error {
			n++
			return row(key, data)
		})
		if err != nil {
			return err
		}
		s.args[len(s.args)-1] = key
	}
	return nil
}
