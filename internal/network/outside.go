package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The filters at the outer ends of the uplinks are a table per manager. Whether it was Pinnace that made the
// host forward packets is remembered in a table too, one for all managers: it lives exactly as long as the
// setting that it is about, through any crash until the next boot.
const (
	tablePrefix     = "pinnace_"
	forwardingTable = "pinnace-forwarding"
)

// outer is where left-overs of uplinks may be: a manager before may have had them when this one has none.
func (m *Manager) outer() *namespace {
	if m.outside == nil {
		return m.host
	}
	return m.outside
}

func (m *Manager) outerTable() string { return tablePrefix + m.prefix }

// openOutside puts the outer filters in place, once in a process, and has the host forward.
func (m *Manager) openOutside() error {
	if m.outsideReady {
		return nil
	}
	unlock, err := m.outside.lock()
	if err != nil {
		return err
	}
	defer unlock()
	c, err := m.outside.filters()
	if err != nil {
		return err
	}
	addChains(c, replaceTable(c, nftables.TableFamilyINet, m.outerTable()), m.outerChains()...)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("set filters at the uplinks: %w", err)
	}
	if m.uplink.Mode == UplinkHost {
		if err := m.startForwarding(); err != nil {
			return err
		}
	}
	m.outsideReady = true
	return nil
}

// outerChains say what may come out of an uplink.
func (m *Manager) outerChains() []chain {
	in, out := iifPrefix(m.uplinkPattern()), oifPrefix(m.uplinkPattern())
	forward := chain{
		name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
		priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyAccept,
		rules: []rule{
			when(in, out, drop()),
			when(in, invalid(), drop()),
			when(in, accept()),
			when(out, established(), accept()),
			when(out, drop()),
		},
	}
	if m.uplink.Mode == UplinkNetns {
		return []chain{forward}
	}
	return []chain{
		{
			// Before connection tracking and before anybody's address translation: a port that the host
			// publishes for a container is the host's all the same.
			name: "arrive", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting,
			priority: nftables.ChainPriorityRaw, policy: nftables.ChainPolicyAccept,
			rules: []rule{
				when(in, family(unix.NFPROTO_IPV6), drop()),
				when(in, notUnicast(), drop()),
				when(in, destination(linkLocal4), drop()),
				when(in, destination(m.uplink.Base), drop()),
			},
		},
		{
			name: "input", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput,
			priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyAccept,
			rules: []rule{when(in, drop())},
		},
		forward,
		{
			name: "leave", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting,
			priority: nftables.ChainPriorityNATSource, policy: nftables.ChainPolicyAccept,
			rules: []rule{when(source(m.uplink.Base), masquerade())},
		},
	}
}

// startForwarding lets the host forward IPv4. If it did not before, it still does not between the links that
// it had before: a server does not become a router of other networks because of us. The caller holds the
// lock of the namespace.
func (m *Manager) startForwarding() error {
	on, err := m.forwarding()
	if err != nil || on {
		return err
	}
	links, err := m.host.links.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	c, err := m.host.filters()
	if err != nil {
		return err
	}
	t := replaceTable(c, nftables.TableFamilyINet, forwardingTable)
	old := &nftables.Set{
		Table: t, Name: "links", ID: 1, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian,
	}
	var names []nftables.SetElement
	for _, l := range links {
		if a := l.Attrs(); a.Name != "lo" && !strings.HasPrefix(a.Alias, aliasMark) {
			names = append(names, nftables.SetElement{Key: ifname(a.Name)})
		}
	}
	if err := c.AddSet(old, names); err != nil {
		return fmt.Errorf("describe the host's links: %w", err)
	}
	member := func(key expr.MetaKey) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: key, Register: 1},
			&expr.Lookup{SourceRegister: 1, SetName: old.Name, SetID: old.ID},
		}
	}
	addChains(c, t, chain{
		name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
		priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyAccept,
		rules: []rule{when(member(expr.MetaKeyIIFNAME), member(expr.MetaKeyOIFNAME), drop())},
	})
	// The note before the deed: a crash between them leaves a note about nothing, which is harmless.
	if err := c.Flush(); err != nil {
		return fmt.Errorf("note that forwarding was off: %w", err)
	}
	m.log.Info("turning on IPv4 forwarding; it is turned off again at clean-up")
	return m.host.do(func() error { return writeSysctls(sysctl{"ipv4/ip_forward", "1"}) })
}

func (m *Manager) forwarding() (on bool, err error) {
	err = m.host.do(func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		on = strings.TrimSpace(string(b)) == "1"
		return err
	})
	return on, err
}

// closeOutside removes what openOutside of any manager of this RunDir made. The last manager of the host
// turns forwarding off again, if it was off before the first.
func (m *Manager) closeOutside() error {
	outer := m.outer()
	unlock, err := outer.lock()
	if err != nil {
		return err
	}
	defer unlock()
	c, err := outer.filters()
	if err != nil {
		return err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list filter tables: %w", err)
	}
	var own, note *nftables.Table
	others := false
	for _, t := range tables {
		switch {
		case t.Name == m.outerTable():
			own = t
		case t.Name == forwardingTable:
			note = t
		case strings.HasPrefix(t.Name, tablePrefix):
			others = true
		}
	}
	if note != nil && !others {
		if err := outer.do(func() error { return writeSysctls(sysctl{"ipv4/ip_forward", "0"}) }); err != nil {
			return err
		}
		c.DelTable(note)
	}
	if own != nil {
		c.DelTable(own)
	}
	m.outsideReady = false
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove filters at the uplinks: %w", err)
	}
	return nil
}

// uplinkMTU is that of the way out of the host, so that guests need not find it out packet by packet.
func (m *Manager) uplinkMTU() (int, error) {
	const ethernet = 1500
	if m.outside == nil {
		return ethernet, nil
	}
	routes, err := m.outside.links.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return 0, fmt.Errorf("list routes: %w", err)
	}
	mtu := ethernet
	for _, r := range routes {
		if p, ok := fromIPNet(r.Dst); r.Dst != nil && (!ok || p.Bits() > 0) {
			continue
		}
		l, err := m.outside.links.LinkByIndex(r.LinkIndex)
		if isNoLink(err) || (err == nil && l.Attrs().MTU < 1280) {
			continue
		}
		if err != nil {
			return 0, errors.Join(errors.New("find the way out"), err)
		}
		mtu = min(mtu, l.Attrs().MTU)
	}
	return mtu, nil
}

func fromIPNet(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	p := netip.PrefixFrom(a.Unmap(), bits)
	return p, ok && p.IsValid()
}
