package vm

import (
	"bytes"
	"strings"
	"sync"
)

// panicMark is how every panic message of a Linux kernel begins.
const panicMark = "Kernel panic - not syncing"

// maxPanicLine bounds the panic line that is reported.
const maxPanicLine = 200

// A Console keeps the last ConsoleLimit bytes of what a machine wrote to its serial console. The zero value
// is ready. Its methods may be called concurrently.
type Console struct {
	mu  sync.Mutex
	buf []byte // guarded by mu; at most twice ConsoleLimit, so that cutting it is rare
}

// Write adds to the console. It never fails.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = append(c.buf, p[max(0, len(p)-ConsoleLimit):]...)
	if len(c.buf) > 2*ConsoleLimit {
		c.buf = append(c.buf[:0], c.buf[len(c.buf)-ConsoleLimit:]...)
	}
	return len(p), nil
}

// Tail returns the last bytes, at most ConsoleLimit.
func (c *Console) Tail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.buf[max(0, len(c.buf)-ConsoleLimit):])
}

// Panic returns the line of the last kernel panic in the tail, without its time stamp and without bytes that
// are no printable ASCII, or nothing when there is none.
func (c *Console) Panic() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := bytes.LastIndex(c.buf, []byte(panicMark))
	if i < 0 {
		return ""
	}
	line := c.buf[i:min(len(c.buf), i+maxPanicLine)]
	if end := bytes.IndexAny(line, "\r\n"); end >= 0 {
		line = line[:end]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string(line))
}
