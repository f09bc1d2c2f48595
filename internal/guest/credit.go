package guest

import "sync"

// Credit is how much one side of a stream may still send, so that whoever receives needs room for no more. It is safe
// for concurrent use.
type Credit struct {
	mu    sync.Mutex
	left  int           // guarded by mu
	given chan struct{} // guarded by mu: closed, and made anew, when there is more
}

// NewCredit begins with n.
func NewCredit(n int) *Credit { return &Credit{left: n, given: make(chan struct{})} }

// Give adds n.
func (c *Credit) Give(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left += n
	close(c.given)
	c.given = make(chan struct{})
}

// Take waits until there is n and takes it, unless done is closed first; then it returns false. Of several that wait,
// any may be served first.
func (c *Credit) Take(done <-chan struct{}, n int) bool {
	for {
		c.mu.Lock()
		given := c.given
		if c.left >= n {
			c.left -= n
			c.mu.Unlock()
			return true
		}
		c.mu.Unlock()
		select {
		case <-given:
		case <-done:
			return false
		}
	}
}

// Spend takes n without waiting, or returns false when there is less.
func (c *Credit) Spend(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left < n {
		return false
	}
	c.left -= n
	return true
}
