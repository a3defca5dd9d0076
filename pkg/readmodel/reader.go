package readmodel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
)

// Reader answers queries. It is safe for concurrent use.
type Reader struct {
	pool      *pgxpool.Pool
	catalogue *Catalogue
	watcher   *Watcher
}

// NewReader returns a reader on a database.
func NewReader(pool *pgxpool.Pool, watcher *Watcher) *Reader {
	return &Reader{pool: pool, catalogue: NewCatalogue(pool), watcher: watcher}
}

// Fresh says what an answer must contain, and how long to wait for it.
type Fresh struct {
	Token event.Token
	Wait  time.Duration
}

// Errors of reading.
var (
	ErrNoRow = errors.New("no such row")
	// ErrNotCaughtUp says that the rows do not contain the token yet.
	ErrNotCaughtUp = errors.New("the rows do not contain the token yet")
	// ErrParked says that an event of the token waits in a parked stream.
	ErrParked = errors.New("an event of the token waits in a parked stream")
)

// Answer is where an answer comes from.
type Answer struct {
	Version  Version
	Progress Progress
}

// Get returns the row with a key as JSON, or [ErrNoRow].
func (r *Reader) Get(ctx context.Context, name, key string, fresh Fresh) (row []byte, from Answer, err error) {
	from, err = r.read(ctx, name, fresh, func(tx pgx.Tx, v Version) error {
		err := tx.QueryRow(ctx, `select data from `+v.Table()+` where key = $1`, key).Scan(&row)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNoRow
		}
		return err
	})
	return row, from, err
}

// Page is a part of a list.
type Page struct {
	Rows  []json.RawMessage
	Keys  []string
	Count *int64
}

// Query is a compiled list query: SQL made of the plan's names, and values.
type Query struct {
	Where, Order string
	Args         []any
	Limit        int
	Count        bool
}

// List returns the rows that a query selects.
func (r *Reader) List(ctx context.Context, name string, fresh Fresh, compile func(Version) (Query, error)) (page Page, from Answer, err error) {
	from, err = r.read(ctx, name, fresh, func(tx pgx.Tx, v Version) error {
		page = Page{}
		q, err := compile(v)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, fmt.Sprintf(`select key, data from %s where %s order by %s limit %d`, v.Table(), q.Where, q.Order, q.Limit), q.Args...)
		if err != nil {
			return err
		}
		var key string
		var data []byte
		_, err = pgx.ForEachRow(rows, []any{&key, &data}, func() error {
			page.Keys, page.Rows = append(page.Keys, key), append(page.Rows, append([]byte(nil), data...))
			return nil
		})
		if err != nil || !q.Count {
			return err
		}
		return tx.QueryRow(ctx, fmt.Sprintf(`select count(*) from %s where %s`, v.Table(), q.Where), q.Args...).Scan(&page.Count)
	})
	return page, from, err
}

// read runs a query in one snapshot that contains the token, on the active
// version. A version that was retired meanwhile is looked up again.
func (r *Reader) read(ctx context.Context, name string, fresh Fresh, query func(pgx.Tx, Version) error) (from Answer, err error) {
	deadline := time.NewTimer(fresh.Wait)
	defer deadline.Stop()
	for {
		moved := r.watcher.Moved() // before reading, so that no move is missed
		err := r.snapshot(ctx, name, fresh.Token, &from, query)
		if !errors.Is(err, ErrNotCaughtUp) {
			return from, err
		}
		select {
		case <-moved:
		case <-deadline.C:
			return from, err
		case <-ctx.Done():
			return from, context.Cause(ctx)
		}
	}
}

func (r *Reader) snapshot(ctx context.Context, name string, token event.Token, from *Answer, query func(pgx.Tx, Version) error) error {
	err := pgx.BeginTxFunc(ctx, r.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		if from.Version, err = activeIn(ctx, tx, name); err != nil {
			return err
		}
		if from.Progress, err = readProgress(ctx, tx, from.Version); err != nil {
			return err
		}
		if !from.Progress.covers(token) {
			return ErrNotCaughtUp
		}
		if err := parkedIn(ctx, tx, from.Version, token); err != nil {
			return err
		}
		return query(tx, from.Version)
	})
	if postgres.IsCode(err, "42P01") { // the version was retired: the next look finds another
		return ErrNotCaughtUp
	}
	return err
}

func activeIn(ctx context.Context, tx pgx.Tx, name string) (Version, error) {
	rows, err := tx.Query(ctx, `select `+versionColumns+` from refold.projection_version where projection = $1 and state = 'active'`, name)
	if err != nil {
		return Version{}, err
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Version])
	if errors.Is(err, pgx.ErrNoRows) {
		return v, ErrUnknownProjection
	}
	return v, err
}

// parkedIn refuses a token whose very events wait in a parked stream.
func parkedIn(ctx context.Context, tx pgx.Tx, v Version, token event.Token) error {
	var categories []string
	var slots []int16
	var seqs []int64
	for _, m := range token {
		if m.Written {
			categories, slots, seqs = append(categories, m.Category), append(slots, int16(m.Slot)), append(seqs, m.Seq)
		}
	}
	if len(categories) == 0 {
		return nil
	}
	var parked bool
	err := tx.QueryRow(ctx, `select exists (select from unnest($3::text[], $4::smallint[], $5::bigint[]) u (category, slot, seq)
		join refold.parked_event p on p.projection = $1 and p.version = $2 and p.category = u.category and p.slot = u.slot and p.seq = u.seq)`,
		v.Projection, v.Number, categories, slots, seqs).Scan(&parked)
	if err == nil && parked {
		return ErrParked
	}
	return err
}
