package engine

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/refoldhq/refold/pkg/postgres"
)

// followPoll is how often the catalogue is looked at when nothing is heard.
const followPoll = 500 * time.Millisecond

// Follow feeds whatever feeds returns, asking again whenever the catalogue may
// have changed: versions that come are fed, those that go or that get another
// plan are stopped, the others are not disturbed. While feeds fails, what is fed
// goes on. It returns nil when ctx ends. Follow or Run may be called once.
func (e *Engine) Follow(ctx context.Context, feeds func(context.Context) ([]Feed, error)) error {
	type running struct {
		plan string
		stop context.CancelFunc
		done chan struct{}
	}
	fed := make(map[string]*running) // by leaf, whose names are never used twice
	stop := func(leaf string) {
		fed[leaf].stop()
		<-fed[leaf].done
		delete(fed, leaf)
	}
	var all sync.WaitGroup
	e.background(ctx, &all)
	changed := make(chan struct{}, 1)
	all.Go(func() { e.listen(ctx, changed) })
	for ctx.Err() == nil {
		list, err := feeds(ctx)
		if err != nil {
			if ctx.Err() == nil {
				e.log.Warn("the catalogue cannot be read", "err", err)
			}
		} else {
			wanted := make(map[string]string)
			for _, f := range list {
				wanted[f.Version.Leaf] = feedID(f)
			}
			for leaf, r := range fed {
				if wanted[leaf] != r.plan {
					stop(leaf)
				}
			}
			for _, f := range list {
				if fed[f.Version.Leaf] != nil {
					continue
				}
				feeding, cancel := context.WithCancel(ctx)
				r := &running{plan: feedID(f), stop: cancel, done: make(chan struct{})}
				fed[f.Version.Leaf] = r
				go func() {
					defer close(r.done)
					e.keepFeeding(feeding, f)
				}()
			}
		}
		timer := time.NewTimer(followPoll)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
	for leaf := range fed {
		stop(leaf)
	}
	all.Wait()
	return nil
}

// feedID is another when a version is to be fed in another way.
func feedID(f Feed) string { return fmt.Sprintf("%s %t", f.Plan.Hash(), f.Version.Completing) }

// listen tells of changes of the catalogue until ctx ends; polling stands in
// where its session fails.
func (e *Engine) listen(ctx context.Context, changed chan<- struct{}) {
	for ctx.Err() == nil {
		conn, err := postgres.Connect(ctx, postgres.Config{URL: e.cfg.DatabaseURL, AppName: "refold-projector-catalogue"})
		if err == nil {
			_, err = conn.Exec(ctx, `listen refold_catalogue`)
		}
		for err == nil {
			select {
			case changed <- struct{}{}:
			default: // one look is enough
			}
			_, err = conn.WaitForNotification(ctx)
		}
		if conn != nil {
			conn.Close(context.WithoutCancel(ctx))
		}
		wait(ctx, 3*time.Second)
	}
}
