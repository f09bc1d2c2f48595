package image

import (
	"context"
	"errors"
	"sync"
)

// flights let those who want the same layer at the same time wait for one download.
type flights struct {
	mu     sync.Mutex
	active map[string]*flight // guarded by mu
}

// A flight is work that several callers wait for. It is cancelled when the last of them has gone.
type flight struct {
	done   chan struct{}
	cancel context.CancelCauseFunc
	err    error // after done

	mu        sync.Mutex
	listeners map[int]func(bytes int64) // guarded by mu
	next      int                       // guarded by mu
	bytes     int64                     // guarded by mu
}

// work does something once, tells report how far it is, and ends when ctx does.
type work func(ctx context.Context, report func(bytes int64)) error

// do runs work under key, or waits for the one that runs. Before it runs its own it calls hold, and when that has
// ended the function that hold returned: work can outlast the caller. When that one fails, the caller's own is tried:
// the other caller's source may have been at fault, its credentials for instance. progress is not called
// any more once do has returned.
func (f *flights) do(ctx context.Context, key string, progress func(bytes int64), w work, hold func() func() error) error {
	for {
		current, id, mine := f.join(ctx, key, progress, w, hold)
		select {
		case <-current.done:
		case <-ctx.Done():
		}
		f.leave(key, current, id, context.Cause(ctx))
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if mine || current.err == nil {
			return current.err
		}
	}
}

// join listens to the flight for key, which it starts when there is none; mine says that it did.
func (f *flights) join(ctx context.Context, key string, progress func(int64), w work, hold func() func() error) (current *flight, id int, mine bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if current := f.active[key]; current != nil {
		return current, current.listen(progress), false
	}
	// The caller who starts it may leave while others still wait.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	current = &flight{done: make(chan struct{}), cancel: cancel, listeners: map[int]func(int64){}}
	if f.active == nil {
		f.active = map[string]*flight{}
	}
	f.active[key] = current
	id = current.listen(progress)
	release := hold()
	go func() {
		current.err = errors.Join(w(ctx, current.report), release())
		f.mu.Lock()
		if f.active[key] == current {
			delete(f.active, key)
		}
		f.mu.Unlock()
		close(current.done)
	}()
	return current, id, true
}

// leave takes a listener off; the last one stops the work and waits until it has stopped.
func (f *flights) leave(key string, current *flight, id int, cause error) {
	f.mu.Lock()
	current.mu.Lock()
	delete(current.listeners, id)
	last := len(current.listeners) == 0
	current.mu.Unlock()
	if last && f.active[key] == current {
		delete(f.active, key)
	}
	f.mu.Unlock()
	if last {
		current.cancel(cause)
		<-current.done
	}
}

func (c *flight) listen(progress func(int64)) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	c.listeners[c.next] = progress
	if c.bytes > 0 {
		progress(c.bytes)
	}
	return c.next
}

func (c *flight) report(bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes = bytes
	for _, progress := range c.listeners {
		progress(bytes)
	}
}
