package readmodel

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"
)

// A cursor names the last row of a page by the values that the list is ordered
// by, so it stays good while rows come and go. It is signed, so that only what
// was given comes back; it is bound to the filter and the order, and to the
// version: see [Reader.List] for what becomes of it at a promotion.

// ErrCursor says that a cursor was changed or belongs to another query.
var ErrCursor = errors.New("the cursor was changed or belongs to another query")

// ErrCursorExpired says that the version which a cursor is bound to is gone.
var ErrCursorExpired = errors.New("the version that the cursor belongs to is gone: begin again without one")

// place is what a cursor holds.
type place struct {
	version int
	plan    string    // the hash of its plan
	values  []*string // by the terms of the order
}

const (
	cursorFormat = 1
	cursorMAC    = 16
)

// signer signs cursors. All replicas have one key, kept in the database unless it
// is given.
type signer struct {
	pool *pgxpool.Pool

	mu  sync.Mutex
	key []byte
}

func (s *signer) load(ctx context.Context) ([]byte, error) {
	s.mu.Lock()
	key := s.key
	s.mu.Unlock()
	if key != nil {
		return key, nil
	}
	fresh := make([]byte, 32)
	rand.Read(fresh) // never fails, see crypto/rand
	err := s.pool.QueryRow(ctx, `select refold.secret('cursor', $1)`, fresh).Scan(&key)
	if err != nil {
		return nil, fmt.Errorf("reading the key of cursors: %w", err)
	}
	s.mu.Lock()
	s.key = key
	s.mu.Unlock()
	return key, nil
}

// digest is what a cursor is bound to: the projection and the query.
func digest(projection string, q *ListQuery) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "%q %s", projection, q.Where)
	for _, o := range q.Order {
		fmt.Fprintf(h, " %q %t %d", o.Field, o.Descending, o.Nulls)
	}
	return h.Sum(nil)
}

func sign(key, body, bound []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(bound)
	mac.Write(body)
	return mac.Sum(nil)[:cursorMAC]
}

func (p place) encode(key, bound []byte) string {
	b := []byte{cursorFormat}
	b = binary.AppendUvarint(b, uint64(p.version))
	b = appendString(b, p.plan)
	b = binary.AppendUvarint(b, uint64(len(p.values)))
	for _, v := range p.values {
		if v == nil {
			b = append(b, 0)
			continue
		}
		b = appendString(append(b, 1), *v)
	}
	return base64.RawURLEncoding.EncodeToString(append(b, sign(key, b, bound)...))
}

// maxCursor bounds the length of a cursor: six values of 2,000 bytes fit.
const maxCursor = 20_000

func decodePlace(text string, key, bound []byte) (p place, err error) {
	if len(text) > maxCursor {
		return p, ErrCursor
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) <= cursorMAC {
		return p, ErrCursor
	}
	body, mac := raw[:len(raw)-cursorMAC], raw[len(raw)-cursorMAC:]
	if !hmac.Equal(mac, sign(key, body, bound)) || body[0] != cursorFormat {
		return p, ErrCursor
	}
	r := fieldReader{rest: body[1:]}
	p.version = int(r.number(1 << 31))
	p.plan = r.text()
	for range r.number(MaxOrder + 1) {
		if r.number(1) == 0 {
			p.values = append(p.values, nil)
			continue
		}
		v := r.string(maxCursor)
		p.values = append(p.values, &v)
	}
	if r.bad || len(r.rest) > 0 {
		return p, ErrCursor
	}
	return p, nil
}
