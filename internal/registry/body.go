package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
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

	waited time.Duration // in this window
	got    int64         // in this window
}

// newBody takes over inner, which ends when cancel is called.
func newBody(inner io.ReadCloser, l limits, most int64, cancel context.CancelCauseFunc) *body {
	b := &body{inner: inner, limits: l, left: most, cancel: cancel}
	b.timer = time.AfterFunc(l.window, func() { cancel(errStalled) })
	b.timer.Stop()
	return b
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		// Exactly at the bound the stream may end, but not go on.
		p = make([]byte, 1)
	} else if b.left > 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	start := time.Now()
	b.timer.Reset(b.limits.window - b.waited)
	n, err := b.inner.Read(p)
	fired := !b.timer.Stop()
	b.waited += time.Since(start)
	b.got += int64(n)
	if b.left == 0 && n > 0 {
		return 0, &Error{Kind: ErrWrongContent, Message: "the registry sent a larger answer than can be right"}
	}
	if b.left > 0 {
		b.left -= int64(n)
	}
	if err != nil && !errors.Is(err, io.EOF) && fired {
		return n, fmt.Errorf("%w: %d bytes in %v", errStalled, b.got, b.limits.window)
	}
	if b.waited >= b.limits.window {
		if b.got < b.limits.atLeast && err == nil {
			return n, fmt.Errorf("%w: %d bytes in %v", errStalled, b.got, b.waited)
		}
		b.waited, b.got = 0, 0
	}
	return n, err
}

func (b *body) Close() error {
	b.timer.Stop()
	err := b.inner.Close()
	b.cancel(nil)
	return err
}

// exactly returns inner as a stream of size bytes: shorter or longer ones end with an error.
type exactly struct {
	io.ReadCloser
	left int64
	what string
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.left == 0 {
		p = make([]byte, 1)
	} else if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := e.ReadCloser.Read(p)
	switch {
	case e.left == 0 && n > 0:
		return 0, wrongContent("%s is longer than its manifest says", e.what)
	case errors.Is(err, io.EOF) && int64(n) < e.left:
		return n, wrongContent("%s ends %d bytes before the size that its manifest says", e.what, e.left-int64(n))
	}
	e.left -= int64(n)
	return n, err
}
