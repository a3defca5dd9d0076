package readmodel

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"time"

	"github.com/refoldhq/refold/pkg/event"
)

// The functions below read rows as Go values. T is a struct (or anything else)
// that encoding/json can read the row into. They go through the same cache, tokens
// and limits as queries over HTTP.

// Option says how fresh rows have to be.
type Option func(*options)

type options struct {
	fresh Fresh
	from  *Answer
}

// defaultWait is how long is waited for a token unless said otherwise.
const defaultWait = time.Second

func optionsOf(list []Option) options {
	o := options{fresh: Fresh{Wait: defaultWait}}
	for _, set := range list {
		set(&o)
	}
	return o
}

func (o *options) came(from Answer) {
	if o.from != nil {
		*o.from = from
	}
}

// Containing asks for rows that contain what tokens say: those of appends and of
// other answers.
func Containing(tokens ...event.Token) Option {
	return func(o *options) { o.fresh.Token = event.Merge(append(tokens, o.fresh.Token)...) }
}

// Waiting says how long to wait for that; a second unless said otherwise. After
// that the error is [ErrNotCaughtUp] or [ErrTooStale].
func Waiting(d time.Duration) Option { return func(o *options) { o.fresh.Wait = d } }

// NotOlderThan bounds how old the answer may be.
func NotOlderThan(d time.Duration) Option { return func(o *options) { o.fresh.MaxStaleness = d } }

// From sets a to where the answer comes from: its version and its token.
func From(a *Answer) Option { return func(o *options) { o.from = a } }

// FindByID returns the row with a key, or [ErrNoRow].
func FindByID[T any](ctx context.Context, r *Reader, name, key string, opts ...Option) (row T, err error) {
	o := optionsOf(opts)
	data, from, err := r.Get(ctx, name, key, o.fresh)
	o.came(from)
	if err != nil {
		return row, err
	}
	return decode[T](name, key, data)
}

func decode[T any](name, key string, data []byte) (row T, err error) {
	if err := json.Unmarshal(data, &row); err != nil {
		return row, fmt.Errorf("reading the row %q of %s: %w", key, name, err)
	}
	return row, nil
}

// FindByIDs returns the rows with the given keys, at most [MaxValues], by key, from
// one snapshot. Those that do not exist are missing.
func FindByIDs[T any](ctx context.Context, r *Reader, name string, keys []string, opts ...Option) (map[string]T, error) {
	if len(keys) > MaxValues {
		return nil, badQuery("key", "at most %d keys", MaxValues)
	}
	page, err := List[T](ctx, r, name, ListQuery{Where: Condition{op: opIn, field: "key", values: keys}, Limit: MaxLimit}, opts...)
	if err != nil {
		return nil, err
	}
	rows := make(map[string]T, len(page.Rows))
	for i, row := range page.Rows {
		rows[page.Keys[i]] = row
	}
	return rows, nil
}

// FindBy returns the rows that a filter selects, in an order, at most [MaxLimit]:
// where there are more it is [ErrTooMany]; take [List] or [All] for those.
func FindBy[T any](ctx context.Context, r *Reader, name string, where Filter[T], order []Order, opts ...Option) ([]T, error) {
	page, err := List[T](ctx, r, name, ListQuery{Where: where.Condition, Order: order, Limit: MaxLimit}, opts...)
	if err == nil && page.Next != "" {
		err = fmt.Errorf("%w: more than %d", ErrTooMany, MaxLimit)
	}
	return page.Rows, err
}

// Rows is a page of rows as Go values; Keys are theirs, in the same order.
type Rows[T any] struct {
	Rows  []T
	Keys  []string
	Next  string // the cursor of the next page; empty at the end
	Count *int64 // nil unless asked for
}

// List returns a page, see [Reader.List].
func List[T any](ctx context.Context, r *Reader, name string, q ListQuery, opts ...Option) (rows Rows[T], err error) {
	o := optionsOf(opts)
	page, from, err := r.List(ctx, name, q, o.fresh)
	o.came(from)
	if err != nil {
		return rows, err
	}
	rows = Rows[T]{Rows: make([]T, len(page.Rows)), Keys: page.Keys, Next: page.Next, Count: page.Count}
	for i, data := range page.Rows {
		if rows.Rows[i], err = decode[T](name, page.Keys[i], data); err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// CountBy counts the rows that a filter selects.
func CountBy[T any](ctx context.Context, r *Reader, name string, where Filter[T], opts ...Option) (int64, error) {
	o := optionsOf(opts)
	page, from, err := r.List(ctx, name, ListQuery{Where: where.Condition, Limit: 1, Count: CountExact}, o.fresh)
	o.came(from)
	if err != nil {
		return 0, err
	}
	return *page.Count, nil
}

// All iterates over all rows that a filter selects, by key, from one snapshot: see
// [Reader.Export] for what that holds. The last pair has an error when something is
// missing.
func All[T any](ctx context.Context, r *Reader, name string, where Filter[T], opts ...Option) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		o := optionsOf(opts)
		stopped := false
		err := r.Export(ctx, name, where.Condition, o.fresh, func(from Answer) error { o.came(from); return nil }, func(key string, data []byte) error {
			row, err := decode[T](name, key, data)
			if err == nil && !yield(row, nil) {
				stopped = true
				return errStopped
			}
			return err
		})
		if err != nil && !stopped {
			var none T
			yield(none, err)
		}
	}
}

// Watched is a change with its row as a Go value; the zero value of a row that is
// gone, and of a flip.
type Watched[T any] struct {
	Change
	Value T
}

// Watch iterates over the changes of a read model from now on, or from behind an
// id (see [Change.ID] and [Answer.ChangeID]), until ctx ends. A row that the filter
// does not select comes as removed. The last pair has the error that ended it:
// behind [ErrSlow] and [ErrClosed] go on from the last id that you have.
func Watch[T any](ctx context.Context, f *Feeds, name, after string, where Filter[T]) iter.Seq2[Watched[T], error] {
	return func(yield func(Watched[T], error) bool) {
		ready := make(chan struct{}, 1)
		s, err := f.Subscribe(ctx, name, after, where.Condition, func() {
			select {
			case ready <- struct{}{}:
			default:
			}
		})
		if err != nil {
			yield(Watched[T]{}, err)
			return
		}
		defer s.Leave()
		for {
			b, err := s.Take()
			switch {
			case b != nil:
				if !yieldBatch(s, b, name, yield) {
					return
				}
				continue
			case err != nil:
				yield(Watched[T]{}, err)
				return
			}
			select {
			case <-ready:
			case <-ctx.Done():
				yield(Watched[T]{}, context.Cause(ctx))
				return
			}
		}
	}
}

func yieldBatch[T any](s *Subscriber, b *Batch, name string, yield func(Watched[T], error) bool) bool {
	if b.Alive {
		return true
	}
	for i := range b.Changes {
		w := Watched[T]{Change: b.Changes[i]}
		if !s.Selects(b, &w.Change) {
			w.Kind, w.Row = Removed, nil
		}
		var err error
		if w.Row != nil {
			w.Value, err = decode[T](name, w.Key, w.Row)
		}
		if !yield(w, err) || err != nil {
			return false
		}
	}
	return true
}
