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

// do joins a read that is under way, or begins one. An exclusive read is not
// shared: it asks for more than the key says.
func (f *fills) do(ctx context.Context, k cacheKey, exclusive bool, read func(context.Context) (*entry, error)) (*entry, error) {
	if exclusive {
		return read(ctx)
	}
	f.mu.Lock()
	running := f.running[k]
	if running == nil {
		running = &fill{done: make(chan struct{})}
		f.running[k] = running
		go f.run(context.WithoutCancel(ctx), k, running, read)
	}
	f.mu.Unlock()
	select {
	case <-running.done:
		return running.entry, running.err
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
