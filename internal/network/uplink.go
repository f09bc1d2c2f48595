package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An uplink is a pair of links: up0 inside the environment, and outside "<prefix>-u<n>", where n numbers its
// /31 within Uplink.Base. Its alias says whose it is, for people and for the next manager.

const aliasMark = "pinnace "

func (m *Manager) uplinkPattern() string { return m.prefix + "-u" }

func (m *Manager) uplinkLink(pair netip.Prefix) string {
	return m.uplinkPattern() + strconv.FormatUint(uint64(pairIndex(m.uplink.Base, pair)), 10)
}

func (m *Manager) alias(env string) string { return aliasMark + m.runDir + " " + env }

// ensureUplink connects env to the outside.
func (m *Manager) ensureUplink(env string, s *envState, ns *namespace) error {
	if err := m.openOutside(); err != nil {
		return err
	}
	// Two managers must not choose the same addresses between looking and taking.
	unlock, err := m.outside.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if !m.uplinkFits(env, s) {
		if s.Uplink, err = m.freePair(); err != nil {
			return err
		}
		if err := m.writeState(env, s); err != nil {
			return err
		}
	}
	name := m.uplinkLink(s.Uplink)
	outer, err := m.outside.links.LinkByName(name)
	if err == nil {
		if _, err := ns.links.LinkByName(uplinkName); isNoLink(err) {
			// Its other end is in a namespace that is no longer ours, or the work was interrupted.
			if err := m.outside.links.LinkDel(outer); err != nil {
				return fmt.Errorf("remove old uplink %s: %w", name, err)
			}
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, m.mtu
	err = m.outside.links.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: uplinkName, PeerNamespace: netlink.NsFd(int(ns.file.Fd())), PeerMTU: uint32(m.mtu),
	})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make uplink %s: %w", name, err)
	}
	return m.setUpUplink(env, name, s.Uplink, ns)
}

func (m *Manager) setUpUplink(env, name string, pair netip.Prefix, ns *namespace) error {
	outer, err := m.outside.links.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find uplink %s: %w", name, err)
	}
	inner, err := ns.links.LinkByName(uplinkName)
	if err != nil {
		return fmt.Errorf("find uplink inside: %w", err)
	}
	if err := m.outside.links.LinkSetAlias(outer, m.alias(env)); err != nil {
		return fmt.Errorf("mark uplink %s: %w", name, err)
	}
	conf := "ipv4/conf/" + name + "/"
	err = m.outside.do(func() error {
		return writeSysctls(
			sysctl{"?ipv6/conf/" + name + "/disable_ipv6", "1"},
			sysctl{conf + "rp_filter", "1"},
			sysctl{conf + "accept_redirects", "0"},
			sysctl{conf + "send_redirects", "0"},
			sysctl{conf + "accept_source_route", "0"},
			sysctl{conf + "proxy_arp", "0"},
			sysctl{conf + "route_localnet", "0"},
			// No answers about the host's other addresses.
			sysctl{conf + "arp_ignore", "1"},
		)
	})
	if err != nil {
		return err
	}
	here, there := pair.Addr(), pair.Addr().Next()
	if err := replaceAddress(m.outside, outer, netip.PrefixFrom(here, 31)); err != nil {
		return err
	}
	if err := replaceAddress(ns, inner, netip.PrefixFrom(there, 31)); err != nil {
		return err
	}
	if err := errors.Join(m.outside.links.LinkSetUp(outer), ns.links.LinkSetUp(inner)); err != nil {
		return fmt.Errorf("bring uplink %s up: %w", name, err)
	}
	err = ns.links.RouteReplace(&netlink.Route{
		LinkIndex: inner.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: here.AsSlice(),
	})
	if err != nil {
		return fmt.Errorf("route outward: %w", err)
	}
	return nil
}

// uplinkFits says whether the addresses on record are still env's to use.
func (m *Manager) uplinkFits(env string, s *envState) bool {
	if !s.Uplink.IsValid() || s.Uplink.Bits() != 31 || !m.uplink.Base.Contains(s.Uplink.Addr()) {
		return false
	}
	l, err := m.outside.links.LinkByName(m.uplinkLink(s.Uplink))
	return err == nil && l.Attrs().Alias == m.alias(env)
}

// freePair finds two addresses that nothing in the outside namespace uses.
func (m *Manager) freePair() (netip.Prefix, error) {
	var taken []netip.Prefix
	addrs, err := m.outside.links.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if p, ok := fromIPNet(a.IPNet); ok {
			taken = append(taken, p)
		}
	}
	routes, err := m.outside.links.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if p, ok := fromIPNet(r.Dst); ok && p.Bits() > 0 {
			taken = append(taken, p)
		}
	}
	return nextFreePair(m.uplink.Base, taken)
}

// nextFreePair returns the first /31 of base that overlaps none of taken. Beyond each obstacle it goes on
// after the obstacle's end, so that a large one costs one step.
func nextFreePair(base netip.Prefix, taken []netip.Prefix) (netip.Prefix, error) {
	end := uint64(addrNumber(base.Addr())) + 1<<(32-base.Bits())
search:
	for n := uint64(addrNumber(base.Addr())); n < end; {
		pair := netip.PrefixFrom(numberAddr(uint32(n)), 31)
		for _, t := range taken {
			if t.Overlaps(pair) {
				n = max(n+2, uint64(addrNumber(t.Masked().Addr()))+1<<(32-t.Bits()))
				n += n & 1
				continue search
			}
		}
		return pair, nil
	}
	return netip.Prefix{}, fmt.Errorf("%w: every pair in uplink base %v is used or routed elsewhere; choose another base",
		ErrFull, base)
}

func pairIndex(base, pair netip.Prefix) uint32 {
	return (addrNumber(pair.Addr()) - addrNumber(base.Addr())) / 2
}

func addrNumber(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func numberAddr(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

// removeStrayUplinks removes the uplinks of this RunDir that belong to no environment, and those of run
// directories that are gone. One of another manager with the same prefix is an error.
func (m *Manager) removeStrayUplinks() error {
	links, err := m.outer().links.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		name, alias := l.Attrs().Name, l.Attrs().Alias
		number, ours := strings.CutPrefix(name, m.uplinkPattern())
		if _, err := strconv.ParseUint(number, 10, 32); !ours || err != nil {
			continue
		}
		runDir, env, marked := strings.Cut(strings.TrimPrefix(alias, aliasMark), " ")
		if marked && runDir == m.runDir && m.envs[env] != nil && m.outside != nil {
			continue
		}
		if marked && runDir != m.runDir {
			if _, err := os.Stat(runDir); err == nil {
				return fmt.Errorf("link %s belongs to the network manager of %s: use another prefix than %q, or clean that one up",
					name, runDir, m.prefix)
			}
		}
		m.log.Info("removing an uplink that was left over", "link", name, "alias", alias)
		if err := m.outer().links.LinkDel(l); err != nil && !isNoLink(err) {
			return fmt.Errorf("remove uplink %s: %w", name, err)
		}
	}
	return nil
}
