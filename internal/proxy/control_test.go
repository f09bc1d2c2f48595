package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

func TestConfigurationOutlivesTheAgent(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	c := one(at, active("a", named(t, "a")))
	c.Revision = 7
	p.apply(c)
	long := mustCall(t, at)
	check(t, p.Close())
	if who, err := once(at); who != "a" || err != nil {
		t.Errorf("without an agent: %q, %v", who, err)
	}
	again, err := Dial(context.Background(), p.socket)
	check(t, err)
	p.Client = again
	eventually(t, "the new agent sees what is there", func() (bool, string) {
		s := p.status()
		return s.Revision == 7 && s.Connections == 1, fmt.Sprintf("%+v", s)
	})
	c.Revision = 6
	if _, err := p.Apply(context.Background(), c); !errors.Is(err, ErrStale) {
		t.Errorf("an older configuration: %v", err)
	}
	c.Revision = 7
	p.apply(c)
	c.Revision = 0
	if s := p.apply(c); s.Revision != 7 {
		t.Errorf("numbered by the proxy: the same has %d", s.Revision)
	}
	c.Listeners[0].MaxConns = 99
	if s := p.apply(c); s.Revision != 8 {
		t.Errorf("numbered by the proxy: another one has %d", s.Revision)
	}
	if who, err := long.ask(); who != "a" || err != nil {
		t.Errorf("the old connection: %q, %v", who, err)
	}
}

func TestOneProxyPerSocket(t *testing.T) {
	p := start(t, Options{})
	if err := Run(context.Background(), Options{Socket: p.socket}); err == nil || !strings.Contains(err.Error(), "another proxy") {
		t.Errorf("a second proxy: %v", err)
	}
	st, err := os.Stat(p.socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", st.Mode(), err)
	}
	check(t, p.Shutdown(context.Background()))
	check(t, p.stop())
	if _, err := os.Stat(p.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket after the end: %v", err)
	}
	// A killed proxy leaves its socket behind.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.socket, Net: "unix"})
	check(t, err)
	l.SetUnlinkOnClose(false)
	check(t, l.Close())
	start(t, Options{Socket: p.socket}).status()
}

func TestShutdownClosesConnections(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	p.apply(one(at, active("a", named(t, "a"))))
	c := mustCall(t, at)
	_, err := c.ask()
	check(t, err)
	check(t, p.stop())
	if _, err := c.ask(); err == nil {
		t.Error("the connection outlived the proxy")
	}
}

func TestBoundOfConnections(t *testing.T) {
	p := start(t, Options{MaxConns: 5})
	at, other := freePort(t), freePort(t)
	c := one(at, active("a", named(t, "a")))
	c.Listeners[0].MaxConns = 2
	c.Listeners = append(c.Listeners, Listener{ID: "other", Address: other, Backends: c.Listeners[0].Backends})
	p.apply(c)
	first, second, third := mustCall(t, at), mustCall(t, at), mustCall(t, at)
	for _, c := range []caller{first, second} {
		_, err := c.ask()
		check(t, err)
	}
	_ = third.SetDeadline(time.Now().Add(100 * time.Millisecond))
	if who, err := third.ask(); err == nil {
		t.Errorf("a third connection was served by %q", who)
	}
	if who, err := once(other); who != "a" || err != nil {
		t.Errorf("another listener: %q, %v", who, err)
	}
	_ = first.Close()
	_ = third.SetDeadline(time.Now().Add(patience))
	if who, err := third.ask(); who != "a" || err != nil {
		t.Errorf("after one left: %q, %v", who, err)
	}
	c.Listeners[0].MaxConns = 3
	p.apply(c)
	if who, err := once(at); who != "a" || err != nil {
		t.Errorf("after the bound was raised: %q, %v", who, err)
	}
}

func TestControlSurvivesNonsense(t *testing.T) {
	p := start(t, Options{})
	for _, b := range [][]byte{
		{0xff, 0xff, 0xff, 0xff},
		{0, 0, 0, 2, '{'},
		{0, 0, 0, 2, '}', '{'},
		append([]byte{0, 0, 0, 200}, make([]byte, rand.IntN(100))...),
	} {
		c, err := net.Dial("unix", p.socket)
		check(t, err)
		_, err = c.Write(b)
		check(t, err)
		check(t, c.(*net.UnixConn).CloseWrite())
		_ = c.SetDeadline(time.Now().Add(patience))
		if rest, err := io.ReadAll(c); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%x: answered %q, %v", b, rest, err)
		}
		_ = c.Close()
	}
	if _, err := p.do(context.Background(), request{Op: "dance"}); err == nil || !strings.Contains(err.Error(), "dance") {
		t.Errorf("unknown request: %v", err)
	}
	if _, err := p.Apply(context.Background(), one(netip.AddrPort{})); err == nil {
		t.Error("a listener without an address was accepted")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// FuzzControlMessage reads requests and what an older proxy hands over: whatever comes, it costs no more memory
// than was sent, and what is taken can be written again.
func FuzzControlMessage(f *testing.F) {
	for _, v := range []any{
		request{Op: opApply, Config: []byte(goodConfig)},
		request{Op: opStatus},
		handoverMessage{Version: 1, Config: []byte(goodConfig)},
		handoverMessage{End: true},
		handoverMessage{Items: []passed{{Kind: passedSession, Client: netip.MustParseAddrPort("192.0.2.1:5"), Backend: &Backend{ID: "a"}}}},
	} {
		var b strings.Builder
		check(f, writeMessage(&b, v))
		f.Add([]byte(b.String()))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{'})
	f.Fuzz(func(t *testing.T, b []byte) {
		begun := func() error { return nil }
		var q request
		r := strings.NewReader(string(b))
		if err := readMessage(r, &q, begun); err == nil {
			if used := len(b) - r.Len(); used != 4+int(b[0])<<24+int(b[1])<<16+int(b[2])<<8+int(b[3]) {
				t.Errorf("read %d bytes of %x", used, b)
			}
			if c, err := ParseConfig(q.Config); err == nil {
				check(t, c.Validate())
			}
		}
		var m handoverMessage
		if err := readMessage(strings.NewReader(string(b)), &m, begun); err == nil {
			var again strings.Builder
			check(t, writeMessage(&again, m))
		}
	})
}
