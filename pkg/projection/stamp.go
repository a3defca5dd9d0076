package projection

import (
	"cmp"
	"encoding/hex"

	"github.com/refoldhq/refold/pkg/event"
)

// stamp is an event's place in the order of (event time, category, slot, seq),
// in which the events of shared rows are taken wherever one of them must win. The
// zero value stands for no event.
type stamp struct {
	time     event.Time
	seq      int64 // from 1
	category uint16
	slot     uint16
}

func (s stamp) compare(o stamp) int {
	return cmp.Or(cmp.Compare(s.time, o.time), cmp.Compare(s.category, o.category), cmp.Compare(s.slot, o.slot), cmp.Compare(s.seq, o.seq))
}

// append appends the stamp as text whose byte order is the order of stamps.
func (s stamp) append(dst []byte, categories []string) []byte {
	dst = appendHex(dst, uint64(s.time)^1<<63, 16)
	dst = append(append(append(dst, '/'), categories[s.category]...), '/')
	dst = appendHex(dst, uint64(s.slot), 4)
	return appendHex(append(dst, '/'), uint64(s.seq), 16)
}

func appendHex(dst []byte, v uint64, width int) []byte {
	var raw [8]byte
	for i := range raw {
		raw[i] = byte(v >> (56 - 8*i))
	}
	var text [16]byte
	hex.Encode(text[:], raw[:])
	return append(dst, text[16-width:]...)
}
