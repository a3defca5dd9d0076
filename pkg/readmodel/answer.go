package readmodel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
)

// Answer says where an answer comes from.
type Answer struct {
	Version Version
	// AsOf is a moment up to which all that was recorded is contained; zero when
	// it is not known.
	AsOf time.Time

	progress *Progress
	requests int64 // see [standing]
	asked    event.Token
	stream   string // the row's key, when one stream feeds it
	byStream bool
	text     string // of the token, where it was made before
}

// Token returns what the answer contains: a client that sends it with the next
// request never goes back in time. Of a row that one stream feeds it names the
// slot of that stream alone, and what was asked for.
func (a Answer) Token() event.Token {
	mark, ok := a.progress.ofStream(a.stream)
	if !a.byStream || !ok {
		return a.progress.Token()
	}
	marks := make([]event.Mark, 0, 1+len(a.asked))
	if mark.Seq > 0 {
		marks = append(marks, mark)
	}
	for _, m := range a.asked {
		if m.Category == mark.Category && m.Slot != mark.Slot {
			m.Written, m.Branch = false, a.progress.branch // where it was found
			marks = append(marks, m)
		}
	}
	return event.NewToken(marks...)
}

// TokenText is Token().String().
func (a Answer) TokenText() string {
	switch {
	case a.text != "":
		return a.text
	case !a.byStream:
		return a.progress.TokenText()
	}
	return a.Token().String()
}

// ChangeID returns the id behind which [Feeds.Subscribe] goes on from the answer
// without a gap.
func (a Answer) ChangeID() string { return standingAt(a.Version, a.requests, a.progress).id() }

// pick finds the version that an answer comes from. One that is pinned need not be
// the active one.
type pick func(ctx context.Context) (m *Model, pinned bool, err error)

// read reads rows of a model, and what the log has at the marks that are in doubt,
// or takes what is kept where that is allowed.
type read func(m *Model, doubts []event.Mark, fromCache bool) (*snapshot, error)

// current picks the active version of a read model.
func (r *Reader) current(name string) pick {
	return func(ctx context.Context) (*Model, bool, error) {
		m, err := r.models.current(ctx, name)
		return m, false, err
	}
}

// asking is one query until it has an answer.
type asking struct {
	reader *Reader
	fresh  Fresh
	pick   pick
	read   read

	uncached bool // what is kept was too old
	unproven bool // a mark was not looked up that had to be
	doubted  bool // the model was looked up again for a query that it refused
	flips    int
	sessions int   // that were lost
	short    error // why the last answer was not good enough

	deadline, tick <-chan time.Time // set at the first wait
	stop           func()
}

// answer asks read for rows of the version that pick finds until their snapshot
// contains what the client wants, within its wait. Unless it is pinned the version
// must be active in that snapshot.
func (r *Reader) answer(ctx context.Context, pick pick, fresh Fresh, read read) (from Answer, err error) {
	a := &asking{reader: r, fresh: fresh, pick: pick, read: read}
	defer func() {
		if a.stop != nil {
			a.stop()
		}
	}()
	for first := true; ; first = false {
		var again bool
		var moved <-chan struct{}
		from, again, moved, err = a.attempt(ctx, first)
		switch {
		case again:
			continue
		case moved == nil && ctx.Err() != nil && a.short == nil:
			return from, err // which is the caller's own
		case moved == nil:
			return from, a.end(err)
		}
		if !a.wait(ctx, moved) {
			if ctx.Err() != nil { // the client has gone, or this process is stopping and another may answer
				return from, fmt.Errorf("%w: %w", err, context.Cause(ctx))
			}
			return from, classify(err)
		}
	}
}

// attempt reads once. It is to be repeated at once when another version may
// answer, and after a wait for moved when the rows are not new enough.
func (a *asking) attempt(ctx context.Context, first bool) (from Answer, again bool, moved <-chan struct{}, err error) {
	r, w := a.reader, a.reader.watcher
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	m, pinned, err := a.pick(ctx)
	if err != nil {
		again, moved = a.lost(err)
		return from, again, moved, err
	}
	worth := true
	if len(a.fresh.Token) > 0 {
		worth, moved = w.expect(m.id, a.fresh.Token)
	}
	err = ErrNotCaughtUp
	if worth || first && a.fresh.Wait == 0 {
		moved = w.Moved() // before reading, so that no move is missed
		var of *snapshot
		if of, err = a.read(m, w.validity.doubtful(a.fresh.Token, a.unproven), !a.uncached && (pinned || w.serves(m))); err == nil {
			from = r.from(m, of, a.fresh)
			err = r.judge(m, of, pinned, from, a.fresh)
		}
		if pinned && isGone(err) {
			err = ErrCursorExpired
		}
	}
	if err == nil {
		return from, false, nil, nil
	}
	var wrong *QueryError
	switch {
	case errors.Is(err, errNotActive), isGone(err): // flipped or retired
		r.models.forget(m)
		a.flips++
		return from, a.flips <= maxFlips, nil, err
	case errors.As(err, &wrong) && !pinned && !a.doubted: // by a definition that may have changed in place
		a.doubted = true
		r.models.forget(m)
		return from, true, nil, err
	case errors.Is(err, errUnproven) && !a.unproven:
		a.unproven = true
		return from, true, nil, err
	case errors.Is(err, ErrTooStale):
		a.uncached, a.short = true, err
		return from, false, w.look(), err
	case errors.Is(err, ErrNotCaughtUp):
		a.short = err
		return from, false, moved, err
	}
	again, moved = a.lost(err)
	return from, again, moved, err
}

// lost tells what is to be done when the database gave no answer. That a session
// has died says nothing of the server, so another one is asked at once. Without a
// server those who wait for something wait for it too; the others are told.
func (a *asking) lost(err error) (again bool, moved <-chan struct{}) {
	class := postgres.Classify(err)
	switch {
	case isDead(err) && a.sessions < maxFlips:
		a.sessions++
		return true, nil
	case len(a.fresh.Token) == 0 && a.fresh.MaxStaleness == 0:
		return false, nil
	case class.Transient() && class != postgres.ClassTimeout, errors.Is(err, context.DeadlineExceeded):
		return false, a.reader.watcher.Moved()
	}
	return false, nil
}

// isDead tells whether a session was lost that had been there, as all are after a
// restart of the server.
func isDead(err error) bool {
	var dial *pgconn.ConnectError
	return postgres.ConnectionLost(err) && !errors.As(err, &dial)
}

// end returns the error of the last attempt: to one who waits, what is missed in
// the rows and not that the wait was cut off in the middle of a read.
func (a *asking) end(err error) error {
	if a.short != nil && (errors.Is(err, context.Canceled) || errors.Is(err, errNotActive)) {
		return fmt.Errorf("%w: %w", a.short, err)
	}
	return classify(err)
}

// wait waits until it is worth asking again, and tells whether it is.
func (a *asking) wait(ctx context.Context, moved <-chan struct{}) bool {
	if a.stop == nil {
		timer, ticker := time.NewTimer(a.fresh.Wait), time.NewTicker(askEvery)
		a.deadline, a.tick = timer.C, ticker.C
		a.stop = func() { timer.Stop(); ticker.Stop() }
	}
	select {
	case <-moved:
	case <-a.tick: // looks whether it is worth asking, even if nothing is heard
	case <-a.deadline:
		return false
	case <-ctx.Done():
		return false
	}
	return true
}

// askEvery is how often one who waits asks while nothing can be heard.
const askEvery = 100 * time.Millisecond

// maxFlips bounds how often a query looks for the active version again, and how
// many lost sessions it meets, however often it has waited.
const maxFlips = 10

func (r *Reader) judge(m *Model, of *snapshot, pinned bool, from Answer, fresh Fresh) error {
	switch {
	case pinned && (of.state == "" || of.state == stateRetired):
		return ErrCursorExpired
	case !pinned && !of.serves(m):
		return errNotActive
	}
	if len(fresh.Token) > 0 {
		if err := of.judge(fresh.Token, m.Version.Leaf, r.watcher.validity); err != nil {
			return err
		}
	}
	if fresh.MaxStaleness > 0 && (from.AsOf.IsZero() || time.Since(from.AsOf) > fresh.MaxStaleness) {
		return ErrTooStale
	}
	return nil
}

// from says where an answer comes from. It contains all that the version had
// applied when it was read, and what that was is known since the last look.
func (r *Reader) from(m *Model, of *snapshot, fresh Fresh) Answer {
	from := Answer{Version: m.Version, progress: of.progress, requests: of.requests.in(of.progress.branch), asked: fresh.Token, byStream: !m.Plan.Shared()}
	if behind, at, known := r.watcher.lag(m.id); known {
		if of.at.Before(at) {
			at = of.at
		}
		from.AsOf = at.Add(-behind)
	}
	return from
}

// classify tells what ran out of time. A server that is there says itself when a
// statement has taken too long, and before we give up; so where it has said
// nothing, the query may be as cheap as can be.
func classify(err error) error {
	switch {
	case errors.Is(err, ErrTooExpensive):
		return err
	case postgres.Classify(err) == postgres.ClassTimeout:
		return fmt.Errorf("%w: %w", ErrTooExpensive, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	return err
}
