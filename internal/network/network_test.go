package network

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestAllocateGoesRound(t *testing.T) {
	s := &envState{Guests: map[string]*guestState{}}
	first, err := s.allocate("a", 0)
	if err != nil || first.ipv4() != netip.MustParseAddr("10.100.0.2") || first.ipv6().String() != "fd00:7069:6e6e:100::2" {
		t.Fatalf("first guest: %+v, %v", first, err)
	}
	for i := firstIndex + 1; i <= lastIndex; i++ {
		s.Guests[fmt.Sprint(i)] = &guestState{Index: i}
	}
	if g := s.Guests[fmt.Sprint(lastIndex)]; g.ipv4() != netip.MustParseAddr("10.100.255.254") {
		t.Errorf("last guest has %v", g.ipv4())
	}
	if _, err := s.allocate("one more", 0); !errors.Is(err, ErrFull) {
		t.Errorf("one guest too many: %v", err)
	}
	delete(s.Guests, "700")
	if g, err := s.allocate("late", 0); err != nil || g.Index != 700 {
		t.Errorf("the only free index: %+v, %v", g, err)
	}
}

func TestGuestAddressesFollowFromTheIndex(t *testing.T) {
	g := &guestState{Index: 0x1234}
	if got := fmt.Sprintln(g.tap(), g.mac(), g.ipv4(), g.ipv6(), g.linkLocal()); got !=
		"t4660 02:70:6e:00:12:34 10.100.18.52 fd00:7069:6e6e:100::1234 fe80::70:6eff:fe00:1234\n" {
		t.Error(got)
	}
}

func TestNextFreePair(t *testing.T) {
	base := netip.MustParsePrefix("100.127.0.0/24")
	for _, c := range []struct {
		taken []string
		want  string
	}{
		{nil, "100.127.0.0/31"},
		{[]string{"100.127.0.0/31"}, "100.127.0.2/31"},
		{[]string{"100.127.0.0/31", "100.127.0.4/31"}, "100.127.0.2/31"},
		{[]string{"100.127.0.1/32"}, "100.127.0.2/31"},
		{[]string{"100.127.0.0/25"}, "100.127.0.128/31"},
		{[]string{"10.0.0.0/8", "100.127.0.5/29"}, "100.127.0.8/31"},
		{[]string{"100.64.0.0/10"}, ""},
		{[]string{"100.127.0.0/25", "100.127.0.128/25"}, ""},
	} {
		var taken []netip.Prefix
		for _, p := range c.taken {
			taken = append(taken, netip.MustParsePrefix(p))
		}
		got, err := nextFreePair(base, taken)
		if c.want == "" {
			if !errors.Is(err, ErrFull) {
				t.Errorf("beside %q: %v, %v, want ErrFull", c.taken, got, err)
			}
			continue
		}
		if err != nil || got.String() != c.want {
			t.Errorf("beside %q: %v, %v, want %s", c.taken, got, err, c.want)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	good := func() *Manager {
		return &Manager{runDir: "/run/x", prefix: "pin", uplink: Uplink{Base: DefaultUplinkBase}}
	}
	if err := good().check(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Manager){
		"absolute path":  func(m *Manager) { m.runDir = "run" },
		"prefix":         func(m *Manager) { m.prefix = "toolong" },
		"uplink mode":    func(m *Manager) { m.uplink.Mode = "bridge" },
		"/10 to /30":     func(m *Manager) { m.uplink.Base = netip.MustParsePrefix("10.0.0.0/31") },
		"IPv4 network":   func(m *Manager) { m.uplink.Base = netip.MustParsePrefix("fd00::/16") },
		"inside every":   func(m *Manager) { m.uplink.Base = netip.MustParsePrefix("10.101.3.0/24") },
		"is not a lett":  func(m *Manager) { m.prefix = "a-b" },
		"overlaps 10.10": func(m *Manager) { m.uplink.Base = netip.MustParsePrefix("10.64.0.0/10") },
	} {
		m := good()
		spoil(m)
		if err := m.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
	for _, name := range []string{"", "..", "a/b", "A", "-a", strings.Repeat("a", 64)} {
		if checkEnvironment(name) == nil {
			t.Errorf("environment name %q was accepted", name)
		}
	}
	for _, name := range []string{"", "..", "a/b", ".a", strings.Repeat("a", 129)} {
		if checkInstance(name) == nil {
			t.Errorf("instance name %q was accepted", name)
		}
	}
}
