package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	moveSQL    = `select refold.relay_move($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`
	topicIDSQL = `update refold.relay_partition set topic_id = $6 where category = $1 and generation = $2 and partition = $3 and fence = $4 and nonce = $5`
)

// moveCursors writes how far the acknowledged records go, in one trip. Each cursor
// proves, in its transaction, that it is still ours and that the events which it
// has come to are in the table.
func (s *session) moveCursors(ctx context.Context) error {
	// No cursor passes a divergence that nobody would remember after a crash.
	if err := s.storeStops(ctx); err != nil {
		return err
	}
	trip := &pgx.Batch{}
	var moved []*partition
	for _, p := range s.owned {
		if !p.dirty || p.phase == settling || p.phase == alarmed {
			continue
		}
		if !p.knownTopic {
			trip.Queue(topicIDSQL, p.category, p.generation, p.number, p.fence, p.nonce, p.topicID)
		}
		trip.Queue(moveSQL, s.moveArgs(p)...)
		moved = append(moved, p)
	}
	if len(moved) == 0 {
		return nil
	}
	err := s.conn.SendBatch(ctx, trip).Close()
	var refused *pgconn.PgError
	switch {
	case err == nil:
		for _, p := range moved {
			p.moved()
		}
		return nil
	case errors.As(err, &refused):
		return s.moveOneByOne(ctx, moved)
	default:
		return fmt.Errorf("moving the cursors: %w", err)
	}
}

// moveArgs are those of refold.relay_move. The cursor of a slot that has diverged
// stays where it was.
func (s *session) moveArgs(p *partition) []any {
	numbers, seqs, ids := make([]int16, len(p.slots)), make([]int64, len(p.slots)), make([][16]byte, len(p.slots))
	for i := range p.slots {
		at := &p.slots[i]
		numbers[i], seqs[i], ids[i] = int16(at.number), at.acked.seq, at.acked.id
	}
	fence, nonce := p.fence, p.nonce
	return []any{int64(s.incarnation.Timeline), s.incarnation.Started, p.category, p.generation, p.number, fence, nonce, numbers, seqs, ids, p.end, p.foreign}
}

func (p *partition) moved() {
	p.dirty, p.foreign, p.knownTopic = false, 0, true
	for i := range p.slots {
		p.slots[i].kept = p.slots[i].acked
	}
}

// moveOneByOne finds out which cursor was refused.
func (s *session) moveOneByOne(ctx context.Context, moved []*partition) error {
	for _, p := range moved {
		err := s.moveOne(ctx, p)
		var refused *pgconn.PgError
		switch {
		case err == nil:
			p.moved()
		case errors.As(err, &refused) && refused.Code == "RF001" && s.faults.noFence:
			p.moved()
		case errors.As(err, &refused) && refused.Code == "RF001":
			s.drop(p, refused.Message)
		case errors.As(err, &refused) && refused.Code == "RF002":
			if err := s.checkPlaces(ctx, []*partition{p}); err != nil {
				return err
			}
			s.settle(p, time.Time{}) // begins again behind what is proved
			if err := s.storeStops(ctx); err != nil {
				return err
			}
		default:
			return fmt.Errorf("moving the cursor of %s: %w", p, err)
		}
	}
	return nil
}

func (s *session) moveOne(ctx context.Context, p *partition) error {
	trip := &pgx.Batch{}
	if !p.knownTopic {
		trip.Queue(topicIDSQL, p.category, p.generation, p.number, p.fence, p.nonce, p.topicID)
	}
	trip.Queue(moveSQL, s.moveArgs(p)...)
	return s.conn.SendBatch(ctx, trip).Close()
}
