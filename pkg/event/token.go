package event

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"strings"
)

// Mark is one entry of a token: a position that an answer must contain.
type Mark struct {
	Position
	// Written says that the position is that of an event which the client
	// appended, so that a row from which this very event is missing, because
	// its stream is parked, is stale too. Marks of answers only say how far
	// the reader had come.
	Written bool
	// Event is the [ID.Sum] of the event at the position, 0 when it is not known:
	// after a failover that has lost the tail of the log another event may stand
	// there.
	Event uint32
	// Branch stands for the history, a run of a server, in which an answer was
	// read, 0 for none: in the same one its event is there still.
	Branch uint32
}

// Token is a set of marks: what a client asks the next answer to contain. It is
// sorted by category, branch and slot, with at most one mark of answers for each.
// The zero value asks for nothing.
type Token []Mark

// NewToken returns the token of the given marks. Of several marks of answers of one
// slot and branch the last in seq stays; of written ones all stay that are of
// different events, as each may be parked or lost.
func NewToken(marks ...Mark) Token {
	t := slices.Clone(Token(marks))
	slices.SortFunc(t, func(a, b Mark) int {
		return cmp.Or(strings.Compare(a.Category, b.Category), cmp.Compare(a.Branch, b.Branch), cmp.Compare(a.Slot, b.Slot), written(b)-written(a),
			cmp.Compare(b.Seq, a.Seq), cmp.Compare(b.Event, a.Event))
	})
	return slices.CompactFunc(t, func(a, b Mark) bool {
		return a.Category == b.Category && a.Branch == b.Branch && a.Slot == b.Slot && a.Written == b.Written && (!a.Written || a.Event == b.Event)
	})
}

func written(m Mark) int {
	if m.Written {
		return 1
	}
	return 0
}

// Merge returns the token that asks for all that the given ones ask for.
func Merge(tokens ...Token) Token { return NewToken(slices.Concat(tokens...)...) }

// tokenFormat is the first byte of a token: the layout below. Another layout
// gets another number; that of a release stays readable.
const tokenFormat = 2

// ErrMalformedToken is returned by [ParseToken].
var ErrMalformedToken = errors.New("malformed token: use it as it was given")

// String returns the opaque form: base64url of the format, then for each category
// and branch its name, the branch, the number of marks, and the marks (slot and
// whether written, and seq, as varints; event), then a checksum that tells a
// damaged token from a real one. It is not signed: a client can only ask for what
// it invents, and waits.
func (t Token) String() string {
	b := []byte{tokenFormat}
	for i := 0; i < len(t); {
		n := i
		for n < len(t) && t[n].Category == t[i].Category && t[n].Branch == t[i].Branch {
			n++
		}
		b = binary.AppendUvarint(b, uint64(len(t[i].Category)))
		b = append(b, t[i].Category...)
		b = binary.BigEndian.AppendUint32(b, t[i].Branch)
		b = binary.AppendUvarint(b, uint64(n-i))
		for ; i < n; i++ {
			b = binary.AppendUvarint(b, uint64(t[i].Slot)<<1|uint64(written(t[i])))
			b = binary.AppendUvarint(b, uint64(t[i].Seq))
			b = binary.BigEndian.AppendUint32(b, t[i].Event)
		}
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken parses the opaque form. What it accepts, String returns again.
func ParseToken(s string) (Token, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 5 || b[0] != tokenFormat {
		return nil, ErrMalformedToken
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.ChecksumIEEE(body) != sum {
		return nil, ErrMalformedToken
	}
	r := tokenReader{rest: body[1:]}
	var t Token
	for len(r.rest) > 0 && !r.bad {
		t = r.category(t)
	}
	if r.bad || NewToken(t...).String() != s { // what is not in order was not given by us
		return nil, ErrMalformedToken
	}
	return t, nil
}

// ParseTokens parses tokens separated by commas, as in a Refold-Token header,
// and merges them. An empty string is the token that asks for nothing.
func ParseTokens(s string) (Token, error) {
	if s == "" {
		return nil, nil
	}
	var all Token
	for part := range strings.SplitSeq(s, ",") {
		t, err := ParseToken(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		all = append(all, t...)
	}
	return NewToken(all...), nil
}

type tokenReader struct {
	rest []byte
	bad  bool
}

func (r *tokenReader) category(t Token) Token {
	n := r.uvarint(64)
	if r.bad || n > uint64(len(r.rest)) {
		r.bad = true
		return t
	}
	name := string(r.rest[:n])
	r.rest = r.rest[n:]
	if CheckCategory(name) != nil {
		r.bad = true
		return t
	}
	branch := r.uint32()
	count := r.uvarint(maxMarks)
	for range count {
		slot, seq, event := r.uvarint(2*MaxSlots-1), r.uvarint(1<<62), r.uint32()
		if r.bad {
			return t
		}
		t = append(t, Mark{Position{name, int(slot >> 1), int64(seq)}, slot&1 == 1, event, branch})
	}
	return t
}

// maxMarks bounds the marks of a category and branch: a header holds fewer.
const maxMarks = 1 << 20

func (r *tokenReader) uint32() uint32 {
	if r.bad || len(r.rest) < 4 {
		r.bad = true
		return 0
	}
	v := binary.BigEndian.Uint32(r.rest)
	r.rest = r.rest[4:]
	return v
}

func (r *tokenReader) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 || v > limit {
		r.bad = true
		return 0
	}
	r.rest = r.rest[n:]
	return v
}
