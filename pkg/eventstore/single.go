package eventstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
)

const appendOneSQL = `select recorded, head, last from refold.append_one($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`

// What refold.append_one raises.
const (
	codeConflict = "RF110"
	codeKnown    = "RF111" // judged in two trips
)

// alone tells whether the batch is one request that one call can carry out.
func (w *work) alone() bool {
	if len(w.requests) != 1 || w.long {
		return false
	}
	r := w.requests[0].request
	return len(r.writes) == 1 && len(r.guards) == 0 && len(r.writes[0].Claims)+len(r.writes[0].Releases) == 0
}

// single carries out a batch of one in one trip, or finds that it takes two (long). The answer comes with the COMMIT,
// for the call is a transaction. A conflict was raised by the server under the
// lock of the slot, so the version that it names was committed.
func (l *lane) single(ctx context.Context, w *work) error {
	r := w.requests[0].request
	if r.Seen != (postgres.Incarnation{}) && r.Seen != l.on {
		w.long = true // refused, unless it is a repetition
		return nil
	}
	var recorded time.Time
	var head, last int64
	err := l.conn.QueryRow(ctx, appendOneSQL, oneArguments(r)...).Scan(&recorded, &head, &last)
	switch {
	case err == nil:
		b := newBatch(event.TimeOf(recorded), nil)
		write := &r.writes[0]
		b.heads[slotKey{write.category.ID, write.slot}] = head
		b.versions[streamKey{write.category.ID, write.Stream}] = last
		w.outcomes[0] = outcome{result: &Result{Appends: []AppendResult{b.append(write, &r.Metadata)}}}
		return nil
	case postgres.IsCode(err, codeConflict):
		w.outcomes[0], err = r.conflict(err)
		return err
	case postgres.IsCode(err, codeKnown), postgres.IsCode(err, "23505"):
		w.long = true
		return nil
	default:
		return l.lose(w, fmt.Errorf("appending to %s/%s: %w", r.writes[0].Category, r.writes[0].Stream, err))
	}
}

func oneArguments(r *request) []any {
	w := &r.writes[0]
	n := len(w.Events)
	ids, times, types, values := make([][16]byte, n), make([]*time.Time, n), make([]string, n), make([][]byte, n)
	for i := range w.Events {
		e := &w.Events[i]
		ids[i], types[i], values[i] = e.ID, e.Type, e.Value
		if e.Time != nil {
			at := e.Time.Std()
			times[i] = &at
		}
	}
	m := &r.Metadata
	var keyed []byte
	if r.Key != "" {
		keyed = r.ids()
	}
	return []any{w.category.ID, int16(w.slot), w.Stream, w.Expected.code(), ids, times, types, values,
		optional(m.Actor), optional(m.CorrelationID), optional(m.CausationID), optional(m.Traceparent), optional(r.Key), r.Hash, keyed, w.chosen}
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// conflict reads the version that the server found.
func (r *request) conflict(err error) (outcome, error) {
	w := &r.writes[0]
	var raised *pgconn.PgError
	errors.As(err, &raised)
	actual, err := strconv.ParseInt(raised.Detail, 10, 64)
	if err != nil {
		return outcome{}, fmt.Errorf("reading the version of %s/%s that the server found: %w", w.Category, w.Stream, err)
	}
	return outcome{err: &VersionConflict{Category: w.Category, Stream: w.Stream, Expected: w.Expected, Actual: actual}}, nil
}
