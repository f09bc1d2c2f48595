package proxy

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

const udpTarget = "dns:53/udp"

// waitingForUDP is the configuration of host b, which lets host a in to a port of UDP.
func waitingForUDP(at netip.AddrPort, peering *Peering, b Backend) Config {
	c := waitingFor(at, peering, "a", map[string]Backend{udpTarget: b})
	c.Listeners[0].Routes[0].Protocol = UDP
	return c
}

// udpLeadingTo is the configuration of host a, which has a port of UDP that leads to other hosts.
func udpLeadingTo(peering *Peering, at netip.AddrPort, backends ...Backend) Config {
	c := overUDP(at, backends...)
	c.Peering = peering
	return c
}

// newUDPHosts are two hosts, and a port of UDP on a that leads to a backend on b.
func newUDPHosts(t *testing.T, backend netip.AddrPort) *twoHosts {
	t.Helper()
	h := newTwoHosts(t, named(t, "unused"))
	h.entry = freeUDP(t)
	h.b.apply(waitingForUDP(h.peers, h.host("b"), active("dns", backend)))
	h.a.apply(udpLeadingTo(h.host("a"), h.entry, remote("dns", h.peers, "b", udpTarget)))
	return h
}

// hears says something until it is answered, as who speaks UDP has to.
func hears(t *testing.T, at netip.AddrPort, text, want string) {
	t.Helper()
	c := talkTo(t, at)
	eventually(t, fmt.Sprintf("%q is answered", text), func() (bool, string) {
		_ = c.SetDeadline(time.Now().Add(time.Second))
		b := make([]byte, maxDatagram)
		_, err := c.Write([]byte(text))
		n := 0
		if err == nil {
			n, err = c.Read(b)
		}
		return string(b[:n]) == want, fmt.Sprintf("%q, %v", b[:n], err)
	})
}

// Datagrams arrive whole, one by one, whatever their size, and answers come to those who asked.
func TestDatagramsGoFromHostToHost(t *testing.T) {
	h := newUDPHosts(t, echoing(t, "b"))
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			c := talkTo(t, h.entry)
			for j, size := range []int{1, 0, 1400, 9000, 3} {
				text := strings.Repeat(fmt.Sprint(i), size)
				if got, err := say(c, text); err != nil || got != "b:"+text {
					t.Errorf("client %d, datagram %d of %d bytes: got %d, %v", i, j, size, len(got), err)
				}
			}
		})
	}
	clients.Wait()
	// Of the largest ones there is room for a few only, before they have come to a proxy.
	large := talkTo(t, h.entry)
	for _, size := range []int{20000, 65000, maxPayload - len("b:")} {
		text := strings.Repeat("x", size)
		if got, err := say(large, text); err != nil || got != "b:"+text {
			t.Errorf("a datagram of %d bytes: got %d, %v", size, len(got), err)
		}
	}
	s := h.a.status()
	l, _ := s.Listener("udp")
	if l.Open != 9 || l.Datagrams.In != 43 || l.Datagrams.Out != 43 || l.Datagrams.Dropped != 0 || s.OpenTo("dns") != 9 {
		t.Errorf("host a counts %+v %+v", l, l.Datagrams)
	}
	if n := h.b.status().OpenTo("dns"); n != 9 {
		t.Errorf("host b counts %d", n)
	}
	// Without its backend a flow ends, on both hosts.
	h.a.apply(udpLeadingTo(h.host("a"), h.entry))
	for name, p := range map[string]*running{"a": h.a, "b": h.b} {
		eventually(t, "nothing is open on "+name, func() (bool, string) {
			s := p.status()
			return s.Connections == 0 && s.OpenTo("dns") == 0, fmt.Sprintf("%+v", s)
		})
	}
}

// A backend that cannot be reached, or whose host does not have it any more, is passed over for the others.
func TestDatagramsFindAnotherHost(t *testing.T) {
	h := newUDPHosts(t, echoing(t, "b"))
	h.a.apply(udpLeadingTo(h.host("a"), h.entry,
		remote("dead", freePort(t), "b", udpTarget), remote("gone", h.peers, "b", "gone:53/udp"), remote("dns", h.peers, "b", udpTarget)))
	for range 3 {
		hears(t, h.entry, "x", "b:x")
	}
	// The other host's end of a flow ends with its backend, and a client is led elsewhere.
	h.a.apply(udpLeadingTo(h.host("a"), h.entry, remote("dns", h.peers, "b", udpTarget), active("here", echoing(t, "a"))))
	h.b.apply(waitingForUDP(h.peers, h.host("b"), draining("dns", freeUDP(t))))
	hears(t, h.entry, "x", "a:x")
}

// A client that is silent is forgotten on both hosts, and so is one that a host holds on to.
func TestSilentFlowsBetweenHostsEnd(t *testing.T) {
	h := newUDPHosts(t, echoing(t, "b"))
	c := udpLeadingTo(h.host("a"), h.entry, remote("dns", h.peers, "b", udpTarget))
	c.Listeners[0].IdleTimeoutMS = 200
	h.a.apply(c)
	hears(t, h.entry, "x", "b:x")
	for name, p := range map[string]*running{"a": h.a, "b": h.b} {
		eventually(t, "nothing is open on "+name, func() (bool, string) {
			s := p.status()
			return s.Connections == 0, fmt.Sprintf("%+v", s)
		})
	}
	hears(t, h.entry, "x", "b:x")

	near, far, err := datagramPair()
	check(t, err)
	defer func() { _ = near.Close() }()
	f := newFramed(far, 50*time.Millisecond, nil)
	if _, err := f.Read(make([]byte, 10)); !errors.Is(err, errIdle) {
		t.Errorf("a silent flow ends with %v", err)
	}
	_ = f.Close()
}

// flow is one of host a with the proxy of host b, as its own proxy would have it, or as it pleases.
func (h *twoHosts) flow(t *testing.T, target string) *tls.Conn {
	t.Helper()
	i := identity{Peering: *h.host("a")}
	config, err := i.config(func(string) error { return nil })
	check(t, err)
	c := tls.Client(mustCall(t, h.peers), config)
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	_, err = c.Write(append([]byte{peerVersion, byte(len(target))}, target...))
	check(t, err)
	var answer [1]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil || answer[0] != peerTaken {
		t.Fatalf("answer %d, %v", answer[0], err)
	}
	return c
}

func frame(text string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(text))), text...)
}

// A host that does not keep to the frames loses its flow, and nobody else does.
func TestHostileFrames(t *testing.T) {
	h := newUDPHosts(t, echoing(t, "b"))
	good := h.flow(t, udpTarget)
	answers := func() {
		t.Helper()
		// Cut as it pleases, also in the middle of what says how long it is.
		for _, b := range frame("x") {
			_, err := good.Write([]byte{b})
			check(t, err)
		}
		b := make([]byte, len(frame("b:x")))
		if _, err := io.ReadFull(good, b); err != nil || !bytes.Equal(b, frame("b:x")) {
			t.Fatalf("got %q, %v", b, err)
		}
	}
	answers()
	bad := h.flow(t, udpTarget)
	_, err := bad.Write([]byte{0xff, 0xff, 'x'})
	check(t, err)
	if b, err := io.ReadAll(bad); len(b) > 0 || err == nil {
		t.Errorf("a datagram that there cannot be is answered by %q, %v", b, err)
	}
	cut := h.flow(t, udpTarget)
	_, err = cut.Write([]byte{0, 9, 'x'})
	check(t, errors.Join(err, cut.CloseWrite()))
	if b, err := io.ReadAll(cut); len(b) > 0 || err != nil {
		t.Errorf("half a datagram is answered by %q, %v", b, err)
	}
	answers()
	// One that reads nothing is told less, and keeps nobody's memory.
	deaf := h.flow(t, udpTarget)
	text := frame(strings.Repeat("x", 32000))
	for range 1000 {
		if _, err := deaf.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	answers()
	check(t, deaf.Close())
}

// A newer proxy takes clients over whose backends are on other hosts, and nothing of theirs is lost.
func TestTakeOverOfFlowsBetweenHosts(t *testing.T) {
	h := newUDPHosts(t, echoing(t, "b"))
	c := talkTo(t, h.entry)
	speaks := func(text string) {
		t.Helper()
		if got, err := say(c, text); err != nil || got != "b:"+text {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	speaks("before")
	for round := range 2 {
		newer := spawn(t, h.a.socket, true)
		eventually(t, "the newer proxy has taken over", func() (bool, string) {
			s, err := ask(t, h.a.socket)
			if err != nil {
				return false, err.Error()
			}
			return s.PID == newer.Process.Pid && s.Leaving >= 1, fmt.Sprintf("%+v", s)
		})
		speaks(fmt.Sprint("after ", round))
	}
	if n := h.b.status().OpenTo("dns"); n != 1 {
		t.Errorf("host b counts %d flows", n)
	}
	hears(t, h.entry, "x", "b:x")
}

// deframed takes datagrams out of a stream that comes in pieces of a size.
func deframed(stream []byte, piece int) (got [][]byte, err error) {
	var d deframer
	for len(stream) > 0 && err == nil {
		n := min(piece, len(stream))
		err = d.feed(stream[:n], func(b []byte) error {
			got = append(got, bytes.Clone(b))
			return nil
		})
		stream = stream[n:]
	}
	return got, err
}

// FuzzDeframe: however a stream is cut, the same datagrams come out, and they are those that its lengths say.
func FuzzDeframe(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01x"), 1)
	f.Add([]byte("\x00\x05hello\xff\xff"), 3)
	f.Add(append(frame(strings.Repeat("y", maxPayload)), frame("")...), 1000)
	f.Fuzz(func(t *testing.T, stream []byte, piece int) {
		whole, wholeErr := deframed(stream, len(stream)+1)
		parts, partsErr := deframed(stream, 1+int(uint(piece)%2000))
		if fmt.Sprint(wholeErr) != fmt.Sprint(partsErr) || len(whole) != len(parts) {
			t.Fatalf("%d datagrams, %v; in pieces %d, %v", len(whole), wholeErr, len(parts), partsErr)
		}
		var want []byte
		for i := range whole {
			if !bytes.Equal(whole[i], parts[i]) {
				t.Fatalf("datagram %d: %q, in pieces %q", i, whole[i], parts[i])
			}
			want = append(want, frame(string(whole[i]))...)
		}
		if !bytes.HasPrefix(stream, want) {
			t.Fatal("the datagrams are not those of the stream")
		}
	})
}
