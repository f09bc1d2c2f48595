package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// echo answers each datagram with its name and what came, until the end of the test.
func echo(t testing.TB, p net.PacketConn, name string) netip.AddrPort {
	t.Helper()
	var ended sync.WaitGroup
	ended.Go(func() {
		b := make([]byte, maxDatagram)
		for {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = p.WriteTo(append([]byte(name+":"), b[:n]...), from)
		}
	})
	t.Cleanup(func() {
		_ = p.Close()
		ended.Wait()
	})
	return p.LocalAddr().(*net.UDPAddr).AddrPort()
}

func echoing(t testing.TB, name string) netip.AddrPort {
	t.Helper()
	p, err := net.ListenPacket("udp4", "127.0.0.1:0")
	check(t, err)
	return echo(t, p, name)
}

func freeUDP(t testing.TB) netip.AddrPort {
	t.Helper()
	p, err := net.ListenPacket("udp4", "127.0.0.1:0")
	check(t, err)
	check(t, p.Close())
	return p.LocalAddr().(*net.UDPAddr).AddrPort()
}

func overUDP(at netip.AddrPort, backends ...Backend) Config {
	return Config{Listeners: []Listener{{ID: "udp", Address: at, Protocol: UDP, Backends: backends}}}
}

func talkTo(t testing.TB, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	check(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func say(c net.Conn, text string) (string, error) {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte(text)); err != nil {
		return "", err
	}
	b := make([]byte, maxDatagram)
	n, err := c.Read(b)
	return string(b[:n]), err
}

func TestUDPKeepsClientsWithTheirBackend(t *testing.T) {
	p := start(t, Options{})
	at := freeUDP(t)
	a, b := echoing(t, "a"), echoing(t, "b")
	p.apply(overUDP(at, active("a", a), active("b", b)))
	count := map[string]int{}
	var clients []*net.UDPConn
	for i := range 6 {
		c := talkTo(t, at)
		clients = append(clients, c)
		first := ""
		for j := range 5 {
			text := fmt.Sprint(i, j)
			got, err := say(c, text)
			check(t, err)
			who, what, _ := strings.Cut(got, ":")
			if what != text || (first != "" && who != first) {
				t.Errorf("client %d: %q after %q", i, got, first)
			}
			first = who
		}
		count[first]++
	}
	if count["a"] != 3 || count["b"] != 3 {
		t.Errorf("clients are spread %v", count)
	}
	for _, size := range []int{0, 1, 1400, 20000, 65000} {
		text := strings.Repeat("x", size)
		if got, err := say(clients[0], text); err != nil || !strings.HasSuffix(got, ":"+text) {
			t.Errorf("%d bytes: got %d, %v", size, len(got), err)
		}
	}
	// Draining keeps clients; leaving does not.
	p.apply(overUDP(at, draining("a", a), active("b", b)))
	if n := p.status().OpenTo("a"); n != 3 {
		t.Errorf("the draining backend has %d clients", n)
	}
	moved := 0
	p.apply(overUDP(at, active("b", b)))
	eventually(t, "sessions of the one that left are over", func() (bool, string) {
		l, _ := p.status().Listener("udp")
		return l.Open == 3, fmt.Sprint(l.Open)
	})
	for _, c := range clients {
		got, err := say(c, "still?")
		check(t, err)
		if strings.HasPrefix(got, "b:") {
			moved++
		}
	}
	l, _ := p.status().Listener("udp")
	if moved != 6 || l.Open != 6 || l.Datagrams.In == 0 || l.Datagrams.Out == 0 || l.Sent == 0 || l.Received == 0 {
		t.Errorf("%d of 6 are with b; %+v", moved, l)
	}
}

func TestUDPSessionsEnd(t *testing.T) {
	p := start(t, Options{})
	at := freeUDP(t)
	c := overUDP(at, active("a", echoing(t, "a")))
	c.Listeners[0].IdleTimeoutMS = 60
	p.apply(c)
	client := talkTo(t, at)
	for range 3 {
		_, err := say(client, "x")
		check(t, err)
	}
	eventually(t, "forgotten", func() (bool, string) {
		s := p.status()
		return s.Connections == 0 && s.OpenTo("a") == 0, fmt.Sprintf("%+v", s)
	})
	if got, err := say(client, "again"); got != "a:again" || err != nil {
		t.Errorf("after it was forgotten: %q, %v", got, err)
	}
}

// Many clients that nobody knows to be real do not keep one out, nor push out one that is.
func TestUDPBound(t *testing.T) {
	p := start(t, Options{})
	at := freeUDP(t)
	c := overUDP(at, active("a", echoing(t, "a")))
	c.Listeners[0].MaxConns = 8
	p.apply(c)
	real := talkTo(t, at)
	for range 3 {
		_, err := say(real, "x")
		check(t, err)
	}
	before, _ := p.status().Listener("udp")
	for range 50 {
		if got, err := say(talkTo(t, at), "once"); got != "a:once" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
	after, _ := p.status().Listener("udp")
	if after.Open > 8 || after.Total != before.Total+50 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if got, err := say(real, "y"); got != "a:y" || err != nil {
		t.Errorf("the real one: %q, %v", got, err)
	}
	if last, _ := p.status().Listener("udp"); last.Total != after.Total {
		t.Error("the real one had to begin anew")
	}
}

func TestUDPDeadBackendIsPassedOver(t *testing.T) {
	p := start(t, Options{})
	at := freeUDP(t)
	p.apply(overUDP(at, active("dead", freeUDP(t)), active("live", echoing(t, "live"))))
	for range 4 {
		c := talkTo(t, at)
		eventually(t, "it is answered", func() (bool, string) {
			_ = c.SetDeadline(time.Now().Add(50 * time.Millisecond))
			_, _ = c.Write([]byte("x"))
			b := make([]byte, 100)
			n, err := c.Read(b)
			return string(b[:n]) == "live:x", fmt.Sprint(string(b[:n]), err)
		})
	}
	l, _ := p.status().Listener("udp")
	if l.Backends[0].Failed == 0 || !strings.Contains(l.Backends[0].LastError, "refused") {
		t.Errorf("%+v", l.Backends[0])
	}
}

// On all addresses, answers come from the one that was asked.
func TestUDPAnswersFromTheAddressThatWasAsked(t *testing.T) {
	p := start(t, Options{})
	port := freeUDP(t).Port()
	p.apply(overUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), port), active("a", echoing(t, "a"))))
	for _, at := range []string{"127.0.0.1", "127.0.0.2", "127.9.9.9"} {
		// A connected socket takes answers from nowhere else.
		if got, err := say(talkTo(t, netip.AddrPortFrom(netip.MustParseAddr(at), port)), "x"); got != "a:x" || err != nil {
			t.Errorf("%s: %q, %v", at, got, err)
		}
	}
}

func TestUDPInsideNamespaces(t *testing.T) {
	dir := t.TempDir()
	red := filepath.Join(dir, "red")
	newNetns(t, red)
	for name, address := range map[string]string{"4": "127.100.0.2:5353", "6": "[::1]:5353"} {
		p, err := inside(t, red).listenPacket(netip.MustParseAddrPort(address))
		check(t, err)
		echo(t, p, name)
	}
	p := start(t, Options{})
	public := freeUDP(t)
	backend := func(id, address string) []Backend {
		return []Backend{{ID: id, Netns: red, Address: netip.MustParseAddrPort(address), State: Active}}
	}
	p.apply(Config{Listeners: []Listener{
		{ID: "public", Address: public, Protocol: UDP, Backends: backend("4", "127.100.0.2:5353")},
		{ID: "virtual", Netns: red, Address: netip.MustParseAddrPort("127.101.0.1:53"), Protocol: UDP, Backends: backend("4", "127.100.0.2:5353")},
		{ID: "virtual6", Netns: red, Address: netip.MustParseAddrPort("[::]:5300"), Protocol: UDP, Backends: backend("6", "[::1]:5353")},
	}})
	if got, err := say(talkTo(t, public), "x"); got != "4:x" || err != nil {
		t.Errorf("public: %q, %v", got, err)
	}
	for address, want := range map[string]string{"127.101.0.1:53": "4:y", "[::1]:5300": "6:y"} {
		made, err := inside(t, red).connect(netip.MustParseAddrPort(address), unix.SOCK_DGRAM)
		check(t, err)
		c, err := net.FileConn(made.file)
		check(t, err)
		if got, err := say(c, "y"); got != want || err != nil {
			t.Errorf("%s: %q, %v", address, got, err)
		}
		_, _ = c.Close(), made.Close()
	}
}
