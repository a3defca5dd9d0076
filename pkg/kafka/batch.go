package kafka

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/event"
)

// Batch encodes events to a record batch as Kafka stores it (message format v2,
// the chapter "Record Batch" of Kafka's documentation). It copies what it is given,
// reuses its memory, and allocates nothing per event. The zero value is empty. It
// is not safe for concurrent use.
type Batch struct {
	records     []byte
	record      []byte // the one being added
	n           int
	first, last int64 // timestamps in ms: of the first record, and the greatest
	time        clock
	recorded    clock
	packed      bytes.Buffer // the records, compressed
}

// batchHeader is the length of what stands before the records.
const batchHeader = 61

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() { b.records, b.n = b.records[:0], 0 }

// Len returns the number of records.
func (b *Batch) Len() int { return b.n }

// Size returns the length of the batch without compression, in bytes.
func (b *Batch) Size() int { return batchHeader + len(b.records) }

// Add adds the record of an event. It does not keep e.
func (b *Batch) Add(e *event.Event) {
	timestamp := e.Recorded.Std().UnixMilli()
	if b.n == 0 {
		b.first, b.last = timestamp, timestamp
	}
	b.last = max(b.last, timestamp)
	r := append(b.record[:0], 0) // attributes
	r = binary.AppendVarint(r, timestamp-b.first)
	r = binary.AppendVarint(r, int64(b.n))
	r = appendText(r, e.Stream)
	r = appendBytes(r, e.Value)
	r = b.appendHeaders(r, e)
	b.record = r
	b.records = append(binary.AppendVarint(b.records, int64(len(r))), r...)
	b.n++
}

// appendHeaders appends the headers of an event and their number.
func (b *Batch) appendHeaders(r []byte, e *event.Event) []byte {
	n := 11
	for _, optional := range [...]bool{!e.PrevID.IsZero(), e.Metadata.Actor != "", e.Metadata.CorrelationID != "", e.Metadata.CausationID != "", e.Metadata.Traceparent != ""} {
		if optional {
			n++
		}
	}
	r = binary.AppendVarint(r, int64(n))
	r = appendText(appendText(r, headerSpec), "1.0")
	r = appendID(appendText(r, headerID), e.ID)
	r = appendText(r, headerSource)
	r = binary.AppendVarint(r, int64(len(sourcePrefix)+len(e.Category)))
	r = append(append(r, sourcePrefix...), e.Category...)
	r = appendText(appendText(r, headerType), e.Type)
	r = appendText(appendText(r, headerSubject), e.Stream)
	r = b.time.append(appendText(r, headerTime), e.Time)
	r = appendText(appendText(r, headerContent), "application/avro")
	r = b.recorded.append(appendText(r, headerRecorded), e.Recorded)
	r = appendNumber(appendText(r, headerVersion), e.Version)
	r = appendNumber(appendText(r, headerSlot), int64(e.Slot))
	r = appendNumber(appendText(r, headerSeq), e.Seq)
	if !e.PrevID.IsZero() {
		r = appendID(appendText(r, headerPrevID), e.PrevID)
	}
	r = appendOptional(r, headerActor, e.Metadata.Actor)
	r = appendOptional(r, headerCorrelation, e.Metadata.CorrelationID)
	r = appendOptional(r, headerCausation, e.Metadata.CausationID)
	return appendOptional(r, headerParent, e.Metadata.Traceparent)
}

// sourcePrefix and the category make the source of an event.
const sourcePrefix = "refold/"

// Everything in a record has its length before it, as a zigzag varint, which is
// what package binary writes of a signed number.

func appendText(r []byte, s string) []byte {
	return append(binary.AppendVarint(r, int64(len(s))), s...)
}

func appendBytes(r, s []byte) []byte { return append(binary.AppendVarint(r, int64(len(s))), s...) }

func appendID(r []byte, id event.ID) []byte { return id.Append(binary.AppendVarint(r, 36)) }

func appendOptional(r []byte, name, value string) []byte {
	if value == "" {
		return r
	}
	return appendText(appendText(r, name), value)
}

func appendNumber(r []byte, n int64) []byte {
	var digits [20]byte
	return appendBytes(r, strconv.AppendInt(digits[:0], n, 10))
}

// clock writes times, of which neighbours mostly share the second.
type clock struct {
	known  bool
	second int64
	text   [19]byte // the second, without a zone
}

func (c *clock) append(r []byte, t event.Time) []byte {
	second, micros := int64(t)/1_000_000, int64(t)%1_000_000
	if micros < 0 {
		second, micros = second-1, micros+1_000_000
	}
	if !c.known || c.second != second {
		var whole [32]byte
		c.known, c.second = true, second
		copy(c.text[:], event.Time(second*1_000_000).Append(whole[:0]))
	}
	fraction := [7]byte{'.'}
	digits := 0
	for i := 6; i > 0; i-- {
		fraction[i] = byte('0' + micros%10)
		if digits == 0 && fraction[i] != '0' {
			digits = i + 1
		}
		micros /= 10
	}
	r = append(binary.AppendVarint(r, int64(len(c.text)+digits+1)), c.text[:]...)
	return append(append(r, fraction[:digits]...), 'Z')
}

// Producer is who sends a batch, for the broker's recognition of repeats (KIP-98):
// an id from InitProducerID, its epoch, and the number of records that it sent to
// the partition before.
type Producer struct {
	ID       int64
	Epoch    int16
	Sequence int32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode appends the batch to dst. A nil compressor leaves the records as they
// are. The batch stays as it is, so that it can be encoded again.
func (b *Batch) Encode(dst []byte, by Producer, compressor kgo.Compressor) []byte {
	records, codec := b.records, kgo.CodecNone
	if compressor != nil {
		b.packed.Reset()
		records, codec = compressor.Compress(&b.packed, b.records)
	}
	start := len(dst)
	dst = binary.BigEndian.AppendUint64(dst, 0)                                   // base offset
	dst = binary.BigEndian.AppendUint32(dst, uint32(batchHeader-12+len(records))) // of what follows
	dst = binary.BigEndian.AppendUint32(dst, 0xffffffff)                          // the leader's epoch, which the broker sets
	dst = append(dst, 2)                                                          // the format
	dst = binary.BigEndian.AppendUint32(dst, 0)                                   // checksum, below
	dst = binary.BigEndian.AppendUint16(dst, uint16(codec))                       // attributes
	dst = binary.BigEndian.AppendUint32(dst, uint32(b.n-1))                       // last offset
	dst = binary.BigEndian.AppendUint64(dst, uint64(b.first))
	dst = binary.BigEndian.AppendUint64(dst, uint64(b.last))
	dst = binary.BigEndian.AppendUint64(dst, uint64(by.ID))
	dst = binary.BigEndian.AppendUint16(dst, uint16(by.Epoch))
	dst = binary.BigEndian.AppendUint32(dst, uint32(by.Sequence))
	dst = binary.BigEndian.AppendUint32(dst, uint32(b.n))
	dst = append(dst, records...)
	binary.BigEndian.PutUint32(dst[start+17:], crc32.Checksum(dst[start+21:], castagnoli))
	return dst
}
