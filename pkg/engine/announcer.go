package engine

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// announcer tells those who query, after commits, which rows they changed: one
// notification for each partition that moved, however many commits moved it
// since the last, on a session of its own and so outside of every transaction
// that writes rows. NOTIFY takes a lock that is one for the whole database.
//
// Nothing waits for it. What it cannot send stays joined, in one announcement for
// each partition, until a session is there again; what it loses with the process
// is found by the readers, who compare what they were told with the progress in
// the database (see readmodel.Watcher).
type announcer struct {
	url string
	log *slog.Logger

	wake chan struct{} // size 1: something is pending

	mu      sync.Mutex
	pending map[partitionID]*readmodel.Announcement
}

type partitionID struct {
	projection string
	version    int
	category   string
	generation int
	partition  int
}

func newAnnouncer(url string, log *slog.Logger) *announcer {
	return &announcer{url: url, log: log, wake: make(chan struct{}, 1), pending: make(map[partitionID]*readmodel.Announcement)}
}

// announce takes note of a commit. It never blocks. It keeps a.Seqs and a.Keys,
// which the caller must not change afterwards.
func (n *announcer) announce(a readmodel.Announcement) {
	id := partitionID{a.Projection, a.Version, a.Category, a.Generation, a.Partition}
	n.mu.Lock()
	if before := n.pending[id]; before != nil {
		before.Merge(a)
	} else {
		n.pending[id] = &a
	}
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// announceEvery is the least time between two sends: commits in between share
// their notifications.
const announceEvery = 2 * time.Millisecond

// run sends until ctx ends.
func (n *announcer) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := n.send(ctx); err != nil && ctx.Err() == nil {
			n.log.Debug("announcing progress", "err", err) // readers look by themselves as well
		}
		wait(ctx, 200*time.Millisecond)
	}
}

// send sends on one session until it breaks or ctx ends.
func (n *announcer) send(ctx context.Context) error {
	conn, err := postgres.Connect(ctx, postgres.Config{URL: n.url, AppName: "refold-projector-announce", StatementTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
		}
		if err := n.flush(ctx, conn); err != nil {
			return err
		}
		wait(ctx, announceEvery)
	}
}

func (n *announcer) flush(ctx context.Context, conn *pgx.Conn) error {
	n.mu.Lock()
	taken := n.pending
	n.pending = make(map[partitionID]*readmodel.Announcement, len(taken))
	n.mu.Unlock()
	payloads := make([]string, 0, len(taken))
	for _, a := range taken {
		payloads = append(payloads, a.Payload())
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := conn.Exec(ctx, `select pg_catalog.pg_notify($1, p) from pg_catalog.unnest($2::text[]) p`, readmodel.Channel, payloads)
	if err != nil {
		n.putBack(taken)
	}
	return err
}

// putBack keeps what could not be sent. It may have been sent: a repetition does
// no harm.
func (n *announcer) putBack(taken map[partitionID]*readmodel.Announcement) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, a := range taken {
		if later := n.pending[id]; later != nil {
			a.Merge(*later)
		}
		n.pending[id] = a
	}
	select {
	case n.wake <- struct{}{}:
	default:
	}
}
