package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// receiver is a UDP socket of a guest that lists what arrives.
type receiver struct{ net.PacketConn }

func (g *guest) receive(t testing.TB, port uint16) receiver {
	t.Helper()
	var p net.PacketConn
	check(t, g.do(func() (err error) {
		p, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	}))
	t.Cleanup(func() { _ = p.Close() })
	return receiver{p}
}

// until reads payloads until the one given, which must come, and returns those before it.
func (r receiver) until(t testing.TB, last string) (before []string) {
	t.Helper()
	_ = r.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 2048)
	for {
		n, _, err := r.ReadFrom(b)
		if err != nil {
			t.Fatalf("waiting for %q after %q: %v", last, before, err)
		}
		if string(b[:n]) == last {
			return before
		}
		before = append(before, string(b[:n]))
	}
}

// empty says whether nothing more comes.
func (r receiver) empty(t testing.TB) {
	t.Helper()
	_ = r.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	b := make([]byte, 2048)
	if n, from, err := r.ReadFrom(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %q from %v (%v), want nothing", b[:n], from, err)
	}
}

func TestAGuestSpeaksOnlyInItsOwnName(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	m := w.manager(t, t.TempDir(), "tsts")
	must[*Namespace](t)(m.EnsureEnvironment(ctx, "red"))
	evil, victim, mate := newGuest(t, m, "red", "evil"), newGuest(t, m, "red", "victim"), newGuest(t, m, "red", "mate")
	in := mate.receive(t, 99)
	to := netip.AddrPortFrom(mate.IPv4.Addr(), 99)
	own, stolen := netip.AddrPortFrom(evil.IPv4.Addr(), 5), netip.AddrPortFrom(victim.IPv4.Addr(), 5)
	packet := func(src netip.AddrPort, text string) []byte { return udp4(src, to, text) }
	tagged := append([]byte{0, 5, 8, 0}, packet(own, "a VLAN tag")...)
	for _, frame := range [][]byte{
		ethernet(mate.MAC, evil.MAC, unix.ETH_P_IP, packet(stolen, "another's address")),
		ethernet(mate.MAC, victim.MAC, unix.ETH_P_IP, packet(own, "another's MAC")),
		ethernet(mate.MAC, victim.MAC, unix.ETH_P_IP, packet(stolen, "another's address and MAC")),
		ethernet(mate.MAC, bridgeMAC, unix.ETH_P_IP, packet(netip.AddrPortFrom(Gateway4, 5), "the gateway")),
		ethernet(mate.MAC, evil.MAC, unix.ETH_P_IP, packet(netip.MustParseAddrPort("192.0.2.1:5"), "the outside")),
		ethernet(mate.MAC, evil.MAC, unix.ETH_P_8021Q, tagged),
	} {
		evil.send(t, frame)
	}
	evil.send(t, ethernet(mate.MAC, evil.MAC, unix.ETH_P_IP, packet(own, "itself")))
	if before := in.until(t, "itself"); len(before) > 0 {
		t.Errorf("the mate got packets that pretend to come from %q", before)
	}
}

// With frames of several kinds one guest claims to be another; whoever talks to that one must notice nothing.
func TestAGuestCannotTakeAnothersPlace(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	m := w.manager(t, t.TempDir(), "tstt")
	must[*Namespace](t)(m.EnsureEnvironment(ctx, "red"))
	evil, victim, mate := newGuest(t, m, "red", "evil"), newGuest(t, m, "red", "victim"), newGuest(t, m, "red", "mate")
	atVictim, atEvil := victim.receive(t, 99), evil.receive(t, 99)
	talk := func(text string) {
		t.Helper()
		check(t, mate.do(func() error {
			c, err := net.Dial("udp", netip.AddrPortFrom(victim.IPv4.Addr(), 99).String())
			if err == nil {
				_, err = c.Write([]byte(text))
				_ = c.Close()
			}
			return err
		}))
		atVictim.until(t, text)
	}
	talk("before")
	lldp := net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, 0x0e}
	for range 3 {
		claim := arpReply(evil.MAC, victim.IPv4.Addr(), mate.MAC, mate.IPv4.Addr())
		evil.send(t, ethernet(mate.MAC, evil.MAC, unix.ETH_P_ARP, claim))
		claim = arpReply(victim.MAC, victim.IPv4.Addr(), mate.MAC, mate.IPv4.Addr())
		evil.send(t, ethernet(mate.MAC, evil.MAC, unix.ETH_P_ARP, claim))
		// The bridge takes frames to this address for itself, and would learn from them.
		evil.send(t, ethernet(lldp, victim.MAC, 0x88cc, make([]byte, 46)))
		// The same, to the gateway: it would send what it has for the victim to the wrong guest.
		claim = arpReply(evil.MAC, victim.IPv4.Addr(), bridgeMAC, Gateway4)
		evil.send(t, ethernet(bridgeMAC, evil.MAC, unix.ETH_P_ARP, claim))
	}
	talk("after")
	inRed := m.envs["red"].ns
	check(t, inRed.do(func() error {
		c, err := net.Dial("udp", netip.AddrPortFrom(victim.IPv4.Addr(), 99).String())
		if err == nil {
			_, err = c.Write([]byte("from the gateway"))
			_ = c.Close()
		}
		return err
	}))
	atVictim.until(t, "from the gateway")
	atEvil.empty(t)
}

// Router advertisements and neighbour advertisements for others must not get through; a guest's own must.
func TestNeighbourDiscoveryIsFiltered(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	m := w.manager(t, t.TempDir(), "tstd")
	must[*Namespace](t)(m.EnsureEnvironment(ctx, "red"))
	evil, victim, mate := newGuest(t, m, "red", "evil"), newGuest(t, m, "red", "victim"), newGuest(t, m, "red", "mate")
	in := mate.receive(t, 99)
	icmp := mate.rawICMPv6(t)
	src, dst := evil.IPv6.Addr(), mate.IPv6.Addr()
	advert := func(target netip.Addr) []byte {
		b := append([]byte{136, 0, 0, 0, 0x60, 0, 0, 0}, target.AsSlice()...)
		return append(append(b, 2, 1), evil.MAC...)
	}
	router := append([]byte{134, 0, 0, 0, 64, 0, 0, 100}, make([]byte, 8)...)
	// A hop-by-hop header that holds padding only, then the advertisement.
	hidden := append([]byte{unix.IPPROTO_ICMPV6, 0, 1, 4, 0, 0, 0, 0}, sealICMPv6(src, dst, advert(victim.IPv6.Addr()))...)
	for _, p := range [][]byte{
		ip6(src, dst, unix.IPPROTO_ICMPV6, sealICMPv6(src, dst, advert(victim.IPv6.Addr()))),
		ip6(src, dst, unix.IPPROTO_ICMPV6, sealICMPv6(src, dst, router)),
		ip6(src, dst, 0, hidden),
		ip6(victim.IPv6.Addr(), dst, unix.IPPROTO_ICMPV6, sealICMPv6(victim.IPv6.Addr(), dst, []byte{128, 0, 0, 0, 0, 1, 0, 1})),
	} {
		evil.send(t, ethernet(mate.MAC, evil.MAC, unix.ETH_P_IPV6, p))
	}
	last := udp4(netip.AddrPortFrom(evil.IPv4.Addr(), 5), netip.AddrPortFrom(mate.IPv4.Addr(), 99), "done")
	evil.send(t, ethernet(mate.MAC, evil.MAC, unix.ETH_P_IP, last))
	in.until(t, "done")
	// What came has come; its own advertisement is sent until the mate's kernel is ready for IPv6 and hears it.
	own := ethernet(mate.MAC, evil.MAC, unix.ETH_P_IPV6,
		ip6(src, dst, unix.IPPROTO_ICMPV6, sealICMPv6(src, dst, advert(src))))
	b := make([]byte, 2048)
	for deadline := time.Now().Add(5 * time.Second); ; {
		evil.send(t, own)
		_ = icmp.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		n, _, err := icmp.ReadFrom(b)
		switch {
		case time.Now().After(deadline):
			t.Fatal("the guest's own advertisement did not arrive")
		case err != nil:
		case b[0] == 134 || b[0] == 128:
			t.Errorf("ICMPv6 type %d got through", b[0])
		case b[0] == 136 && n >= 24 && netip.AddrFrom16([16]byte(b[8:24])) == victim.IPv6.Addr():
			t.Error("an advertisement for another's address got through")
		case b[0] == 136 && n >= 24 && netip.AddrFrom16([16]byte(b[8:24])) == src:
			return
		}
	}
}

func (g *guest) rawICMPv6(t testing.TB) net.PacketConn {
	t.Helper()
	var p net.PacketConn
	check(t, g.do(func() (err error) {
		p, err = net.ListenPacket("ip6:ipv6-icmp", "::")
		return err
	}))
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func ip6(src, dst netip.Addr, next byte, payload []byte) []byte {
	b := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), next, 255}
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	return append(b, payload...)
}

// sealICMPv6 fills in the checksum.
func sealICMPv6(src, dst netip.Addr, b []byte) []byte {
	b = append([]byte{}, b...)
	pseudo := append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...)
	pseudo = append(pseudo, 0, 0, byte(len(b)>>8), byte(len(b)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	sum := checksum(append(pseudo, b...))
	b[2], b[3] = byte(sum>>8), byte(sum)
	return b
}
