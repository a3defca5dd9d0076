package eventstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
)

// Outcome is what was done under an idempotency key.
type Outcome struct {
	// Hash is the digest of what was asked.
	Hash   []byte
	Result *Result
	// Version is what a command saw that raised nothing: then Result has no appends.
	Version int64
}

// ErrNoOutcome says that no request was carried out under a key.
var ErrNoOutcome = errors.New("nothing was done under the key")

// OutcomeOf returns what was done under an idempotency key, or [ErrNoOutcome].
// It takes no locks: a request under way is not seen, and meets the first one
// only when it is appended.
func (r *Reader) OutcomeOf(ctx context.Context, key string) (Outcome, error) {
	var out Outcome
	var ids []byte
	err := r.pool.QueryRow(ctx, `select request, events, coalesce(version, 0) from refold.idempotency_key where key = $1`, key).Scan(&out.Hash, &ids, &out.Version)
	if errors.Is(err, pgx.ErrNoRows) {
		return out, ErrNoOutcome
	}
	if err != nil {
		return out, fmt.Errorf("reading an idempotency key: %w", err)
	}
	out.Result, err = r.resultOf(ctx, ids)
	return out, err
}

// resultOf builds the answer whose events had these ids, in their order.
func (r *Reader) resultOf(ctx context.Context, ids []byte) (*Result, error) {
	var wanted [][16]byte
	for ; len(ids) >= 16; ids = ids[16:] {
		wanted = append(wanted, [16]byte(ids))
	}
	rows, err := r.pool.Query(ctx, `select e.id, c.name, e.stream, e.version, e.slot, e.seq, e.recorded
		from unnest($1::uuid[]) with ordinality u (id, n) join refold.event e on e.id = u.id join refold.category c on c.id = e.category order by u.n, c.name`, wanted)
	if err != nil {
		return nil, fmt.Errorf("reading the events of a key: %w", err)
	}
	result := &Result{Replayed: true}
	var id [16]byte
	var a Appended
	var stream string
	var slot int16
	var recorded time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &a.Position.Category, &stream, &a.Version, &slot, &a.Position.Seq, &recorded}, func() error {
		a.ID, a.Position.Slot, a.Recorded = id, int(slot), event.TimeOf(recorded)
		result.add(stream, a)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the events of a key: %w", err)
	}
	return result, nil
}

// add puts an event behind those of its stream.
func (r *Result) add(stream string, e Appended) {
	n := len(r.Appends)
	if n == 0 || r.Appends[n-1].Category != e.Position.Category || r.Appends[n-1].Stream != stream {
		r.Appends = append(r.Appends, AppendResult{Category: e.Position.Category, Stream: stream, FirstVersion: e.Version})
		n++
	}
	last := &r.Appends[n-1]
	last.LastVersion = e.Version
	last.Events = append(last.Events, e)
}

// VersionOf returns the version of a stream, 0 for one without events.
func (r *Reader) VersionOf(ctx context.Context, category Category, stream string) (version int64, err error) {
	err = r.pool.QueryRow(ctx, `select coalesce((select version from refold.event where category = $1 and stream = $2 order by version desc limit 1), 0)`,
		category.ID, stream).Scan(&version)
	if err != nil {
		return 0, fmt.Errorf("reading the version of %s/%s: %w", category.Name, stream, err)
	}
	return version, nil
}

const claimsOfSQL = `select namespace, value from refold.claim where category = $1 and stream = $2 order by namespace, value`

// ClaimsOf returns what a stream holds, in order.
func (r *Reader) ClaimsOf(ctx context.Context, category Category, stream string) ([]Claim, error) {
	rows, err := r.pool.Query(ctx, claimsOfSQL, category.ID, stream)
	if err != nil {
		return nil, fmt.Errorf("reading the claims of %s/%s: %w", category.Name, stream, err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Claim])
	if err != nil {
		return nil, fmt.Errorf("reading the claims of %s/%s: %w", category.Name, stream, err)
	}
	return list, nil
}

// Effects returns the events that name id as their cause, in the order in which
// they were recorded; at most limit.
func (r *Reader) Effects(ctx context.Context, id event.ID, limit int) ([]event.Event, error) {
	rows, err := r.pool.Query(ctx, `select c.name, e.id from refold.event e join refold.category c on c.id = e.category
		where e.causation_id = $1 order by e.recorded, c.name, e.slot, e.seq limit $2`, id.String(), limit)
	if err != nil {
		return nil, fmt.Errorf("reading the effects of %s: %w", id, err)
	}
	type place struct {
		Category string
		ID       [16]byte
	}
	places, err := pgx.CollectRows(rows, pgx.RowToStructByPos[place])
	if err != nil {
		return nil, fmt.Errorf("reading the effects of %s: %w", id, err)
	}
	var list []event.Event
	for _, p := range places {
		found, err := r.events(ctx, p.Category, `select `+columns+`, null::uuid from refold.event
			where id = $1 and category = (select id from refold.category where name = $2)`, p.ID, p.Category)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	return list, nil
}
