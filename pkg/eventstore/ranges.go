package eventstore

import (
	"context"

	"github.com/refoldhq/refold/pkg/event"
)

// SlotRange is the seqs of one slot beyond After, up to To.
type SlotRange struct {
	Slot      int
	After, To int64
}

// RangeEvents returns at most limit events of several ranges of a category, by
// slot and seq. They come without their predecessors' ids.
func (r *Reader) RangeEvents(ctx context.Context, category Category, ranges []SlotRange, limit int) ([]event.Event, error) {
	slots, after, to := make([]int16, len(ranges)), make([]int64, len(ranges)), make([]int64, len(ranges))
	for i, s := range ranges {
		slots[i], after[i], to[i] = int16(s.Slot), s.After, s.To
	}
	return r.events(ctx, category.Name, `select `+columns+`, null::uuid from unnest($2::smallint[], $3::bigint[], $4::bigint[]) u (s, a, z)
		join refold.event e on e.category = $1 and e.slot = u.s and e.seq > u.a and e.seq <= u.z order by e.slot, e.seq limit $5`,
		category.ID, slots, after, to, limit)
}
