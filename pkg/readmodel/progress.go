package readmodel

import (
	"slices"
	"strings"
	"sync"

	"github.com/refoldhq/refold/pkg/event"
)

// Progress is how far a version has come, the last seq of each slot of each
// category that feeds it, as one snapshot of the database showed it. It never
// changes and is safe for concurrent use.
type Progress struct {
	categories []categoryProgress // sorted by name
	branch     uint32             // of the log, see [branchOf]; 0 when it is not known
	encoded    sync.Once
	token      event.Token
	text       string
}

type categoryProgress struct {
	name   string
	seqs   []int64  // by slot
	events []uint32 // the [event.ID.Sum] of each slot's last event, 0 where it is not known
}

// mark returns the mark of a slot.
func (c *categoryProgress) mark(slot int, branch uint32) event.Mark {
	return event.Mark{Position: event.Position{Category: c.name, Slot: slot, Seq: c.seqs[slot]}, Event: c.events[slot], Branch: branch}
}

// progressBuilder joins the progress rows of a version.
type progressBuilder struct{ p Progress }

// add takes in one row, with or without the ids of the slots' last events. Rows of
// several generations of a topic may name a slot: the farthest counts.
func (b *progressBuilder) add(category string, slots []int16, seqs []int64, ids [][16]byte) {
	i, found := slices.BinarySearchFunc(b.p.categories, category, func(c categoryProgress, name string) int { return strings.Compare(c.name, name) })
	if !found {
		b.p.categories = slices.Insert(b.p.categories, i, categoryProgress{name: category})
	}
	c := &b.p.categories[i]
	for k, slot := range slots {
		for int(slot) >= len(c.seqs) {
			c.seqs, c.events = append(c.seqs, 0), append(c.events, 0)
		}
		if c.seqs[slot] >= seqs[k] {
			continue
		}
		c.seqs[slot], c.events[slot] = seqs[k], 0
		if k < len(ids) {
			c.events[slot] = event.ID(ids[k]).Sum()
		}
	}
}

// Seq returns the last seq of a slot, and whether its category feeds the version.
func (p *Progress) Seq(category string, slot int) (seq int64, feeds bool) {
	seq, _, feeds = p.last(category, slot)
	return seq, feeds
}

// last is Seq with the sum of the event's id.
func (p *Progress) last(category string, slot int) (seq int64, event uint32, feeds bool) {
	for i := range p.categories {
		if c := &p.categories[i]; c.name == category {
			if slot >= 0 && slot < len(c.seqs) {
				return c.seqs[slot], c.events[slot], true
			}
			return 0, 0, true
		}
	}
	return 0, 0, false
}

// Token returns the token of all that was read at this progress.
func (p *Progress) Token() event.Token {
	p.encode()
	return p.token
}

// TokenText is Token().String(), made once.
func (p *Progress) TokenText() string {
	p.encode()
	return p.text
}

func (p *Progress) encode() {
	p.encoded.Do(func() {
		for i := range p.categories {
			c := &p.categories[i]
			for slot, seq := range c.seqs {
				if seq > 0 {
					p.token = append(p.token, c.mark(slot, p.branch))
				}
			}
		}
		p.text = p.token.String()
	})
}

// Covers tells whether the marks of a token that feed the version are contained.
// Marks of other categories say nothing about its rows.
func (p *Progress) Covers(token event.Token) bool {
	for i := range token {
		if seq, feeds := p.Seq(token[i].Category, token[i].Slot); feeds && seq < token[i].Seq {
			return false
		}
	}
	return true
}

// contains tells whether it is as far as another of the same version in every slot.
func (p *Progress) contains(other *Progress) bool {
	for i := range other.categories {
		c := &other.categories[i]
		for slot, seq := range c.seqs {
			if reached, _ := p.Seq(c.name, slot); reached < seq {
				return false
			}
		}
	}
	return true
}

// ofStream returns the mark of the slot that the stream named key falls into,
// for rows that one stream feeds.
func (p *Progress) ofStream(key string) (event.Mark, bool) {
	if len(p.categories) != 1 || len(p.categories[0].seqs) == 0 {
		return event.Mark{}, false
	}
	c := &p.categories[0]
	return c.mark(event.SlotOf(key, len(c.seqs)), p.branch), true
}
