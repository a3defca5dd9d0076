package readmodel

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/refoldhq/refold/pkg/event"
)

// standing is what a follower was told of. The id of a change is its text.
type standing struct {
	version  int
	plan     uint32    // the checksum of the version's plan
	requests int64     // about parked streams, up to which all that came of them was told
	progress *Progress // up to which the log was told
}

func standingAt(v Version, requests int64, p *Progress) standing {
	return standing{version: v.Number, plan: crc32.ChecksumIEEE([]byte(v.PlanHash)), requests: requests, progress: p}
}

// isOf tells whether the rows that were told were made by the plan and from the
// branch of the log of another standing.
func (s standing) isOf(now standing) bool {
	return s.version == now.version && s.plan == now.plan && s.progress.branch == now.progress.branch
}

// movedTo returns the standing at the same places by the plan and in the branch of
// another. What a failover has lost is not in that branch: of it, the standing is
// where the other is, so that what comes in its place is told. Which events stood
// at the seqs in the former branch says nothing any more.
func (s standing) movedTo(to standing) standing {
	p, requests := s.progress, s.requests
	if p.branch != to.progress.branch {
		requests = min(requests, to.requests)
		p = p.clone()
		p.branch = to.progress.branch
		for i := range p.categories {
			c := &p.categories[i]
			clear(c.events)
			for slot := range c.seqs {
				reached, _ := to.progress.Seq(c.name, slot)
				c.seqs[slot] = min(c.seqs[slot], reached)
			}
		}
	}
	return standing{version: to.version, plan: to.plan, requests: requests, progress: p}
}

// ErrChangeID says that an id is none that was given.
var ErrChangeID = errors.New("the id is not one of this read model's changes")

const standingFormat = 3

func (s standing) id() string {
	b := []byte{standingFormat}
	b = binary.AppendUvarint(b, uint64(s.version))
	b = binary.AppendUvarint(b, uint64(s.plan))
	b = binary.AppendUvarint(b, uint64(s.requests))
	b = binary.AppendUvarint(b, uint64(s.progress.branch))
	for _, c := range s.progress.categories {
		b = appendString(b, c.name)
		b = binary.AppendUvarint(b, uint64(len(c.seqs)))
		for _, seq := range c.seqs {
			b = binary.AppendUvarint(b, uint64(seq))
		}
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return base64.RawURLEncoding.EncodeToString(b)
}

func parseStanding(id string) (s standing, err error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(id)
	if err != nil || len(raw) < 5 || raw[0] != standingFormat {
		return s, ErrChangeID
	}
	body, sum := raw[:len(raw)-4], binary.BigEndian.Uint32(raw[len(raw)-4:])
	if crc32.ChecksumIEEE(body) != sum {
		return s, ErrChangeID
	}
	r := fieldReader{rest: body[1:]}
	s = standing{version: int(r.number(1 << 31)), plan: uint32(r.number(1<<32 - 1)), requests: r.number(1 << 62)}
	s.progress = &Progress{branch: uint32(r.number(1<<32 - 1))}
	for len(r.rest) > 0 && !r.bad {
		c := categoryProgress{name: r.text()}
		for range r.number(event.MaxSlots) {
			c.seqs, c.events = append(c.seqs, r.number(1<<62)), append(c.events, 0)
			if r.bad {
				break
			}
		}
		s.progress.categories = append(s.progress.categories, c)
	}
	if r.bad {
		return standing{}, ErrChangeID
	}
	return s, nil
}
