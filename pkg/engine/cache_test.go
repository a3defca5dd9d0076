package engine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/projection"
)

// The cache against a list in order of use: the same rows stay, whichever
// partition they are of, and the bytes are those of the rows that are there.
func TestCacheKeepsTheRowsUsedLastOfAllPartitions(t *testing.T) {
	row := (&projection.Plan{}).NewRow()
	size := int64(row.Size() + 2 + cachedBytes)
	const holds = 10
	c := newRowCache(holds * size)
	parts := []*cachePart{c.part(), c.part(), c.part()}
	type id struct {
		part int
		key  string
	}
	var model []id // the one used last comes first
	use := func(x id) {
		model = slices.Insert(slices.DeleteFunc(model, func(y id) bool { return x == y }), 0, x)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		part := rnd.IntN(len(parts))
		switch key := fmt.Sprintf("%02d", rnd.IntN(20)); rnd.IntN(20) {
		case 0:
			parts[part].drop()
			model = slices.DeleteFunc(model, func(x id) bool { return x.part == part })
		case 1, 2, 3, 4, 5, 6, 7:
			s := &rowState{key: key}
			missing := parts[part].lookUp([]*rowState{s})
			found := slices.Contains(model, id{part, key})
			require.Equal(t, found, s.row != nil)
			require.Equal(t, !found, len(missing) == 1)
			if found {
				use(id{part, key})
			}
		default:
			parts[part].keep([]*rowState{{key: key, row: row}})
			use(id{part, key})
			model = model[:min(len(model), holds)]
		}
		require.Equal(t, int64(len(model))*size, c.bytes)
		require.Equal(t, len(model), len(parts[0].rows)+len(parts[1].rows)+len(parts[2].rows))
	}
}

// A row that grows is counted as large as it is.
func TestCacheCountsRowsThatGrow(t *testing.T) {
	c := newRowCache(1 << 20)
	p := c.part()
	small := &rowState{key: "k", row: (&projection.Plan{}).NewRow()}
	p.keep([]*rowState{small})
	was := c.bytes
	p.keep([]*rowState{small})
	require.Equal(t, was, c.bytes, "to keep a row twice costs nothing")
	p.drop()
	require.Zero(t, c.bytes)
}
