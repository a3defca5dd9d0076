package rebuilder

import (
	"encoding/binary"
	"math/bits"

	"github.com/refoldhq/refold/pkg/strictjson"
)

// hash computes what Postgres's hashtextextended(text, 0) does on a
// little-endian server: Jenkins' lookup3 as in its hash_bytes_extended. It is
// the one hash that is cheap on both sides; it guards against faults, not
// against somebody who forges rows on purpose.
func hash(k []byte) uint64 {
	a := uint32(0x9e3779b9) + uint32(len(k)) + 3923095
	b, c := a, a
	for len(k) >= 12 {
		a += binary.LittleEndian.Uint32(k)
		b += binary.LittleEndian.Uint32(k[4:])
		c += binary.LittleEndian.Uint32(k[8:])
		a, b, c = mix(a, b, c)
		k = k[12:]
	}
	var tail [12]byte // the lowest byte of c is kept for the length, which was added above
	copy(tail[:8], k)
	if len(k) > 8 {
		copy(tail[9:], k[8:])
	}
	a += binary.LittleEndian.Uint32(tail[:])
	b += binary.LittleEndian.Uint32(tail[4:])
	c += binary.LittleEndian.Uint32(tail[8:])
	b, c = final(a, b, c)
	return uint64(b)<<32 | uint64(c)
}

func mix(a, b, c uint32) (uint32, uint32, uint32) {
	a = a - c ^ bits.RotateLeft32(c, 4)
	c += b
	b = b - a ^ bits.RotateLeft32(a, 6)
	a += c
	c = c - b ^ bits.RotateLeft32(b, 8)
	b += a
	a = a - c ^ bits.RotateLeft32(c, 16)
	c += b
	b = b - a ^ bits.RotateLeft32(a, 19)
	a += c
	c = c - b ^ bits.RotateLeft32(b, 4)
	b += a
	return a, b, c
}

func final(a, b, c uint32) (uint32, uint32) {
	c = (c ^ b) - bits.RotateLeft32(b, 14)
	a = (a ^ c) - bits.RotateLeft32(c, 11)
	b = (b ^ a) - bits.RotateLeft32(a, 25)
	c = (c ^ b) - bits.RotateLeft32(b, 16)
	a = (a ^ c) - bits.RotateLeft32(c, 4)
	b = (b ^ a) - bits.RotateLeft32(a, 14)
	c = (c ^ b) - bits.RotateLeft32(b, 24)
	return b, c
}

// rowHasher computes refold.row_hash of rows that are about to be written. The
// zero value is ready.
type rowHasher struct {
	text      []byte
	canonical strictjson.JSONB
}

// hash returns the row's hash; state is empty for none. The error says that data
// or state is no JSON.
func (h *rowHasher) hash(key string, data, state []byte) (uint64, error) {
	h.text = append(append(h.text[:0], key...), 1)
	var err error
	if h.text, err = h.canonical.Append(h.text, data); err != nil {
		return 0, err
	}
	h.text = append(h.text, 1)
	if len(state) > 0 {
		if h.text, err = h.canonical.Append(h.text, state); err != nil {
			return 0, err
		}
	}
	return hash(h.text), nil
}
