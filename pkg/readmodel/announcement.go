package readmodel

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"slices"
)

// Channel is the notification channel that announcements travel on.
const Channel = "refold_progress"

// Announcement tells those who query that commits have moved a partition of a
// version, and which rows they changed. It is sent after the commit, outside of
// it, so it may be late, joined with others, repeated or lost: it wakes and
// invalidates, and proves nothing.
type Announcement struct {
	Projection string
	Version    int
	Category   string
	Generation int
	Partition  int
	// From and To are the next offsets before and after what is announced, so
	// that a reader can tell when an announcement is missing in between.
	From, To int64
	// Seqs are the last seqs of the partition's slots after it, in the order of
	// the progress row. Empty when they would not fit.
	Seqs []int64
	// Keys are the hashes of the rows that changed, see [HashKey].
	Keys []uint32
	// Many says that too many rows changed to name them.
	Many bool
}

// Limits of an announcement: Postgres refuses payloads of 8,000 bytes.
const (
	MaxAnnouncedKeys = 1000
	maxAnnouncedSeqs = 128
	maxPayload       = 7900
)

// HashKey returns the hash that stands for a row's key in announcements. Two keys
// may share one: then one too many is invalidated.
func HashKey(key string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(key))
	return h.Sum32()
}

const announcementFormat = 1

// Payload returns the announcement as the text of a NOTIFY.
func (a *Announcement) Payload() string {
	b := []byte{announcementFormat}
	b = appendString(b, a.Projection)
	b = binary.AppendUvarint(b, uint64(a.Version))
	b = appendString(b, a.Category)
	for _, v := range []int64{int64(a.Generation), int64(a.Partition), a.From, a.To - a.From} {
		b = binary.AppendUvarint(b, uint64(v))
	}
	seqs, many := a.Seqs, a.Many || len(a.Keys) > MaxAnnouncedKeys
	if len(seqs) > maxAnnouncedSeqs {
		seqs = nil
	}
	b = binary.AppendUvarint(b, uint64(len(seqs)))
	for _, seq := range seqs {
		b = binary.AppendUvarint(b, uint64(seq))
	}
	if !many && base64.RawStdEncoding.EncodedLen(len(b)+4*len(a.Keys)) > maxPayload {
		many = true
	}
	if many {
		b = append(b, 1)
	} else {
		b = append(b, 0)
		for _, key := range a.Keys {
			b = binary.BigEndian.AppendUint32(b, key)
		}
	}
	return base64.RawStdEncoding.EncodeToString(b)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// Merge adds a later announcement of the same partition.
func (a *Announcement) Merge(later Announcement) {
	a.To, a.Seqs, a.Many = later.To, later.Seqs, a.Many || later.Many
	if a.Many || len(a.Keys)+len(later.Keys) > MaxAnnouncedKeys {
		a.Many, a.Keys = true, nil
		return
	}
	a.Keys = slices.Concat(a.Keys, later.Keys)
}

// ErrMalformedAnnouncement is returned by [ParseAnnouncement].
var ErrMalformedAnnouncement = errors.New("malformed announcement")

// ParseAnnouncement parses the payload of a notification. Anybody who may log in
// to the database can send one.
func ParseAnnouncement(payload string) (a Announcement, err error) {
	raw, err := base64.RawStdEncoding.DecodeString(payload)
	if err != nil || len(raw) == 0 || raw[0] != announcementFormat {
		return a, ErrMalformedAnnouncement
	}
	r := fieldReader{rest: raw[1:]}
	a.Projection = r.text()
	a.Version = int(r.number(1 << 31))
	a.Category = r.text()
	a.Generation, a.Partition = int(r.number(1<<31)), int(r.number(1<<16))
	a.From = r.number(1 << 62)
	a.To = a.From + r.number(1<<61)
	n := r.number(maxAnnouncedSeqs)
	for range n {
		a.Seqs = append(a.Seqs, r.number(1<<62))
	}
	if r.bad || len(r.rest) == 0 || (len(r.rest)-1)%4 != 0 {
		return Announcement{}, ErrMalformedAnnouncement
	}
	a.Many = r.rest[0] == 1
	for keys := r.rest[1:]; len(keys) > 0; keys = keys[4:] {
		a.Keys = append(a.Keys, binary.BigEndian.Uint32(keys))
	}
	return a, nil
}

// fieldReader takes apart what is made of varints and texts.
type fieldReader struct {
	rest []byte
	bad  bool
}

func (r *fieldReader) number(limit uint64) int64 {
	v, n := binary.Uvarint(r.rest)
	if r.bad || n <= 0 || v > limit {
		r.bad = true
		return 0
	}
	r.rest = r.rest[n:]
	return int64(v)
}

func (r *fieldReader) text() string { return r.string(64) }

func (r *fieldReader) string(limit uint64) string {
	n := r.number(limit)
	if r.bad || int(n) > len(r.rest) {
		r.bad = true
		return ""
	}
	s := string(r.rest[:n])
	r.rest = r.rest[n:]
	return s
}
