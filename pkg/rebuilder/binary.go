package rebuilder

import (
	"encoding/binary"
	"unsafe"

	"github.com/refoldhq/refold/pkg/event"
)

// What Postgres sends and takes in its binary format.

// epochUS is Postgres's epoch, 2000-01-01, in microseconds since 1970.
const epochUS = 946_684_800_000_000

func bigint(b []byte) int64 { return int64(binary.BigEndian.Uint64(b)) }

func timestamp(b []byte) event.Time { return event.Time(bigint(b) + epochUS) }

// textOf returns bytes as a string, which is valid as long as they are.
func textOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// bytesOf returns the bytes of a string, which nobody may change.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// names keeps strings that come again and again, so that they can outlive the
// bytes that they were read from without being made anew each time.
type names struct{ last string }

func (n *names) of(b []byte) string {
	if n.last != string(b) {
		n.last = string(b)
	}
	return n.last
}

// copyHeader begins a binary COPY: the signature, no flags, no extension.
const copyHeader = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// appendCopyRow appends a row of key, data and state; a nil state is null. For
// parts of shared rows, category and partition stand in front.
func appendCopyRow(dst []byte, prefix []byte, fields int, key string, data, state []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(fields))
	dst = append(dst, prefix...)
	dst = append(binary.BigEndian.AppendUint32(dst, uint32(len(key))), key...)
	dst = appendJSONB(dst, data)
	if len(state) == 0 {
		return append(dst, 0xff, 0xff, 0xff, 0xff)
	}
	return appendJSONB(dst, state)
}

// copyPrefix makes the columns category and partition of a part.
func copyPrefix(category string, partition int) []byte {
	dst := append(binary.BigEndian.AppendUint32(nil, uint32(len(category))), category...)
	dst = binary.BigEndian.AppendUint32(dst, 4)
	return binary.BigEndian.AppendUint32(dst, uint32(partition))
}

// appendJSONB appends JSON as jsonb: version 1 of its binary format is a byte
// before the text.
func appendJSONB(dst, text []byte) []byte {
	dst = append(binary.BigEndian.AppendUint32(dst, uint32(len(text)+1)), 1)
	return append(dst, text...)
}

// copyTrailer ends a binary COPY.
const copyTrailer = "\xff\xff"
