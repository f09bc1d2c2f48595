package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls until ok, which reports what it saw instead.
func eventually(t testing.TB, what string, ok func() (bool, string)) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		done, saw := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: still not so: %s", what, saw)
		}
	}
}

// A running proxy with a client.
type running struct {
	*Client
	t      testing.TB
	socket string
	stop   func() error
}

func start(t testing.TB, o Options) *running {
	t.Helper()
	if o.Socket == "" {
		o.Socket = filepath.Join(t.TempDir(), "proxy.sock")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, o) }()
	r := &running{t: t, socket: o.Socket, stop: sync.OnceValue(func() error {
		cancel()
		return <-ended
	})}
	eventually(t, "the proxy listens", func() (bool, string) {
		c, err := Dial(ctx, o.Socket)
		r.Client = c
		return err == nil, fmt.Sprint(err)
	})
	t.Cleanup(func() {
		_ = r.Close()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// apply puts c in force and wants everything to be bound.
func (r *running) apply(c Config) *Status {
	r.t.Helper()
	s, err := r.Apply(context.Background(), c)
	check(r.t, err)
	for _, l := range s.Listeners {
		if l.Error != "" {
			r.t.Fatalf("listener %s: %s", l.ID, l.Error)
		}
	}
	for _, d := range s.DNS {
		if d.Error != "" {
			r.t.Fatalf("dns: %s", d.Error)
		}
	}
	return s
}

func (r *running) status() *Status {
	r.t.Helper()
	s, err := r.Status(context.Background())
	check(r.t, err)
	return s
}

// freePort returns an address that nobody listens at.
func freePort(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	check(t, l.Close())
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// server runs handle for each connection to a port of its own and waits for all of them at the end.
func server(t testing.TB, handle func(c *net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	serveOn(t, l.(*net.TCPListener), handle)
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func serveOn(t testing.TB, l *net.TCPListener, handle func(c *net.TCPConn)) {
	var running sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	running.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			running.Go(func() {
				handle(c)
				_ = c.Close()
				mu.Lock()
				defer mu.Unlock()
				delete(open, c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
}

// named answers every line with its name and stays for more.
func named(t testing.TB, name string) netip.AddrPort {
	t.Helper()
	return server(t, speak(name))
}

func speak(name string) func(c *net.TCPConn) {
	return func(c *net.TCPConn) {
		b := make([]byte, 1)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			if b[0] == '\n' {
				fmt.Fprintln(c, name)
			}
		}
	}
}

// A caller is a client's connection.
type caller struct{ *net.TCPConn }

func call(address netip.AddrPort) (caller, error) {
	c, err := net.DialTimeout("tcp", address.String(), patience)
	if err != nil {
		return caller{}, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	return caller{c.(*net.TCPConn)}, nil
}

// ask sends a line and returns who answers it.
func (c caller) ask() (string, error) {
	if _, err := io.WriteString(c, "who?\n"); err != nil {
		return "", err
	}
	var who string
	b := make([]byte, 1)
	for {
		if _, err := io.ReadFull(c, b); err != nil {
			return who, err
		}
		if b[0] == '\n' {
			return who, nil
		}
		who += string(b)
	}
}

// once is a whole conversation.
func once(address netip.AddrPort) (string, error) {
	c, err := call(address)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	who, err := c.ask()
	if err != nil {
		return who, err
	}
	if err := c.CloseWrite(); err != nil {
		return who, err
	}
	rest, err := io.ReadAll(c)
	if len(rest) > 0 {
		err = errors.Join(err, fmt.Errorf("unexpected %q", rest))
	}
	return who, err
}

func mustCall(t testing.TB, address netip.AddrPort) caller {
	t.Helper()
	c, err := call(address)
	check(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// one is the configuration of a single listener.
func one(address netip.AddrPort, backends ...Backend) Config {
	return Config{Listeners: []Listener{{ID: "web", Address: address, Backends: backends}}}
}

func active(id string, address netip.AddrPort) Backend {
	return Backend{ID: id, Address: address, State: Active}
}

func draining(id string, address netip.AddrPort) Backend {
	return Backend{ID: id, Address: address, State: Draining}
}
