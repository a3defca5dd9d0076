package readmodel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
)

// Watcher wakes those who wait for progress: one session listens for all of
// them, and looks by itself every 100 ms in case a notification is lost. It is
// safe for concurrent use.
type Watcher struct {
	url string

	mu    sync.Mutex
	moved chan struct{} // closed at the next move, then replaced
}

// NewWatcher returns a watcher of a database. Run makes it work.
func NewWatcher(url string) *Watcher { return &Watcher{url: url, moved: make(chan struct{})} }

// Moved returns a channel that is closed when progress may have moved after the
// call.
func (w *Watcher) Moved() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.moved
}

func (w *Watcher) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.moved)
	w.moved = make(chan struct{})
}

// Run listens until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		w.listen(ctx)
		w.wake()
		timer := time.NewTimer(100 * time.Millisecond)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// listen ends when its session does.
func (w *Watcher) listen(ctx context.Context) {
	conn, err := postgres.Connect(ctx, postgres.Config{URL: w.url, AppName: "refold-queries-listen"})
	if err != nil {
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `listen refold_progress`); err != nil {
		return
	}
	for ctx.Err() == nil {
		waiting, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		_, err := conn.WaitForNotification(waiting)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return
		}
		w.wake()
	}
}

// Progress is how far a version has come: the last seq of each slot.
type Progress map[string]map[int]int64

// Token returns the token of an answer that was read at this progress.
func (p Progress) Token() event.Token {
	var marks []event.Mark
	for category, slots := range p {
		for slot, seq := range slots {
			if seq > 0 {
				marks = append(marks, event.Mark{Position: event.Position{Category: category, Slot: slot, Seq: seq}})
			}
		}
	}
	return event.NewToken(marks...)
}

// covers tells whether a token's marks of categories that feed the version are
// contained.
func (p Progress) covers(token event.Token) bool {
	return !slices.ContainsFunc(token, func(m event.Mark) bool {
		slots, feeds := p[m.Category]
		return feeds && slots[m.Slot] < m.Seq
	})
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func readProgress(ctx context.Context, q querier, v Version) (Progress, error) {
	rows, err := q.Query(ctx, `select category, slots, seqs from refold.progress where projection = $1 and version = $2 and phase = 'live'`, v.Projection, v.Number)
	if err != nil {
		return nil, fmt.Errorf("reading progress: %w", err)
	}
	p := make(Progress)
	var category string
	var slots []int16
	var seqs []int64
	_, err = pgx.ForEachRow(rows, []any{&category, &slots, &seqs}, func() error {
		if p[category] == nil {
			p[category] = make(map[int]int64)
		}
		for i, slot := range slots {
			p[category][int(slot)] = seqs[i]
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading progress: %w", err)
	}
	return p, nil
}
