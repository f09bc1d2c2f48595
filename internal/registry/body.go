package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

var errStalled = errors.New("the registry stopped sending")

// body bounds a response in size and in time: a server that sends without end, or a byte every now and
// then, must not hold us. Only the time that reads wait for the server counts, not the time that the
// caller takes between them.
type body struct {
	inner  io.ReadCloser
	limits limits
	left   int64 // bytes that may still come; negative for any number
	cancel context.CancelCauseFunc
	timer  *time.Timer

	mu      sync.Mutex
	reading bool          // guarded by mu
	stalled bool          // and therefore cancelled; guarded by mu
	since   time.Time     // when the read that is under way began, or the window in it; guarded by mu
	waited  time.Duration // in this window, before that; guarded by mu
	got     int64         // in this window; guarded by mu
}

// newBody takes over inner, which ends when cancel is called.
func newBody(inner io.ReadCloser, l limits, most int64, cancel context.CancelCauseFunc) *body {
	b := &body{inner: inner, limits: l, left: most, cancel: cancel}
	b.timer = time.AfterFunc(l.window, b.windowEnds)
	b.timer.Stop()
	return b
}

// windowEnds is called while a read waits.
func (b *body) windowEnds() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.reading || b.waited+time.Since(b.since) < b.limits.window {
		return // the read ended at the same moment
	}
	if b.got < b.limits.atLeast {
		b.stalled = true
		b.cancel(errStalled)
		return
	}
	b.since, b.waited, b.got = time.Now(), 0, 0
	b.timer.Reset(b.limits.window)
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		// Exactly at the bound the stream may end, but not go on.
		p = make([]byte, 1)
	} else if b.left > 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	b.mu.Lock()
	b.reading, b.since = true, time.Now()
	b.timer.Reset(b.limits.window - b.waited)
	b.mu.Unlock()
	n, err := b.inner.Read(p)
	b.timer.Stop()

	b.mu.Lock()
	defer b.mu.Unlock()
	b.reading = false
	b.waited += time.Since(b.since)
	b.got += int64(n)
	if b.left == 0 && n > 0 {
		return 0, &Error{Kind: ErrWrongContent, Message: "the registry sent a larger answer than can be right"}
	}
	if b.left > 0 {
		b.left -= int64(n)
	}
	if err != nil {
		if !errors.Is(err, io.EOF) && b.stalled {
			err = fmt.Errorf("%w: %d bytes in %v", errStalled, b.got, b.limits.window)
		}
		return n, err
	}
	if b.waited >= b.limits.window {
		if b.got < b.limits.atLeast {
			return n, fmt.Errorf("%w: %d bytes in %v", errStalled, b.got, b.waited)
		}
		b.waited, b.got = 0, 0
	}
	return n, nil
}

func (b *body) Close() error {
	b.timer.Stop()
	err := b.inner.Close()
	b.cancel(nil)
	return err
}
