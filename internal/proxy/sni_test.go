package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// secure is a TLS server that answers every line with its name.
func secure(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	certificates := httptest.NewTLSServer(nil)
	certificates.Close()
	config := &tls.Config{Certificates: certificates.TLS.Certificates}
	return server(t, func(c *net.TCPConn) {
		s := tls.Server(c, config)
		b := make([]byte, 1)
		for {
			if _, err := s.Read(b); err != nil {
				return
			}
			if b[0] == '\n' {
				fmt.Fprintln(s, name)
			}
		}
	})
}

// names is an SNI listener with a route for each backend.
func names(at netip.AddrPort, routes ...Route) Config {
	return Config{Listeners: []Listener{{ID: "tls", Address: at, Protocol: SNI, Routes: routes}}}
}

func route(id string, backend netip.AddrPort, names ...string) Route {
	return Route{ID: id, Names: names, Backends: []Backend{active(id, backend)}}
}

// askTLS connects by name, sending the first flight in pieces.
func askTLS(t *testing.T, at netip.AddrPort, name string, pieces func([]byte) [][]byte) (string, error) {
	t.Helper()
	c := mustCall(t, at)
	var over net.Conn = c
	if pieces != nil {
		over = &chopped{Conn: c, pieces: pieces}
	}
	s := tls.Client(over, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if _, err := io.WriteString(s, "who?\n"); err != nil {
		return "", err
	}
	b := make([]byte, 64)
	n, err := s.Read(b)
	_ = c.Close()
	return strings.TrimSpace(string(b[:n])), err
}

// chopped writes what is written first in pieces.
type chopped struct {
	net.Conn
	pieces func([]byte) [][]byte
}

func (c *chopped) Write(b []byte) (int, error) {
	if c.pieces == nil {
		return c.Conn.Write(b)
	}
	for _, piece := range c.pieces(b) {
		if _, err := c.Conn.Write(piece); err != nil {
			return 0, err
		}
	}
	c.pieces = nil
	return len(b), nil
}

func bytewise(b []byte) [][]byte {
	var out [][]byte
	for i := range b {
		out = append(out, b[i:i+1])
	}
	return out
}

func TestServerNamesLeadToTheirBackends(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	p.apply(names(at,
		route("one", secure(t, "one"), "one.example"),
		route("two", secure(t, "two"), "two.example", "*.two.example"),
		route("deep", secure(t, "deep"), "deep.two.example")))
	// Go's server takes a first message in several records as any other does.
	records := func(b []byte) [][]byte { return [][]byte{inRecords(b, 60)} }
	for _, c := range []struct {
		name, want string
		pieces     func([]byte) [][]byte
	}{
		{"one.example", "one", nil},
		{"ONE.example", "one", nil},
		{"one.example", "one", bytewise},
		{"one.example", "one", records},
		{"two.example", "two", nil},
		{"a.two.example", "two", nil},
		{"deep.two.example", "deep", nil},
	} {
		if who, err := askTLS(t, at, c.name, c.pieces); who != c.want || err != nil {
			t.Errorf("%s: %q, %v", c.name, who, err)
		}
	}
	for _, name := range []string{"three.example", "a.b.two.example", "example", ""} {
		_, err := askTLS(t, at, name, nil)
		if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("%q: %v, want the alert", name, err)
		}
	}
	l, _ := p.status().Listener("tls")
	if got := *l.TurnedAway; got.UnknownName != 3 || got.NoName != 1 {
		t.Errorf("turned away: %+v", got)
	}
}

func TestStrangersAreTurnedAway(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	p.apply(names(at, route("one", secure(t, "one"), "one.example")))
	for says, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: one.example\r\n\r\n": "HTTP/1.1 400 Bad Request",
		"SSH-2.0-OpenSSH_9.2\r\n":                     "",
		"\x16\x03\x01\x00\x00":                        "\x15\x03\x03\x00\x02\x02\x32", // decode_error
	} {
		c := mustCall(t, at)
		_, err := io.WriteString(c, says)
		check(t, err)
		got, err := io.ReadAll(c)
		if !strings.HasPrefix(string(got), want) || (want == "") != (len(got) == 0) {
			t.Errorf("%q: got %q, %v", says, got, err)
		}
	}
	left := mustCall(t, at)
	_, err := left.Write([]byte{22, 3, 1})
	check(t, err)
	check(t, left.Close())
	eventually(t, "all are counted", func() (bool, string) {
		l, _ := p.status().Listener("tls")
		if l.TurnedAway == nil {
			return false, "nothing"
		}
		want := TurnedAway{NotTLS: 1, PlainHTTP: 1, Malformed: 1, Left: 1}
		return *l.TurnedAway == want, fmt.Sprintf("%+v", *l.TurnedAway)
	})
}

// Clients that never say where they want to go make room for those who do.
func TestSilentClientsMakeRoom(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	c := names(at, route("one", secure(t, "one"), "one.example"))
	c.Listeners[0].MaxConns = 8
	p.apply(c)
	var silent []caller
	for range 30 {
		silent = append(silent, mustCall(t, at))
		if who, err := askTLS(t, at, "one.example", nil); who != "one" || err != nil {
			t.Fatalf("beside %d silent ones: %q, %v", len(silent), who, err)
		}
	}
	l, _ := p.status().Listener("tls")
	if l.TurnedAway == nil || l.TurnedAway.Evicted < 20 {
		t.Errorf("turned away: %+v", l.TurnedAway)
	}
	if _, err := silent[0].Read(make([]byte, 1)); err == nil {
		t.Error("the first silent one is still there")
	}
}

func TestSlowClientIsClosed(t *testing.T) {
	p := start(t, Options{helloTimeout: 50 * time.Millisecond})
	at := freePort(t)
	p.apply(names(at, route("one", secure(t, "one"), "one.example")))
	c := mustCall(t, at)
	_, err := c.Write([]byte{22, 3, 1, 1})
	check(t, err)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a client that says nothing more: %v", err)
	}
	eventually(t, "it is counted", func() (bool, string) {
		l, _ := p.status().Listener("tls")
		return l.TurnedAway != nil && l.TurnedAway.Slow == 1, fmt.Sprintf("%+v", l.TurnedAway)
	})
	if who, err := askTLS(t, at, "one.example", nil); who != "one" || err != nil {
		t.Errorf("another one: %q, %v", who, err)
	}
}

// A backend that is told who connects: the port of a listener, a route's, and through a load balancer.
func TestProxyHeaders(t *testing.T) {
	type told struct{ from, to, rest string }
	heard := make(chan told, 1)
	backend := server(t, func(c *net.TCPConn) {
		from, to, err := readHeader(c)
		if err != nil {
			heard <- told{rest: err.Error()}
			return
		}
		b := make([]byte, 5)
		_, _ = io.ReadFull(c, b)
		heard <- told{from.String(), to.String(), string(b)}
	})
	p := start(t, Options{})
	plain, balanced, byName := freePort(t), freePort(t), freePort(t)
	c := Config{Listeners: []Listener{
		{ID: "plain", Address: plain, Backends: []Backend{active("a", backend)}, ProxyProtocol: ProxyV2},
		{
			ID: "balanced", Address: balanced, Backends: []Backend{active("a", backend)}, ProxyProtocol: ProxyV2,
			AcceptProxy: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		},
		{ID: "name", Address: byName, Protocol: SNI, Routes: []Route{{
			ID: "r", Names: []string{"one.example"}, Backends: []Backend{active("a", backend)}, ProxyProtocol: ProxyV2,
		}}, AcceptProxy: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
	}}
	p.apply(c)
	client, balancer := netip.MustParseAddrPort("203.0.113.7:777"), netip.MustParseAddrPort("198.51.100.1:443")
	hello := clientHello(t, "one.example", false)
	for _, c := range []struct {
		at   netip.AddrPort
		says []byte
		want func(self string) told
	}{
		{plain, []byte("hello"), func(self string) told { return told{self, plain.String(), "hello"} }},
		{byName, hello, func(self string) told { return told{self, byName.String(), string(hello[:5])} }},
		{balanced, append(proxyHeader(client, balancer), "hello"...), func(string) told {
			return told{client.String(), balancer.String(), "hello"}
		}},
		{balanced, append(LocalHeader(), "hello"...), func(self string) told { return told{self, balanced.String(), "hello"} }},
	} {
		conn := mustCall(t, c.at)
		_, err := conn.Write(c.says)
		check(t, err)
		if got, want := <-heard, c.want(conn.LocalAddr().String()); got != want {
			t.Errorf("the backend heard %+v, want %+v", got, want)
		}
	}
	// Who is trusted has to have a header.
	conn := mustCall(t, balanced)
	_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	check(t, err)
	if b, err := io.ReadAll(conn); len(b) > 0 {
		t.Errorf("without a header: %q, %v", b, err)
	}
	if l, _ := p.status().Listener("balanced"); l.TurnedAway == nil || l.TurnedAway.Header != 1 {
		t.Errorf("turned away: %+v", l.TurnedAway)
	}
}
