package firecracker

import (
	"io"
	"sync"
	"time"
)

const (
	// burst and pause bound what a guest that floods its console costs the caller: a whole pipe, 64 KiB, every
	// 50 ms. What comes meanwhile is dropped by the monitor.
	burst = 64 << 10
	pause = 50 * time.Millisecond
	// stderrLimit is how much of the monitor's own complaints is kept: the first ones tell why.
	stderrLimit = 4 << 10
)

// output reads what a monitor prints until its pipes are closed.
type output struct {
	readers sync.WaitGroup
}

// follow copies from a pipe until it ends.
func (o *output) follow(from io.Reader, to io.Writer) {
	o.readers.Go(func() {
		buf := make([]byte, burst)
		for {
			n, err := from.Read(buf)
			_, _ = to.Write(buf[:n]) // no writer here fails
			if err != nil {
				return
			}
			if n == len(buf) {
				time.Sleep(pause)
			}
		}
	})
}

// wait returns when everything is read.
func (o *output) wait() { o.readers.Wait() }

// head keeps the first stderrLimit bytes written to it, by several writers.
type head struct {
	mu  sync.Mutex
	buf []byte // guarded by mu
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	room := stderrLimit - len(h.buf)
	h.buf = append(h.buf, p[:min(len(p), room)]...)
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.buf)
}
