package rebuilder

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Kafka's record batch, magic 2 (KIP-98): the offsets of its parts in bytes.
const (
	batchLength      = 8  // of what follows the length, behind the base offset
	batchMagic       = 16 // behind the length and the leader's epoch
	batchCRC         = 17
	batchAttributes  = 21
	batchLastDelta   = 23
	batchRecordCount = 57
	batchRecords     = 61
)

var errBatch = errors.New("a record batch is malformed")

// maxBatch bounds what a compressed batch may grow to.
const maxBatch = 64 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// wholeBatches returns where the last whole batch of data ends, and the offset
// behind it; a broker cuts the last one off where its limit lies.
func wholeBatches(data []byte) (end int, next int64, err error) {
	for {
		rest := data[end:]
		if len(rest) < batchRecords {
			return end, next, nil
		}
		size := int(int32(binary.BigEndian.Uint32(rest[batchLength:]))) + batchLength + 4
		if size < batchRecords || rest[batchMagic] != 2 {
			return end, next, fmt.Errorf("%w: magic %d, %d bytes", errBatch, rest[batchMagic], size)
		}
		if size > len(rest) {
			return end, next, nil
		}
		next = int64(binary.BigEndian.Uint64(rest)) + int64(int32(binary.BigEndian.Uint32(rest[batchLastDelta:]))) + 1
		end += size
	}
}

// batches walks the records of whole batches in place. It is not safe for
// concurrent use.
type batches struct {
	record kgo.Record // the one record that is handed out, again and again
	lz4    *lz4.Reader
	zstd   *zstd.Decoder
	snappy kgo.Decompressor
	plain  bytes.Buffer
}

func newBatches(topic string, partition int) *batches {
	return &batches{record: kgo.Record{Topic: topic, Partition: int32(partition)}, lz4: lz4.NewReader(nil), snappy: kgo.DefaultDecompressor()}
}

// walk calls take with every record, which is valid during the call only; a
// record of the brokers' own has no key and no value.
func (b *batches) walk(data []byte, take func(*kgo.Record) error) error {
	for len(data) >= batchRecords {
		size := int(binary.BigEndian.Uint32(data[batchLength:])) + batchLength + 4
		if err := b.batch(data[:size], take); err != nil {
			return err
		}
		data = data[size:]
	}
	return nil
}

func (b *batches) batch(data []byte, take func(*kgo.Record) error) error {
	base := int64(binary.BigEndian.Uint64(data))
	if crc32.Checksum(data[batchAttributes:], castagnoli) != binary.BigEndian.Uint32(data[batchCRC:]) {
		return fmt.Errorf("%w: its checksum at offset %d is wrong", errBatch, base)
	}
	attributes := binary.BigEndian.Uint16(data[batchAttributes:])
	records, err := b.decompress(data[batchRecords:], attributes&7)
	if err != nil {
		return fmt.Errorf("decompressing the batch at offset %d: %w", base, err)
	}
	control := attributes&0x20 != 0
	c := walker{in: records}
	for range binary.BigEndian.Uint32(data[batchRecordCount:]) {
		delta := c.record(&b.record)
		if c.bad {
			return fmt.Errorf("%w: at offset %d", errBatch, base)
		}
		b.record.Offset = base + delta
		if control {
			b.record.Key, b.record.Value, b.record.Headers = nil, nil, b.record.Headers[:0]
		}
		if err := take(&b.record); err != nil {
			return err
		}
	}
	return nil
}

// decompress returns the records of a batch; the memory is used again by the next.
func (b *batches) decompress(data []byte, codec uint16) ([]byte, error) {
	var in io.Reader
	switch codec {
	case 0:
		return data, nil
	case 1:
		unzip, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		in = unzip
	case 2: // grows to 64 times its size at most, and a batch has a megabyte
		return b.snappy.Decompress(data, kgo.CodecSnappy)
	case 3:
		b.lz4.Reset(bytes.NewReader(data))
		in = b.lz4
	case 4:
		if b.zstd == nil {
			var err error
			if b.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxBatch)); err != nil {
				return nil, err
			}
		}
		return b.zstd.DecodeAll(data, nil)
	default:
		return nil, fmt.Errorf("%w: codec %d", errBatch, codec)
	}
	b.plain.Reset()
	n, err := b.plain.ReadFrom(io.LimitReader(in, maxBatch+1))
	if err == nil && n > maxBatch {
		err = fmt.Errorf("%w: it grows beyond %d bytes", errBatch, maxBatch)
	}
	return b.plain.Bytes(), err
}

func (b *batches) close() {
	if b.zstd != nil {
		b.zstd.Close()
	}
}

// walker reads the varints of records. bad is set by the first that is not there.
type walker struct {
	in  []byte
	at  int
	bad bool
}

func (c *walker) varint() int64 {
	v, n := binary.Varint(c.in[c.at:])
	if n <= 0 {
		c.bad = true
		return 0
	}
	c.at += n
	return v
}

// bytes reads a length and as many bytes; nil for a length of -1.
func (c *walker) bytes() []byte {
	n := c.varint()
	if n < 0 || c.bad {
		return nil
	}
	if n > int64(len(c.in)-c.at) {
		c.bad = true
		return nil
	}
	at := c.at
	c.at += int(n)
	return c.in[at:c.at:c.at]
}

// record reads one record into r, whose bytes alias the input, and returns its
// offset beyond the batch's first.
func (c *walker) record(r *kgo.Record) (delta int64) {
	size := c.varint()
	if c.bad || size < 1 || size > int64(len(c.in)-c.at) {
		c.bad = true
		return 0
	}
	end := c.at + int(size)
	c.at++ // attributes, of which there are none
	c.varint()
	delta = c.varint()
	r.Key, r.Value = c.bytes(), c.bytes()
	headers := c.varint()
	if headers < 0 || headers > size {
		c.bad = true
	}
	r.Headers = r.Headers[:0]
	for ; headers > 0 && !c.bad; headers-- {
		name := textOf(c.bytes())
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: name, Value: c.bytes()})
	}
	c.bad = c.bad || c.at != end
	return delta
}
