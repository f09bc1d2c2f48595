package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// egressWorld is an environment with a guest of each kind, a free one beside them, and something to reach everywhere.
func egressWorld(t *testing.T, dir string) (w *world, m *Manager, guests map[string]*guest) {
	t.Helper()
	w = newWorld(t)
	m = w.manager(t, dir, "tste")
	must[*Namespace](t)(m.EnsureEnvironment(t.Context(), "red"))
	check(t, m.SetVirtualAddresses(t.Context(), "red", []netip.Addr{
		netip.MustParseAddr("10.101.0.1"), netip.MustParseAddr("fd00:7069:6e6e:101::1"),
	}))
	guests = map[string]*guest{}
	for _, name := range []string{"mate", "all", "internal", "none"} {
		guests[name] = newGuest(t, m, "red", name)
		if name != "mate" {
			check(t, m.SetEgress(t.Context(), "red", name, Egress(name)))
		}
	}
	serve(t, guests["mate"].namespace, "mate", ":80")
	serve(t, m.envs["red"].ns, "dns", "10.100.0.1:53")
	serve(t, m.envs["red"].ns, "dns", "[fd00:7069:6e6e:100::1]:53")
	serve(t, m.envs["red"].ns, "virtual", "10.101.0.1:80")
	serve(t, m.envs["red"].ns, "virtual", "[fd00:7069:6e6e:101::1]:80")
	serve(t, w.outside, "outside", "192.0.2.1:80")
	serve(t, w.neighbour, "neighbour", ":80")
	return w, m, guests
}

// outside says whether g reaches the outside over each of TCP and UDP, or fails the test when the two differ.
func (g *guest) outside(t *testing.T, wanted bool) bool {
	t.Helper()
	patience := patient
	if !wanted {
		patience = 500 * time.Millisecond
	}
	var reached []bool
	for _, network := range []string{"tcp", "udp"} {
		_, err := ask(g.namespace, network, "192.0.2.1:80", patience)
		reached = append(reached, err == nil)
	}
	if reached[0] != reached[1] {
		t.Errorf("outside is reached over TCP: %v, over UDP: %v", reached[0], reached[1])
	}
	return reached[0]
}

func TestEgress(t *testing.T) {
	_, m, guests := egressWorld(t, t.TempDir())
	at := func(a netip.Addr) string { return netip.AddrPortFrom(a, 80).String() }
	for _, c := range []struct {
		what, address string
		outside       bool
	}{
		{"its mate", at(guests["mate"].IPv4.Addr()), false},
		{"its mate over IPv6", at(guests["mate"].IPv6.Addr()), false},
		{"DNS", "10.100.0.1:53", false},
		{"DNS over IPv6", "[fd00:7069:6e6e:100::1]:53", false},
		{"a virtual address", "10.101.0.1:80", false},
		{"a virtual IPv6 address", "[fd00:7069:6e6e:101::1]:80", false},
		{"the outside", "192.0.2.1:80", true},
		{"another network outside", "198.51.100.1:80", true},
	} {
		for _, name := range []string{"all", "internal", "none"} {
			wanted := !c.outside || name == "all"
			for _, network := range []string{"tcp", "udp"} {
				patience := patient
				if !wanted {
					patience = 500 * time.Millisecond
				}
				got, err := ask(guests[name].namespace, network, c.address, patience)
				if (err == nil) != wanted {
					t.Errorf("a guest with egress %s: %s at %s/%s answers %q, %v", name, c.what, network, c.address, got, err)
				}
			}
		}
	}
	// No way out over IPv6 for anybody.
	for _, g := range guests {
		if got, err := ask(g.namespace, "tcp", "[2001:db8::1]:80", patient); err == nil {
			t.Errorf("IPv6 outside answers %q", got)
		}
	}
	// Programs hear of it at once.
	if _, err := ask(guests["internal"].namespace, "tcp", "192.0.2.1:80", patient); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("connecting outside: %v, want that there is no route", err)
	}

	ctx := context.Background()
	if err := m.SetEgress(ctx, "red", "all", "some"); err == nil {
		t.Error("egress can be set to what does not exist")
	}
	if err := m.SetEgress(ctx, "red", "nobody", EgressAll); !errors.Is(err, ErrNotFound) {
		t.Errorf("egress of a guest that is not there: %v", err)
	}
	if err := m.SetEgress(ctx, "blue", "all", EgressAll); !errors.Is(err, ErrNotFound) {
		t.Errorf("egress in an environment that is not there: %v", err)
	}
}

// TestEgressChanges takes the outside away from a guest, in the middle of a connection, and gives it back. The next
// manager keeps to what was set, a repair of the environment too, and a new guest begins anew.
func TestEgressChanges(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	w, m, guests := egressWorld(t, dir)
	g := guests["all"]
	var server net.PacketConn
	check(t, w.outside.do(func() (err error) { server, err = net.ListenPacket("udp", "192.0.2.1:7"); return err }))
	defer server.Close()
	var client net.Conn
	check(t, g.do(func() (err error) { client, err = net.Dial("udp", "192.0.2.1:7"); return err }))
	defer client.Close()
	arrives := func(text string, patience time.Duration) bool {
		_, _ = client.Write([]byte(text)) // an error is that of the packet before: it was refused
		check(t, server.SetReadDeadline(time.Now().Add(patience)))
		b := make([]byte, 64)
		n, _, err := server.ReadFrom(b)
		return err == nil && string(b[:n]) == text
	}
	if !arrives("before", patient) {
		t.Fatal("a guest with egress all does not reach the outside")
	}
	check(t, m.SetEgress(ctx, "red", "all", EgressInternal))
	if arrives("after", 300*time.Millisecond) {
		t.Error("a connection that there was goes on after the outside was taken away")
	}
	if g.outside(t, false) {
		t.Error("the outside is reached by a new connection")
	}

	for range 2 { // setting the same again is no mistake, and managers take over as often as they like
		check(t, m.SetEgress(ctx, "red", "all", EgressInternal))
		check(t, m.Close())
		m = w.manager(t, dir, "tste")
		must[*Namespace](t)(m.EnsureEnvironment(ctx, "red"))
		must[*Attachment](t)(m.Attach(ctx, "red", "all", g.UID))
		if g.outside(t, false) {
			t.Error("the next manager lets the guest out")
		}
	}
	if !guests["mate"].outside(t, true) {
		t.Error("the next manager keeps another guest in")
	}
	check(t, m.SetEgress(ctx, "red", "all", EgressAll))
	if !g.outside(t, true) {
		t.Error("the outside is not reached again")
	}

	check(t, m.SetEgress(ctx, "red", "all", EgressNone))
	check(t, m.Detach(ctx, "red", "all"))
	if !newGuest(t, m, "red", "all").outside(t, true) {
		t.Error("a new guest has what was set for one of the same name that is gone")
	}
}

// TestEgressInAnothersName sends packets outward from a guest that must stay inside, in the names of one that may
// leave, of the gateway and of addresses of nobody's. None arrives.
func TestEgressInAnothersName(t *testing.T) {
	w, _, guests := egressWorld(t, t.TempDir())
	evil, free := guests["none"], guests["mate"]
	var in net.PacketConn
	check(t, w.outside.do(func() (err error) { in, err = net.ListenPacket("udp", "192.0.2.1:99"); return err }))
	t.Cleanup(func() { _ = in.Close() })
	to := netip.MustParseAddrPort("192.0.2.1:99")
	for _, source := range []netip.Addr{
		evil.IPv4.Addr(), free.IPv4.Addr(), Gateway4, netip.MustParseAddr("10.100.99.99"), netip.MustParseAddr("10.101.0.1"), netip.MustParseAddr("192.0.2.9"),
	} {
		for _, mac := range []net.HardwareAddr{evil.MAC, free.MAC} {
			evil.send(t, ethernet(bridgeMAC, mac, unix.ETH_P_IP, udp4(netip.AddrPortFrom(source, 5), to, "from "+source.String())))
		}
	}
	free.send(t, ethernet(bridgeMAC, free.MAC, unix.ETH_P_IP, udp4(netip.AddrPortFrom(free.IPv4.Addr(), 6), to, "the free guest itself")))
	if before := (receiver{in}).until(t, "the free guest itself"); len(before) > 0 {
		slices.Sort(before)
		t.Errorf("packets have left: %q", before)
	}
}
