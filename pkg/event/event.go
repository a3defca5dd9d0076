// Package event is the vocabulary of refold: what an event is, which stream it
// belongs to, which slot its stream hashes into, and what a position is.
//
// It is the first package of the import order: every other package speaks in
// its words, and it imports none of them. Nothing here does IO.
//
// The main types are [Event], an event as it stands in the log, [Position], its
// place in the dense sequence of a slot, and [Token], the set of positions that
// a client asks a query to contain.
package event

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Event is an immutable fact as it stands in the log. The relay copies it to
// Kafka and every reader gets it back, field by field the same.
type Event struct {
	ID       ID
	Category string
	Stream   string
	// Version is the event's place in its stream: dense, from 1.
	Version int64
	Slot    int
	// Seq is the event's place in its slot: dense, from 1, in commit order.
	Seq  int64
	Type string
	// Value is the Kafka value: Confluent framing (magic 0, schema id in four
	// bytes, big-endian) and the Avro body.
	Value []byte
	// Time is when it happened; Recorded is the database's time of the append.
	Time, Recorded Time
	Metadata       Metadata
	// PrevID is the id of the event before it in its slot; zero at seq 1.
	PrevID ID
}

// Position returns the event's place in the log.
func (e *Event) Position() Position {
	return Position{Category: e.Category, Slot: e.Slot, Seq: e.Seq}
}

// Metadata is what a client tells about the cause of an event. All fields may
// be empty, which is the same as absent.
type Metadata struct {
	Actor         string
	CorrelationID string
	CausationID   string
	// Traceparent is the W3C trace context of the request that appended it.
	Traceparent string
}

// ID identifies an event. Those made here are UUIDs of version 7 (RFC 9562);
// clients may choose any UUID. The zero value stands for no event.
type ID [16]byte

// String returns the canonical form with hyphens, in lower case.
func (id ID) String() string { return uuid.UUID(id).String() }

// Sum returns the last four bytes, which tell an event from another one that came
// to stand in its place. It is 0 for no event.
func (id ID) Sum() uint32 { return binary.BigEndian.Uint32(id[12:]) }

// Append appends id's String to dst.
func (id ID) Append(dst []byte) []byte {
	var text [36]byte
	hex.Encode(text[:8], id[:4])
	for i, at := range [...]int{8, 13, 18, 23} {
		text[at] = '-'
		hex.Encode(text[at+1:], id[4+2*i:min(6+2*i, 16)])
	}
	hex.Encode(text[24:], id[10:])
	return append(dst, text[:]...)
}

// IsZero tells whether id stands for no event.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText returns the canonical form.
func (id ID) MarshalText() ([]byte, error) { return uuid.UUID(id).MarshalText() }

// UnmarshalText parses the canonical form.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	*id = parsed
	return err
}

// ErrMalformedID is returned by [ParseID].
var ErrMalformedID = errors.New("malformed event id: want a UUID of 36 characters")

// ParseID parses the canonical form: 36 characters with hyphens, either case.
// The nil UUID is refused, as it stands for no event.
func ParseID(s string) (ID, error) {
	if len(s) != 36 {
		return ID{}, ErrMalformedID
	}
	if id, ok := hexID(s); ok && !id.IsZero() {
		return id, nil
	}
	id, err := uuid.Parse(s)
	if err != nil || id == uuid.Nil {
		return ID{}, ErrMalformedID
	}
	return ID(id), nil
}

// NewID returns a UUIDv7 of the present moment. Ids of one process ascend, so
// that they enter the index of ids at its end. It is safe for concurrent use.
func NewID() ID { return ids.next(time.Now()) }

var ids idSource

// idSource makes UUIDv7s: 48 bits of milliseconds, then a 12-bit counter that
// keeps ids of one millisecond in order (RFC 9562, section 6.2, method 1), then
// 62 random bits.
type idSource struct {
	mu      sync.Mutex
	millis  int64
	counter uint16
	random  [4096]byte
	used    int
}

func (s *idSource) next(now time.Time) ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch millis := now.UnixMilli(); {
	case millis > s.millis:
		s.millis, s.counter = millis, 0
	case s.counter == 0xfff: // more than 4,096 in one millisecond: borrow the next one
		s.millis++
		s.counter = 0
	default:
		s.counter++
	}
	if s.used == 0 || s.used+8 > len(s.random) {
		rand.Read(s.random[:]) // never fails, see crypto/rand
		s.used = 0
	}
	var id ID
	binary.BigEndian.PutUint64(id[:8], uint64(s.millis)<<16|0x7000|uint64(s.counter))
	copy(id[8:], s.random[s.used:s.used+8])
	id[8] = id[8]&0x3f | 0x80
	s.used += 8
	return id
}

// Time is an instant in microseconds since 1970 in UTC, the precision that
// refold keeps everywhere. The zero value is the epoch itself.
type Time int64

// Limits of what a Time may hold: the years 0001 to 9999, so that each has a
// form in RFC 3339. Clients' times outside are refused.
const (
	MinTime Time = -62135596800000000
	MaxTime Time = 253402300799999999
)

// TimeOf converts t, dropping what is finer than a microsecond.
func TimeOf(t time.Time) Time { return Time(t.UnixMicro()) }

// Std returns t as a time.Time in UTC.
func (t Time) Std() time.Time { return time.UnixMicro(int64(t)).UTC() }

// String returns t in RFC 3339, in UTC with Z and no trailing zeros.
func (t Time) String() string { return string(t.Append(nil)) }

// Append appends t's String to dst.
func (t Time) Append(dst []byte) []byte {
	return t.Std().AppendFormat(dst, "2006-01-02T15:04:05.999999Z07:00")
}

// MarshalText returns t's String.
func (t Time) MarshalText() ([]byte, error) { return t.Append(nil), nil }

// UnmarshalText parses with [ParseTime].
func (t *Time) UnmarshalText(text []byte) error {
	parsed, err := ParseTime(string(text))
	*t = parsed
	return err
}

// ErrMalformedTime is returned by [ParseTime].
var ErrMalformedTime = errors.New("malformed time: want RFC 3339 with at most six digits of a second, in the years 0001 to 9999")

// ParseTime parses RFC 3339 with any offset. More than six digits of a second
// are refused rather than dropped.
func ParseTime(s string) (Time, error) {
	if us, ok := utcTime(s); ok {
		return us, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Nanosecond()%1000 != 0 || hasComma(s) {
		return 0, ErrMalformedTime
	}
	us := TimeOf(t)
	if us < MinTime || us > MaxTime || fractionDigits(s) > 6 {
		return 0, ErrMalformedTime
	}
	return us, nil
}

// hasComma tells whether s separates its fraction by a comma, which ISO 8601
// and the time package take and RFC 3339 does not.
func hasComma(s string) bool { return len(s) > 19 && s[19] == ',' }

func fractionDigits(s string) int {
	if len(s) < 20 || s[19] != '.' {
		return 0
	}
	n := 0
	for _, c := range []byte(s[20:]) {
		if c < '0' || c > '9' {
			break
		}
		n++
	}
	return n
}

// Position is a place in the log: the seq-th event of a slot of a category.
type Position struct {
	Category string
	Slot     int
	Seq      int64
}

// String returns the form "User/17/905".
func (p Position) String() string {
	return p.Category + "/" + strconv.Itoa(p.Slot) + "/" + strconv.FormatInt(p.Seq, 10)
}

// MaxStreamID is the length of the longest stream id, in bytes.
const MaxStreamID = 400

// CheckStreamID returns an error, fit for a client, if id cannot name a stream:
// 1 to 400 characters of ASCII letters, digits and "._:~-", not "." or "..".
func CheckStreamID(id string) error {
	if id == "" || len(id) > MaxStreamID {
		return fmt.Errorf("stream id has %d characters: want 1 to %d", len(id), MaxStreamID)
	}
	if id == "." || id == ".." {
		return fmt.Errorf("stream id %q is reserved by URL paths", id)
	}
	for i := range len(id) {
		if !streamIDByte(id[i]) {
			return fmt.Errorf("stream id has the byte %q at index %d: want ASCII letters, digits and ._:~-", id[i], i)
		}
	}
	return nil
}

func streamIDByte(c byte) bool {
	return letter(c) || digit(c) || c == '.' || c == '_' || c == ':' || c == '~' || c == '-'
}

// CheckCategory returns an error, fit for a client, if name cannot name a
// category: [A-Z][A-Za-z0-9]{0,63}.
func CheckCategory(name string) error {
	ok := len(name) >= 1 && len(name) <= 64 && name[0] >= 'A' && name[0] <= 'Z'
	for i := 0; ok && i < len(name); i++ {
		ok = letter(name[i]) || digit(name[i])
	}
	if !ok {
		return fmt.Errorf("%q cannot name a category: want [A-Z][A-Za-z0-9]{0,63}", name)
	}
	return nil
}

func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func digit(c byte) bool  { return c >= '0' && c <= '9' }
