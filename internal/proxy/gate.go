package proxy

import (
	"context"
	"sync"
)

// A gate lets a number of holders in, and makes more of them wait. The number can be changed at any time.
type gate struct {
	mu sync.Mutex
	// Guarded by mu.
	held, limit int
	// changed is closed when there may be room again, and nil while nobody waits.
	changed chan struct{}
}

// enter waits for a place and says whether it got one before ctx was done.
func (g *gate) enter(ctx context.Context) bool {
	for {
		g.mu.Lock()
		if g.held < g.limit {
			g.held++
			g.mu.Unlock()
			return true
		}
		if g.changed == nil {
			g.changed = make(chan struct{})
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// tryEnter is enter without waiting.
func (g *gate) tryEnter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held >= g.limit {
		return false
	}
	g.held++
	return true
}

// force enters without regard to the limit.
func (g *gate) force() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held++
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held--
	g.wake()
}

func (g *gate) setLimit(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = n
	g.wake()
}

func (g *gate) inside() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held
}

func (g *gate) wake() {
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}
