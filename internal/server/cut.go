package server

import (
	"context"
	"net/http"
	"sync"
	"time"
)

const (
	// recheck is how often it is looked whether who makes a call may still do so, while it lasts.
	recheck = 5 * time.Second
	// partingTime is how long a call that is cut off has to say why.
	partingTime = 5 * time.Second
)

// whileGood serves a request, and cuts it off when good returns an error: also one that waits for its other end, and
// does not look at its context.
func whileGood(w http.ResponseWriter, r *http.Request, good func() error, next http.Handler) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	c := &cutter{control: http.NewResponseController(w), good: good, cancel: cancel}
	c.mu.Lock()
	c.timer = time.AfterFunc(recheck, c.look)
	c.mu.Unlock()
	defer c.end()
	next.ServeHTTP(w, r.WithContext(ctx))
}

type cutter struct {
	control *http.ResponseController
	good    func() error
	cancel  context.CancelCauseFunc

	mu    sync.Mutex  // guards what follows, and the use of control
	timer *time.Timer // runs look
	ended bool        // the request is over, and control is not to be used
}

func (c *cutter) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	err := c.good()
	if err == nil {
		c.timer.Reset(recheck)
		return
	}
	c.cancel(err)
	now := time.Now()
	// These fail where there are no deadlines, as within one process; the context has to do then.
	_ = c.control.SetReadDeadline(now)
	_ = c.control.SetWriteDeadline(now.Add(partingTime))
}

func (c *cutter) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.timer.Stop()
}
