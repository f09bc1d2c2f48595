package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestConnectionsSpreadOverBackends(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	p.apply(one(at, active("a", named(t, "a")), active("b", named(t, "b")), active("c", named(t, "c"))))
	count := map[string]int{}
	for range 9 {
		c := mustCall(t, at)
		who, err := c.ask()
		check(t, err)
		count[who]++
	}
	if fmt.Sprint(count) != "map[a:3 b:3 c:3]" {
		t.Errorf("nine open connections are spread %v", count)
	}
	s := p.status()
	if l, _ := s.Listener("web"); s.Connections != 9 || l.Open != 9 || l.Total != 9 || s.OpenTo("b") != 3 {
		t.Errorf("status: %+v", s)
	}
}

func TestHalfClose(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	backend := server(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c) // to the end of what the client says
		_, _ = c.Write(bytes.ToUpper(b))
	})
	p.apply(one(at, active("a", backend)))
	c := mustCall(t, at)
	text := strings.Repeat("half ", 1<<20)
	go func() {
		_, _ = io.WriteString(c, text)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != strings.ToUpper(text) {
		t.Errorf("got %d bytes (%v), want %d", len(got), err, len(text))
	}
}

// The other direction: the backend is done first, and goes on reading.
func TestHalfCloseOfTheBackend(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	heard := make(chan string, 1)
	p.apply(one(at, active("a", server(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "bye")
		_ = c.CloseWrite()
		b, _ := io.ReadAll(c)
		heard <- string(b)
	}))))
	c := mustCall(t, at)
	if b, err := io.ReadAll(c); err != nil || string(b) != "bye" {
		t.Fatalf("got %q, %v", b, err)
	}
	_, err := io.WriteString(c, "more")
	check(t, err)
	check(t, c.CloseWrite())
	if got := <-heard; got != "more" {
		t.Errorf("the backend heard %q", got)
	}
}

// A server that answers without reading the whole request, and closes, is heard to its last byte.
func TestEarlyAnswerArrivesWhole(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	// It fits into the kernel's buffers: of a larger one, a server that closes with bytes unread throws the
	// rest away itself.
	answer := strings.Repeat("too large ", 2000)
	p.apply(one(at, active("a", server(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 10))
		_, _ = io.WriteString(c, answer)
		_ = c.CloseWrite()
	}))))
	for range 20 {
		c := mustCall(t, at)
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = c.Write(make([]byte, 64<<20))
		}()
		began := time.Now()
		if got, err := io.ReadAll(c); len(got) != len(answer) {
			t.Errorf("got %d bytes of %d: %v", len(got), len(answer), err)
		}
		if took := time.Since(began); took > lingerFor*3/4 {
			t.Errorf("its end came after %v", took)
		}
		_ = c.Close()
		<-sent
	}
}

func TestResetPassesThrough(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	saw := make(chan error, 1)
	p.apply(one(at, active("a", server(t, func(c *net.TCPConn) {
		b := make([]byte, 1)
		_, _ = c.Read(b)
		if b[0] == 'r' {
			_ = c.SetLinger(0)
			return
		}
		_, err := c.Read(b)
		saw <- err
	}))))
	c := mustCall(t, at)
	_, err := io.WriteString(c, "r")
	check(t, err)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the backend reset, the client saw: %v", err)
	}
	c = mustCall(t, at)
	_, err = io.WriteString(c, "x")
	check(t, err)
	eventually(t, "connected", func() (bool, string) { return p.status().OpenTo("a") == 1, "" })
	_ = c.SetLinger(0)
	_ = c.Close()
	if err := <-saw; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client reset, the backend saw: %v", err)
	}
}

func TestUnreachableBackendIsPassedOver(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	p.apply(one(at, active("dead", freePort(t)), active("live", named(t, "live"))))
	for range 20 {
		if who, err := once(at); err != nil || who != "live" {
			t.Fatalf("answered by %q, %v", who, err)
		}
	}
	l, _ := p.status().Listener("web")
	if b := l.Backends[0]; b.Failed == 0 || b.Failed > 3 || !strings.Contains(b.LastError, "refused") || l.Refused != 0 {
		t.Errorf("status of the dead backend: %+v, refused %d", b, l.Refused)
	}
}

func TestNoBackendMeansResetAtOnce(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	for name, c := range map[string]Config{
		"none": one(at), "draining": one(at, draining("a", named(t, "a"))), "dead": one(at, active("a", freePort(t))),
	} {
		p.apply(c)
		began := time.Now()
		// The reset may even come before the client knows that it was connected.
		conn, err := call(at)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) || time.Since(began) > time.Second {
			t.Errorf("%s: %v after %v, want a reset at once", name, err, time.Since(began))
		}
	}
	if l, _ := p.status().Listener("web"); l.Refused != 3 {
		t.Errorf("refused: %d", l.Refused)
	}
}

func TestDraining(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	older, newer := named(t, "old"), named(t, "new")
	p.apply(one(at, active("old", older)))
	long := mustCall(t, at)
	if who, err := long.ask(); who != "old" || err != nil {
		t.Fatalf("%q, %v", who, err)
	}
	p.apply(one(at, draining("old", older), active("new", newer)))
	for range 5 {
		if who, err := once(at); who != "new" || err != nil {
			t.Fatalf("a new connection went to %q, %v", who, err)
		}
	}
	if who, err := long.ask(); who != "old" || err != nil {
		t.Errorf("the old connection: %q, %v", who, err)
	}
	if n := p.status().OpenTo("old"); n != 1 {
		t.Errorf("draining backend has %d connections", n)
	}
	p.apply(one(at, active("new", newer)))
	if _, err := long.ask(); err == nil {
		t.Error("the connection lives on after its backend was dropped")
	}
	eventually(t, "all closed", func() (bool, string) {
		s := p.status()
		return s.Connections == 0, fmt.Sprintf("%+v", s)
	})
}

// Rollouts under load: new connections all the time, backends and neighbouring listeners come and go.
func TestSwapUnderLoadLosesNothing(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	addresses := make([]netip.AddrPort, 3)
	for i := range addresses {
		addresses[i] = named(t, fmt.Sprint("v", i))
	}
	p.apply(one(at, active("v0", addresses[0])))
	steady := mustCall(t, at)
	_, err := steady.ask()
	check(t, err)
	var failures, requests atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				requests.Add(1)
				if who, err := once(at); err != nil {
					failures.Add(1)
					t.Errorf("answered by %q, %v", who, err)
				}
			}
		})
	}
	for round := range 60 {
		from, to := round%3, (round+1)%3
		id := func(i int) string { return fmt.Sprint("v", i) }
		// v0 keeps its long connection throughout, active or draining.
		keep := []Backend{}
		if from != 0 && to != 0 {
			keep = append(keep, draining("v0", addresses[0]))
		}
		config := one(at, append(keep, active(id(from), addresses[from]), active(id(to), addresses[to]))...)
		config.Listeners[0].ID = fmt.Sprint("web in round ", round)
		config.Listeners = append(config.Listeners, Listener{ID: "other", Address: freePort(t)})
		p.apply(config)
		p.apply(one(at, append(keep, draining(id(from), addresses[from]), active(id(to), addresses[to]))...))
		eventually(t, "drained", func() (bool, string) {
			n := p.status().OpenTo(id(from))
			want := 0
			if from == 0 {
				want = 1
			}
			return n == want, fmt.Sprint(n)
		})
		if from == 0 || to == 0 {
			continue
		}
		p.apply(one(at, append(keep, active(id(to), addresses[to]))...))
	}
	close(stop)
	clients.Wait()
	if _, err := steady.ask(); err != nil {
		t.Errorf("the long connection: %v", err)
	}
	if requests.Load() < 100 {
		t.Errorf("only %d requests ran", requests.Load())
	}
	t.Logf("%d requests, %d failures", requests.Load(), failures.Load())
}

func TestTakenPortIsNamedAndTakenOverWhenFree(t *testing.T) {
	p := start(t, Options{})
	other, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	defer func() { _ = other.Close() }()
	at := other.Addr().(*net.TCPAddr).AddrPort()
	free := freePort(t)
	c := one(at, active("a", named(t, "a")))
	c.Listeners = append(c.Listeners, Listener{ID: "free", Address: free, Backends: c.Listeners[0].Backends})
	s, err := p.Apply(context.Background(), c)
	check(t, err)
	l, _ := s.Listener("web")
	want := fmt.Sprintf("port %d is in use by ", at.Port())
	if !strings.Contains(l.Error, want) || !strings.Contains(l.Error, fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("error %q, want %q and the pid", l.Error, want)
	}
	if who, err := once(free); who != "a" || err != nil {
		t.Errorf("the other listener: %q, %v", who, err)
	}
	check(t, other.Close())
	eventually(t, "bound", func() (bool, string) {
		l, _ := p.status().Listener("web")
		return l.Error == "", l.Error
	})
	if who, err := once(at); who != "a" || err != nil {
		t.Errorf("after the port was free: %q, %v", who, err)
	}
}
