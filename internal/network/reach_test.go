package network

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func TestWhatAGuestReaches(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	m := w.manager(t, t.TempDir(), "tsta")
	for _, env := range []string{"red", "blue"} {
		must[*Namespace](t)(m.EnsureEnvironment(ctx, env))
		check(t, m.SetVirtualAddresses(ctx, env, []netip.Addr{
			netip.MustParseAddr("10.101.0.1"), netip.MustParseAddr("fd00:7069:6e6e:101::1"),
		}))
	}
	red, mate := newGuest(t, m, "red", "red-1"), newGuest(t, m, "red", "red-2")
	// Addresses are the same in both environments, so blue's guests get some that red has not given out.
	must[*Attachment](t)(m.Attach(ctx, "blue", "blue-1", 0))
	must[*Attachment](t)(m.Attach(ctx, "blue", "blue-2", 0))
	blue := newGuest(t, m, "blue", "blue-3")

	inRed, inBlue := m.envs["red"].ns, m.envs["blue"].ns
	serve(t, mate.namespace, "mate", ":80")
	serve(t, blue.namespace, "blue", ":80")
	serve(t, inRed, "dns", "10.100.0.1:53")
	serve(t, inRed, "dns", "[fd00:7069:6e6e:100::1]:53")
	serve(t, inRed, "virtual", "10.101.0.1:80")
	serve(t, inRed, "virtual", "[fd00:7069:6e6e:101::1]:80")
	serve(t, inRed, "inside", ":9000")
	serve(t, inBlue, "inside blue", ":9000")
	serve(t, w.outside, "outside", "192.0.2.1:80")
	serve(t, w.neighbour, "neighbour", ":80")
	serve(t, w.host, "host", ":7400")
	serve(t, w.host, "host", "127.0.0.1:7401")
	// The outside has a metadata service as clouds do, and the host knows the way to it.
	lo := must[netlink.Link](t)(w.outside.links.LinkByName("lo"))
	check(t, replaceAddress(w.outside, lo, netip.MustParsePrefix("169.254.169.254/32")))
	serve(t, w.outside, "metadata", "169.254.169.254:80")
	w.host.route(t, "169.254.169.254/32", "192.0.2.1")

	redUp, blueUp := m.envs["red"].state.Uplink.Addr(), m.envs["blue"].state.Uplink.Addr()
	at := func(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }
	cases := []struct {
		what, address, want string
		from                *namespace
	}{
		{"its mate", at(mate.IPv4.Addr(), 80), "mate", red.namespace},
		{"its mate over IPv6", at(mate.IPv6.Addr(), 80), "mate", red.namespace},
		{"DNS", "10.100.0.1:53", "dns", red.namespace},
		{"DNS over IPv6", "[fd00:7069:6e6e:100::1]:53", "dns", red.namespace},
		{"a virtual address", "10.101.0.1:80", "virtual", red.namespace},
		{"a virtual IPv6 address", "[fd00:7069:6e6e:101::1]:80", "virtual", red.namespace},
		{"the outside", "192.0.2.1:80", "outside", red.namespace},
		{"the outside from blue", "192.0.2.1:80", "outside", blue.namespace},
		{"another network of the host's", "198.51.100.1:80", "neighbour", red.namespace},

		{"another port of the gateway", "10.100.0.1:9000", "", red.namespace},
		{"the inner end of its uplink", at(redUp.Next(), 9000), "", red.namespace},
		{"the host at the outer end of its uplink", at(redUp, 7400), "", red.namespace},
		{"the host at the end of another's uplink", at(blueUp, 7400), "", red.namespace},
		{"the host on the way out", "192.0.2.2:7400", "", red.namespace},
		{"the host on another link", "198.51.100.2:7400", "", red.namespace},
		{"a virtual address that is not there", "10.101.0.9:80", "", red.namespace},
		{"a guest of another environment", at(blue.IPv4.Addr(), 80), "", red.namespace},
		{"a guest of another environment over IPv6", at(blue.IPv6.Addr(), 80), "", red.namespace},
		{"another environment through its uplink", at(blueUp.Next(), 9000), "", red.namespace},
		{"the metadata service", "169.254.169.254:80", "", red.namespace},
		{"IPv6 outside", "[2001:db8::1]:80", "", red.namespace},

		{"the host from the outside", "192.0.2.2:7400", "host", w.outside},
		{"the metadata service from the host", "169.254.169.254:80", "metadata", w.host},
		{"an environment from the host", at(redUp.Next(), 9000), "", w.host},
		{"a guest from the host", at(mate.IPv4.Addr(), 80), "", w.host},
		{"the outside from the neighbour, through the host", "192.0.2.1:80", "", w.neighbour},
	}
	w.outside.route(t, "100.127.0.0/16", "192.0.2.2")
	cases = append(cases, struct {
		what, address, want string
		from                *namespace
	}{"an environment from the outside", at(redUp.Next(), 9000), "", w.outside})
	var all sync.WaitGroup
	defer all.Wait()
	for _, c := range cases {
		for _, network := range []string{"tcp", "udp"} {
			all.Go(func() {
				patience := patient
				if c.want == "" {
					patience = 500 * time.Millisecond
				}
				got, err := ask(c.from, network, c.address, patience)
				if c.want == "" && err == nil {
					t.Errorf("%s at %s/%s answered %q, want no answer", c.what, network, c.address, got)
				}
				if want := "hello from " + c.want; c.want != "" && got != want {
					t.Errorf("%s at %s/%s answered %q (%v), want %q", c.what, network, c.address, got, err, want)
				}
			})
		}
	}
}

// IPv6 leads nowhere outside, and says so at once: programs try it first.
func TestNoWayOutIsSaidAtOnce(t *testing.T) {
	w := newWorld(t)
	m := w.manager(t, t.TempDir(), "tsta")
	must[*Namespace](t)(m.EnsureEnvironment(context.Background(), "red"))
	red := newGuest(t, m, "red", "red-1")
	for _, address := range []string{"[2001:db8::1]:80", "10.101.0.9:80", "10.100.0.1:9000"} {
		_, err := ask(red.namespace, "tcp", address, patient)
		if err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("connecting to %s: %v, want an answer that it is unreachable", address, err)
		}
	}
}

func TestWithoutUplinkNothingLeaves(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	dir := t.TempDir()
	m := must[*Manager](t)(New(Options{RunDir: dir, Prefix: "tstn", HostNetns: w.hostPath}))
	defer func() { check(t, m.Close()) }()
	defer func() { check(t, m.CleanUp(ctx)) }()
	must[*Namespace](t)(m.EnsureEnvironment(ctx, "red"))
	red, mate := newGuest(t, m, "red", "red-1"), newGuest(t, m, "red", "red-2")
	serve(t, mate.namespace, "mate", ":80")
	serve(t, w.outside, "outside", ":80")
	if got, err := ask(red.namespace, "tcp", netip.AddrPortFrom(mate.IPv4.Addr(), 80).String(), patient); err != nil {
		t.Errorf("mate: %q, %v", got, err)
	}
	if got, err := ask(red.namespace, "tcp", "192.0.2.1:80", time.Second); err == nil {
		t.Errorf("outside answered %q without an uplink", got)
	}
	if v := sysctlValue(t, w.host, "ipv4/ip_forward"); v != "0" {
		t.Errorf("the host forwards (%s) for environments without uplink", v)
	}
}

// In tests of whole hosts a namespace plays the outside, with no host in between.
func TestUplinkIntoANamespace(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	m := must[*Manager](t)(New(Options{
		RunDir: t.TempDir(), Prefix: "tsto", HostNetns: w.hostPath,
		Uplink: Uplink{Mode: UplinkNetns, Netns: w.outside.file.Name(), Base: netip.MustParsePrefix("100.80.0.0/16")},
	}))
	defer func() { check(t, m.Close()) }()
	defer func() { check(t, m.CleanUp(ctx)) }()
	must[*Namespace](t)(m.EnsureEnvironment(ctx, "red"))
	red := newGuest(t, m, "red", "red-1")
	serve(t, w.outside, "outside", ":80")
	serve(t, w.host, "host", ":7400")
	if got, err := ask(red.namespace, "tcp", "192.0.2.1:80", patient); err != nil {
		t.Errorf("outside: %q, %v", got, err)
	}
	if got, err := ask(red.namespace, "tcp", "192.0.2.2:7400", time.Second); err == nil {
		t.Errorf("the host answered %q", got)
	}
}
