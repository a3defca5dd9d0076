package torture

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// account and owner are the rows as a slow and obvious fold makes them.
type account struct {
	ID      string `json:"id"`
	Owner   string `json:"owner"`
	Label   string `json:"label"`
	Events  int64  `json:"events"`
	Balance int64  `json:"balance"`
	Version int64  `json:"version"`
}

type owner struct {
	Owner    string `json:"owner"`
	Events   int64  `json:"events"`
	Balance  int64  `json:"balance"`
	Smallest *int64 `json:"smallest"`
	Greatest *int64 `json:"greatest"`
}

// foldAccounts folds the log; a stream stands still from its first poison on.
// It returns the rows and the number of events that wait.
func foldAccounts(events []*row) (accounts map[string]account, parked int64) {
	accounts = make(map[string]account)
	stuck := make(map[string]bool)
	for _, e := range events {
		if stuck[e.Stream] = stuck[e.Stream] || e.Event.Label == poisonLabel; stuck[e.Stream] {
			parked++
			continue
		}
		if e.Type == "AccountClosed" {
			delete(accounts, e.Stream)
			continue
		}
		a := accounts[e.Stream]
		a.ID, a.Owner, a.Label, a.Version = e.Stream, e.Event.Owner, e.Event.Label, e.Version
		a.Events++
		a.Balance += e.Event.Amount
		accounts[e.Stream] = a
	}
	return accounts, parked
}

func foldOwners(events []*row) map[string]owner {
	owners := make(map[string]owner)
	for _, e := range events {
		o := owners[e.Event.Owner]
		o.Owner = e.Event.Owner
		o.Events++
		if e.Type == "AccountBumped" {
			o.Balance += e.Event.Amount
			if o.Smallest == nil || e.Event.Amount < *o.Smallest {
				o.Smallest = &e.Event.Amount
			}
			if o.Greatest == nil || e.Event.Amount > *o.Greatest {
				o.Greatest = &e.Event.Amount
			}
		}
		owners[e.Event.Owner] = o
	}
	return owners
}

// checkRows checks invariants 8, 10 and 11: rows equal the fold of the log, and
// the counts of the progress rows add up.
func checkRows(ctx context.Context, conn *pgx.Conn, events []*row) (broken []string, err error) {
	accounts, parked := foldAccounts(events)
	more, err := compare(ctx, conn, "accounts", accounts)
	if err != nil {
		return nil, err
	}
	broken = append(broken, more...)
	if more, err = compare(ctx, conn, "owners", foldOwners(events)); err != nil {
		return nil, err
	}
	broken = append(broken, more...)
	for name, want := range map[string]int64{"accounts": parked, "owners": 0} {
		if more, err = checkProgress(ctx, conn, name, events, want); err != nil {
			return nil, err
		}
		broken = append(broken, more...)
	}
	return broken, nil
}

func compare[T any](ctx context.Context, conn *pgx.Conn, name string, want map[string]T) (broken []string, err error) {
	rows, err := conn.Query(ctx, `select key, data from refold.projections where projection_name = $1`, name)
	if err != nil {
		return nil, err
	}
	seen := 0
	var key string
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&key, &data}, func() error {
		seen++
		var got T
		if err := json.Unmarshal(data, &got); err != nil {
			return fmt.Errorf("reading the row %s of %s: %w", key, name, err)
		}
		expected, there := want[key]
		if g, e := render(got), render(expected); !there || g != e {
			broken = append(broken, fmt.Sprintf("8: %s %s is %s and should be %s (%t)", name, key, g, e, there))
		}
		return nil
	})
	if err == nil && seen != len(want) {
		broken = append(broken, fmt.Sprintf("8: %s has %d rows and should have %d", name, seen, len(want)))
	}
	return broken, err
}

func render(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return string(raw)
}

// checkProgress checks that a projection has come to the end of the log, and
// that what its progress rows count adds up.
func checkProgress(ctx context.Context, conn *pgx.Conn, name string, events []*row, parked int64) (broken []string, err error) {
	heads := make(map[int]int64)
	for _, e := range events {
		heads[e.Slot] = e.Seq
	}
	rows, err := conn.Query(ctx, `select partition, next_offset, slots, seqs, applied, duplicates, filtered, parked, skipped, foreign_records, filled, held, coalesce(alarm, ''), stopped::text
		from refold.progress where projection = $1`, name)
	if err != nil {
		return nil, err
	}
	var partition int
	var offset, applied, duplicates, filtered, waiting, skipped, foreign, filled, held, events8, parked8 int64
	var slots []int16
	var seqs []int64
	var alarm, stopped string
	_, err = pgx.ForEachRow(rows, []any{&partition, &offset, &slots, &seqs, &applied, &duplicates, &filtered, &waiting, &skipped, &foreign, &filled, &held, &alarm, &stopped}, func() error {
		for i, slot := range slots {
			if seqs[i] != heads[int(slot)] {
				broken = append(broken, fmt.Sprintf("16: %s stands at %d/%d, the log at %d (alarm %q, stopped %s)", name, slot, seqs[i], heads[int(slot)], alarm, stopped))
			}
		}
		if sum := applied + duplicates + filtered + waiting + skipped + foreign + held - filled; sum != offset {
			broken = append(broken, fmt.Sprintf("10: %s partition %d is at offset %d and accounts for %d records (%d applied, %d duplicates, %d filtered, %d parked, %d skipped, %d foreign, %d held, %d filled)",
				name, partition, offset, sum, applied, duplicates, filtered, waiting, skipped, foreign, held, filled))
		}
		events8 += applied + filtered + waiting + skipped
		parked8 += waiting
		return nil
	})
	if err == nil && (events8 != int64(len(events)) || parked8 != parked) {
		broken = append(broken, fmt.Sprintf("10: %s counts %d events of which %d parked; the log has %d and the fold parks %d", name, events8, parked8, len(events), parked))
	}
	return broken, err
}
