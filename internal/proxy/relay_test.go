package proxy

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Streams go through the kernel both ways, and arrive as they were sent, however they are cut.
func TestStreamsAreSpliced(t *testing.T) {
	const size = 64 << 20
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	p := start(t, Options{})
	at := freePort(t)
	p.apply(one(at, active("a", server(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) }))))
	c := mustCall(t, at)
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	go func() {
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 1+rand.IntN(300<<10))
			if _, err := c.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
		_ = c.CloseWrite()
	}()
	sum := sha256.New()
	n, err := io.Copy(sum, struct{ io.Reader }{c})
	if err != nil || n != size || !bytes.Equal(sum.Sum(nil), sumOf(data)) {
		t.Fatalf("got %d bytes of %d, %v; the same: %v", n, size, err, bytes.Equal(sum.Sum(nil), sumOf(data)))
	}
	l, _ := p.status().Listener("web")
	if l.Received != size || l.Sent != size || l.SplicedIn < size*9/10 || l.SplicedOut < size*9/10 {
		t.Errorf("%+v", l)
	}
}

func sumOf(b []byte) []byte {
	s := sha256.Sum256(b)
	return s[:]
}

// A peer that does not read is waited for with no more than a pipe, whatever the other one sends; and when the
// connection has ended, no pipe that still holds its bytes is given to another one.
func TestStalledStreamsLeaveNothingBehind(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	p.apply(one(at, active("a", server(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) }))))
	for range 10 {
		c := mustCall(t, at)
		_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond))
		_, _ = io.Copy(c, endless{})
		_ = c.Close()
	}
	eventually(t, "all are closed", func() (bool, string) { s := p.status(); return s.Connections == 0, fmt.Sprintf("%+v", s) })
	for _, one := range idlePipesNow() {
		if n, err := unix.IoctlGetInt(one.out, unix.TIOCINQ); err != nil || n != 0 {
			t.Errorf("an idle pipe holds %d bytes, %v", n, err)
		}
	}
	if who, err := io.ReadAll(io.LimitReader(echoOnce(t, p, "hello"), 5)); string(who) != "hello" {
		t.Errorf("%q, %v", who, err)
	}
}

func idlePipesNow() []*pipe {
	pipes.mu.Lock()
	defer pipes.mu.Unlock()
	return append([]*pipe(nil), pipes.idle...)
}

func echoOnce(t *testing.T, p *running, text string) io.Reader {
	t.Helper()
	at := freePort(t)
	p.apply(one(at, active("b", server(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) }))))
	c := mustCall(t, at)
	_, err := io.WriteString(c, text)
	check(t, err)
	return c
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// What an idle connection costs, after it has carried a stream.
func TestIdleConnectionsCostLittle(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	// Copied by hand, or the test's own end would hold pipes.
	p.apply(one(at, active("a", server(t, func(c *net.TCPConn) { _, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) }))))
	const n = 200
	before := openFiles(t)
	var m0, m1 runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m0)
	for range n {
		c := mustCall(t, at)
		_, err := c.Write(make([]byte, 100<<10))
		check(t, err)
		_, err = io.ReadFull(c, make([]byte, 100<<10))
		check(t, err)
	}
	runtime.GC()
	runtime.ReadMemStats(&m1)
	// Client, client's other end, backend's end and ours: four of a connection are here, none is a pipe's.
	files := openFiles(t) - before - 4*n
	if files > 2*idlePipes {
		t.Errorf("%d descriptors beyond the sockets", files)
	}
	each := (int64(m1.HeapInuse+m1.StackInuse) - int64(m0.HeapInuse+m0.StackInuse)) / n
	t.Logf("%d bytes for each connection, of which half are the test's own", each)
	if each > 64<<10 {
		t.Errorf("%d bytes for each connection", each)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(entries)
}

// A backend that comes to others gets few connections at first, and its share in the end.
func TestSlowStart(t *testing.T) {
	var percent atomic.Int64 // what the lots say
	p := start(t, Options{chance: func() float64 { return float64(percent.Load()) / 100 }})
	at := freePort(t)
	old, fresh := named(t, "old"), named(t, "fresh")
	config := func(backends ...Backend) Config {
		c := one(at, backends...)
		c.Listeners[0].SlowStartMS = 3_600_000
		return c
	}
	count := func() map[string]int {
		got := map[string]int{}
		for range 10 {
			who, err := once(at)
			check(t, err)
			got[who]++
		}
		return got
	}
	p.apply(config(active("old", old)))
	percent.Store(5)
	p.apply(config(active("old", old), active("fresh", fresh)))
	if got := count(); got["fresh"] == 0 || got["old"] == 0 {
		t.Errorf("when lots fall within a tenth: %v", got)
	}
	percent.Store(50)
	if got := count(); got["old"] != 10 {
		t.Errorf("when they do not: %v", got)
	}
	// With nobody else it gets everything, and a configuration that says the same changes nothing.
	p.apply(config(draining("old", old), active("fresh", fresh)))
	if got := count(); got["fresh"] != 10 {
		t.Errorf("alone: %v", got)
	}
	// One that was away comes back slowly too.
	p.apply(config(active("old", old), active("fresh", fresh)))
	if got := count(); got["old"] == 10 {
		t.Errorf("both are in their slow start: %v", got)
	}
	c := config(active("old", old), active("fresh", fresh))
	c.Listeners[0].SlowStartMS = 0
	p.apply(c)
	if got := count(); got["old"] == 0 || got["fresh"] == 0 {
		t.Errorf("without a slow start: %v", got)
	}
}
