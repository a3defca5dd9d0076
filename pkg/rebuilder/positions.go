package rebuilder

import (
	"context"
	"fmt"
	"math"

	"github.com/jackc/pgx/v5"
)

// positions are the last seqs of slots, by category and slot.
type positions map[string]map[int]int64

// heads reads how far a version is.
func heads(ctx context.Context, q querier, name string, version int) (positions, error) {
	rows, err := q.Query(ctx, `select category, slot, max(seq) from refold.progress, unnest(slots, seqs) u (slot, seq) where projection = $1 and version = $2 group by 1, 2`, name, version)
	if err != nil {
		return nil, fmt.Errorf("reading the progress of %s version %d: %w", name, version, err)
	}
	list := make(positions)
	var category string
	var slot int16
	var seq int64
	_, err = pgx.ForEachRow(rows, []any{&category, &slot, &seq}, func() error {
		list.set(category, int(slot), seq)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the progress of %s version %d: %w", name, version, err)
	}
	return list, nil
}

func (p positions) set(category string, slot int, seq int64) {
	if p[category] == nil {
		p[category] = make(map[int]int64)
	}
	p[category][slot] = seq
}

// events returns how many events there are up to here.
func (p positions) events() (n int64) { return p.beyond(nil) }

// beyond returns how many events of p another position does not have.
func (p positions) beyond(other positions) (n int64) {
	for category, slots := range p {
		for slot, seq := range slots {
			n += max(0, seq-other[category][slot])
		}
	}
	return n
}

// greatest returns the first position that has all events of both.
func (p positions) greatest(other positions) positions {
	out := make(positions)
	for _, one := range []positions{p, other} {
		for category, slots := range one {
			for slot, seq := range slots {
				out.set(category, slot, max(seq, out[category][slot]))
			}
		}
	}
	return out
}

// towards returns a position on the way to another one, about so many events off.
func (p positions) towards(to positions, events int64) positions {
	share := min(1, float64(events)/float64(max(1, to.beyond(p))))
	out := make(positions)
	for category, slots := range to {
		for slot, seq := range slots {
			from := p[category][slot]
			out.set(category, slot, from+int64(math.Ceil(share*float64(max(0, seq-from)))))
		}
	}
	return out
}
