package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names inside an environment's namespace.
const (
	bridgeName = "br0"
	uplinkName = "up0"
)

// bridgeMAC is fixed: the MAC that a bridge makes up changes with its ports.
var bridgeMAC = net.HardwareAddr{0x02, 'p', 'n', 0, 0, 1}

// EnsureEnvironment makes the network of env, or repairs what is missing of it, and returns it.
func (m *Manager) EnsureEnvironment(ctx context.Context, env string) (*Namespace, error) {
	if err := checkEnvironment(env); err != nil {
		return nil, err
	}
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	if err := m.ensure(env); err != nil {
		return nil, fmt.Errorf("make network of %s: %w", env, err)
	}
	return &Namespace{Name: env, Path: m.netnsPath(env), MTU: m.mtu}, nil
}

func (m *Manager) ensure(env string) error {
	path := m.netnsPath(env)
	e := m.envs[env]
	if e != nil && e.ns != nil {
		if isNamespace(path) {
			return nil
		}
		m.log.Warn("the namespace of an environment was taken away, making it anew", "environment", env)
		_ = e.ns.close()
		e.ns = nil
	}
	if e == nil {
		e = &environment{state: &envState{Guests: map[string]*guestState{}}}
		// Written first, so that whatever is made below has a name on record.
		if err := m.writeState(env, e.state); err != nil {
			return err
		}
		m.envs[env] = e
	}
	if !isNamespace(path) {
		// After a reboot, or after somebody removed it: guests of the old namespace are gone with it.
		e.state.Guests = map[string]*guestState{}
		if err := m.writeState(env, e.state); err != nil {
			return err
		}
		if err := createNamespace(path); err != nil {
			return err
		}
	}
	ns, err := openNamespace(path)
	if err != nil {
		return err
	}
	if err := m.furnish(env, e.state, ns); err != nil {
		return errors.Join(err, ns.close())
	}
	e.ns = ns
	return nil
}

// furnish makes everything inside the namespace but the taps. What is there already stays.
func (m *Manager) furnish(env string, s *envState, ns *namespace) error {
	if err := ns.do(func() error { return writeSysctls(m.environmentSysctls()...) }); err != nil {
		return err
	}
	// Filters come before links: no packet ever passes without them.
	if err := setGuards(ns, s); err != nil {
		return err
	}
	lo, err := ns.links.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := ns.links.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	if err := m.ensureBridge(ns); err != nil {
		return err
	}
	if err := m.ensureUnreachable(ns); err != nil {
		return err
	}
	if m.outside == nil {
		return nil
	}
	return m.ensureUplink(env, s, ns)
}

// environmentSysctls are written when only the loopback exists; later links begin with the "default" ones.
func (m *Manager) environmentSysctls() []sysctl {
	forward := "0"
	if m.outside != nil {
		forward = "1"
	}
	// ip_forward first: writing it resets others.
	settings := []sysctl{{"ipv4/ip_forward", forward}}
	for _, scope := range []string{"all", "default"} {
		conf := "ipv4/conf/" + scope + "/"
		settings = append(
			settings,
			sysctl{conf + "rp_filter", "1"},
			sysctl{conf + "accept_redirects", "0"},
			sysctl{conf + "send_redirects", "0"},
			sysctl{conf + "accept_source_route", "0"},
			sysctl{conf + "proxy_arp", "0"},
			// The bridge answers ARP for its own address only, not for virtual ones and not for the uplink's.
			sysctl{conf + "arp_ignore", "1"},
			sysctl{conf + "arp_announce", "2"},
		)
		if !m.ipv6 {
			continue
		}
		conf = "ipv6/conf/" + scope + "/"
		settings = append(
			settings,
			sysctl{conf + "forwarding", "0"},
			sysctl{conf + "accept_ra", "0"},
			sysctl{conf + "autoconf", "0"},
			sysctl{conf + "accept_redirects", "0"},
			sysctl{conf + "accept_dad", "0"},
			sysctl{conf + "dad_transmits", "0"},
		)
	}
	if m.ipv6 {
		// Taps and the uplink have no business with IPv6; the bridge gets it back when it is made.
		settings = append(settings, sysctl{"ipv6/conf/default/disable_ipv6", "1"})
	}
	// With br_netfilter loaded, bridged frames would pass the filters of routed ones too.
	return append(settings, sysctl{"?bridge/bridge-nf-call-iptables", "0"},
		sysctl{"?bridge/bridge-nf-call-ip6tables", "0"}, sysctl{"?bridge/bridge-nf-call-arptables", "0"})
}

func (m *Manager) ensureBridge(ns *namespace) error {
	off := false
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = bridgeName, bridgeMAC, m.mtu
	// Without snooping, multicast (neighbour discovery) reaches every guest with nobody having to ask.
	err := ns.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make bridge: %w", err)
	}
	br, err := ns.links.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	if m.ipv6 {
		err := ns.do(func() error { return writeSysctls(sysctl{"ipv6/conf/" + bridgeName + "/disable_ipv6", "0"}) })
		if err != nil {
			return err
		}
	}
	if err := replaceAddress(ns, br, netip.PrefixFrom(Gateway4, Subnet4.Bits())); err != nil {
		return err
	}
	if m.ipv6 {
		if err := replaceAddress(ns, br, netip.PrefixFrom(Gateway6, Subnet6.Bits())); err != nil {
			return err
		}
	}
	if err := ns.links.LinkSetUp(br); err != nil {
		return fmt.Errorf("bring bridge up: %w", err)
	}
	return nil
}

// ensureUnreachable answers at once, instead of sending outside, what is meant for a virtual address that is
// not there and for IPv6 outside.
func (m *Manager) ensureUnreachable(ns *namespace) error {
	nets := []netip.Prefix{Virtual4}
	if m.ipv6 {
		nets = append(nets, netip.MustParsePrefix("::/0"))
	}
	for _, n := range nets {
		r := &netlink.Route{Dst: ipNet(n), Type: unix.RTN_UNREACHABLE, Table: unix.RT_TABLE_MAIN}
		if err := ns.links.RouteReplace(r); err != nil {
			return fmt.Errorf("make %v unreachable: %w", n, err)
		}
	}
	return nil
}

// SetVirtualAddresses makes exactly addrs, out of Virtual4 and Virtual6, local addresses of env, so that a
// proxy can listen on them there. Addresses that stay are not touched.
func (m *Manager) SetVirtualAddresses(ctx context.Context, env string, addrs []netip.Addr) error {
	want := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		if !Virtual4.Contains(a) && !Virtual6.Contains(a) {
			return fmt.Errorf("set virtual addresses of %s: %v is neither in %v nor in %v", env, a, Virtual4, Virtual6)
		}
		want[a] = true
	}
	if err := m.begin(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	e, err := m.furnished(env)
	if err != nil {
		return err
	}
	if err := m.setVirtual(e.ns, want); err != nil {
		return fmt.Errorf("set virtual addresses of %s: %w", env, err)
	}
	return nil
}

// setVirtual keeps the addresses on the loopback device: they are the namespace's own, and no link's.
func (m *Manager) setVirtual(ns *namespace, want map[netip.Addr]bool) error {
	lo, err := ns.links.LinkByName("lo")
	if err != nil {
		return err
	}
	have, err := ns.links.AddrList(lo, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, h := range have {
		a, ok := netip.AddrFromSlice(h.IP)
		a = a.Unmap()
		switch {
		case !ok || (!Virtual4.Contains(a) && !Virtual6.Contains(a)):
		case want[a]:
			delete(want, a)
		default:
			if err := ns.links.AddrDel(lo, &h); err != nil {
				return fmt.Errorf("remove %v: %w", a, err)
			}
		}
	}
	for a := range want {
		if a.Is6() && !m.ipv6 {
			continue
		}
		if err := replaceAddress(ns, lo, netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	return nil
}

// RemoveEnvironment removes the network of env with all its attachments. Removing what is not there succeeds.
// Sockets that a process has open in the namespace are cut off, and keep an empty namespace alive until they
// are closed.
func (m *Manager) RemoveEnvironment(ctx context.Context, env string) error {
	if err := checkEnvironment(env); err != nil {
		return err
	}
	if err := m.begin(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	e, ok := m.envs[env]
	if !ok {
		return nil
	}
	if err := m.dismantle(env, e); err != nil {
		return fmt.Errorf("remove network of %s: %w", env, err)
	}
	delete(m.envs, env)
	return nil
}

// dismantle removes links one by one rather than trusting the end of the namespace: that may be late, when a
// process is still in it, and it happens in the background.
func (m *Manager) dismantle(env string, e *environment) error {
	path := m.netnsPath(env)
	if e.ns == nil && isNamespace(path) {
		ns, err := openNamespace(path)
		if err != nil {
			return err
		}
		e.ns = ns
	}
	if e.ns != nil {
		if err := removeLinks(e.ns); err != nil {
			return err
		}
		_ = e.ns.close()
		e.ns = nil
	}
	if err := removeNamespace(path); err != nil {
		return err
	}
	return m.removeState(env)
}

func removeLinks(ns *namespace) error {
	links, err := ns.links.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if l.Attrs().Name == "lo" {
			continue
		}
		// A link may go together with one before it.
		err := ns.links.LinkDel(l)
		if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("remove link %s: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

// furnished returns env when EnsureEnvironment has been there.
func (m *Manager) furnished(env string) (*environment, error) {
	e, ok := m.envs[env]
	if !ok || e.ns == nil {
		return nil, fmt.Errorf("environment %s: %w", env, ErrNotFound)
	}
	return e, nil
}

func replaceAddress(ns *namespace, l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := ns.links.AddrReplace(l, a); err != nil {
		return fmt.Errorf("give %s the address %v: %w", l.Attrs().Name, p, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
