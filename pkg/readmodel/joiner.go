package readmodel

import (
	"context"
	"errors"
)

// joiner is a subscriber who is not up to date yet.
type joiner struct {
	subscriber *Subscriber
	at         standing // without progress: from now on
}

// admit makes a joiner a subscriber once it has been told all that the others were
// told. The last stretch is read here, so that no row is told to it that is older
// than one that it has seen.
func (f *feed) admit(ctx context.Context, j *joiner) {
	s := j.subscriber
	if s.gone() {
		return
	}
	if j.at.progress == nil {
		f.enlist(s)
		return
	}
	j.meet(f.model, f.at)
	events, err := j.at.progress.distance(f.at.progress)
	if err != nil {
		s.end(err)
		return
	}
	if events > nearby {
		m, to := f.model, f.at
		f.feeds.running.Go(func() { f.catchUp(f.feeds.ctx, j, m, to) })
		return
	}
	if err := f.bringUp(ctx, j); err != nil {
		s.end(err)
		return
	}
	f.enlist(s)
}

// bringUp tells a joiner what the others were told.
func (f *feed) bringUp(ctx context.Context, j *joiner) error {
	for !j.at.progress.reaches(f.at.progress) {
		if err := j.step(ctx, f.deriver, f.model, f.at.progress); err != nil {
			return err
		}
	}
	changes, err := f.deriver.answered(ctx, f.feeds.pool, f.model, j.at, make(map[answered]bool))
	switch {
	case errors.Is(err, errTooManyAnswered):
		j.subscriber.tell(flipped(f.model, j.at))
	case err != nil:
		return err
	case len(changes) > 0:
		j.subscriber.tell(newBatch(f.model, changes))
	}
	return nil
}

func (f *feed) enlist(s *Subscriber) {
	s.tell(started(f.model, f.at))
	f.subscribers[s] = struct{}{}
	f.feeds.followers.Add(1)
}

// catchUp brings a joiner near, no faster than it takes what it is told, and hands
// it back to the feed.
func (f *feed) catchUp(ctx context.Context, j *joiner, m *Model, to standing) {
	s, d := j.subscriber, f.feeds.deriver()
	err := d.prepare(ctx, f.feeds.pool)
	for err == nil {
		if events, _ := j.at.progress.distance(to.progress); events <= nearby {
			err = f.feeds.join(f.name, j, to)
			break
		}
		if !s.awaitRoom(ctx) {
			return
		}
		err = j.step(ctx, d, m, to.progress)
	}
	if err != nil {
		s.end(err)
	}
}

// meet tells a joiner that another version answers than where it stands, or that
// the database has come back from a failover, if so.
func (j *joiner) meet(m *Model, now standing) {
	if !j.at.isOf(now) {
		j.at = j.at.movedTo(now)
		j.subscriber.tell(flipped(m, j.at))
	}
}

func (j *joiner) step(ctx context.Context, d *deriver, m *Model, to *Progress) error {
	changes, reached, err := d.step(ctx, m, j.at, to)
	if err != nil {
		return err
	}
	if j.at = reached; len(changes) > 0 {
		j.subscriber.tell(newBatch(m, changes))
	}
	return nil
}
