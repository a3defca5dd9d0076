package readmodel

import (
	"context"
	"sync"
	"time"
)

// fills makes one read of however many ask for the same list at once. It goes on
// when one of them leaves.
type fills struct {
	timeout time.Duration

	mu      sync.Mutex
	running map[cacheKey]*fill
}

type fill struct {
	done  chan struct{}
	entry *entry
	err   error
}

// do makes one read for all who ask while another is under way: that one may have
// read before they asked, so its answer is theirs only if it still holds. An
// exclusive read is not shared: it asks for more than the key says.
func (f *fills) do(ctx context.Context, k cacheKey, exclusive bool, holds func(*entry) bool, read func(context.Context) (*entry, error)) (*entry, error) {
	if exclusive {
		return read(ctx)
	}
	f.mu.Lock()
	before := f.running[k]
	f.mu.Unlock()
	if before != nil {
		if e, err := before.await(ctx); ctx.Err() != nil || err == nil && holds(e) {
			return e, err
		}
	}
	f.mu.Lock()
	running := f.running[k]
	if running == nil {
		running = &fill{done: make(chan struct{})}
		f.running[k] = running
		go f.run(context.WithoutCancel(ctx), k, running, read)
	}
	f.mu.Unlock()
	return running.await(ctx)
}

func (f *fill) await(ctx context.Context) (*entry, error) {
	select {
	case <-f.done:
		return f.entry, f.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (f *fills) run(ctx context.Context, k cacheKey, running *fill, read func(context.Context) (*entry, error)) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	running.entry, running.err = read(ctx)
	f.mu.Lock()
	delete(f.running, k)
	f.mu.Unlock()
	close(running.done)
}
