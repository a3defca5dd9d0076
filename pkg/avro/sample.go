package avro

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/refoldhq/refold/pkg/event"
)

// Sample appends a payload of the schema to dst that r chooses: bounds and zeros
// more often than chance would have them, texts beyond ASCII, optional values there
// and not. The same r gives the same payload.
func (s *Schema) Sample(dst []byte, r *rand.Rand) []byte { return sample(dst, s.root, r) }

func sample(dst []byte, n *node, r *rand.Rand) []byte {
	switch n.kind {
	case Record:
		for _, f := range n.fields {
			dst = sample(dst, f.node, r)
		}
		return dst
	case Union:
		i := r.IntN(len(n.branches))
		return sample(appendLong(dst, int64(i)), n.branches[i], r)
	case Array, Map:
		start, count := len(dst), r.IntN(4)
		for i := range count {
			if n.kind == Map {
				dst = appendBytes(dst, fmt.Sprintf("key%d", i))
			}
			dst = sample(dst, n.items, r)
		}
		return closeBlock(dst, start, count)
	case String, UUID, Bytes, Fixed, Decimal:
		return sampleBytes(dst, n, r)
	default:
		return appendLeaf(dst, n, sampleNumber(n, r))
	}
}

func pick[T any](r *rand.Rand, choices ...T) T { return choices[r.IntN(len(choices))] }

func sampleNumber(n *node, r *rand.Rand) (v Value) {
	switch n.kind {
	case Bool:
		v.Int = int64(r.IntN(2))
	case Int:
		v.Int = pick(r, 0, 1, -1, math.MaxInt32, math.MinInt32, int64(r.IntN(1000)))
	case Long:
		v.Int = pick(r, 0, 1, -1, math.MaxInt64, math.MinInt64, r.Int64N(1_000_000))
	case Float:
		v.Float = pick(r, 0, -1.5, math.MaxFloat32, float64(r.Float32()))
	case Double:
		v.Float = pick(r, 0, -1.5, 1e300, r.Float64())
	case Enum:
		v.Int = int64(r.IntN(len(n.symbols)))
	case Timestamp:
		v.Int = pick(r, 0, int64(event.MinTime), int64(event.MaxTime), r.Int64N(2e15)) / 1000 * 1000 // whole milliseconds fit every type
	case Date:
		v.Int = pick(r, 0, minDate, maxDate, r.Int64N(30000))
	case TimeOfDay:
		v.Int = pick(r, 0, dayUS-1000, r.Int64N(dayUS)/1000*1000)
	}
	return v
}

func sampleBytes(dst []byte, n *node, r *rand.Rand) []byte {
	switch n.kind {
	case String:
		return appendBytes(dst, pick(r, "", "text", "two words", "ünïcödé ☃ \U0001f600", `"quoted" \ `+"\n", fmt.Sprint("n", r.IntN(1000))))
	case UUID:
		var id [16]byte
		binary.BigEndian.PutUint64(id[:], r.Uint64())
		binary.BigEndian.PutUint64(id[8:], r.Uint64())
		return appendBytes(dst, fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:]))
	case Decimal:
		raw := sampleDecimal(n, r)
		if n.fixed {
			return append(dst, raw...)
		}
		return appendBytes(dst, raw)
	}
	size := n.size
	if !n.fixed {
		size = r.IntN(5)
	}
	raw := make([]byte, size)
	for i := range raw {
		raw[i] = byte(r.Uint32())
	}
	if n.fixed {
		return append(dst, raw...)
	}
	return appendBytes(dst, raw)
}

// sampleDecimal returns an unscaled value of up to as many digits as there may be,
// or 18.
func sampleDecimal(n *node, r *rand.Rand) []byte {
	most := pow10[min(n.precision, len(pow10)-1)] - 1
	if n.fixed && n.size < 8 {
		most = min(most, 1<<(8*n.size-1)-1)
	}
	v := pick(r, 0, most, -most, r.Int64N(most+1))
	var raw [8]byte
	binary.BigEndian.PutUint64(raw[:], uint64(v))
	switch {
	case n.fixed && n.size <= 8:
		return raw[8-n.size:]
	case n.fixed:
		wide := make([]byte, n.size-8, n.size)
		if v < 0 {
			for i := range wide {
				wide[i] = 0xff
			}
		}
		return append(wide, raw[:]...)
	default:
		return raw[:]
	}
}
