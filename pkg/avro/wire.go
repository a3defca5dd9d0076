package avro

import (
	"encoding/binary"
	"errors"
	"math"
)

// Avro's binary encoding (Avro specification, "Binary Encoding").

// appendLong appends a zig-zag varint, the encoding of int and long alike.
func appendLong(dst []byte, v int64) []byte { return binary.AppendVarint(dst, v) }

func appendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// appendBytes appends bytes or a string with its length.
func appendBytes[T []byte | string](dst []byte, v T) []byte {
	return append(appendLong(dst, int64(len(v))), v...)
}

func appendFloat(dst []byte, k Kind, v float64) []byte {
	if k == Float {
		return binary.LittleEndian.AppendUint32(dst, math.Float32bits(float32(v)))
	}
	return binary.LittleEndian.AppendUint64(dst, math.Float64bits(v))
}

// FrameSize is the length of the header of Confluent's framing.
const FrameSize = 5

// AppendFrame appends the header of Confluent's framing: magic 0 and the schema
// id in four bytes, big-endian. The Avro body follows it.
func AppendFrame(dst []byte, schemaID int) []byte {
	return binary.BigEndian.AppendUint32(append(dst, 0), uint32(schemaID))
}

// ErrNoFrame is returned by [SplitFrame].
var ErrNoFrame = errors.New("value without Confluent framing: want magic 0 and a schema id of four bytes")

// SplitFrame splits a Kafka value into schema id and Avro body, which aliases it.
func SplitFrame(value []byte) (schemaID int, body []byte, err error) {
	if len(value) < FrameSize || value[0] != 0 {
		return 0, nil, ErrNoFrame
	}
	id := binary.BigEndian.Uint32(value[1:])
	if id > math.MaxInt32 {
		return 0, nil, ErrNoFrame
	}
	return int(id), value[FrameSize:], nil
}
