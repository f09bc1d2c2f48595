package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The filters inside a namespace are two tables: one at the taps, which holds guests to their own addresses,
// and one that says what the namespace itself accepts and forwards.
const (
	guestTable = "guests"
	innerTable = "environment"
)

// New flows per second that an environment may open outward; what it may open at once is newFlowsBurst. They
// bound how fast a hostile guest can fill the host's table of connections, which all environments share.
const (
	newFlowsPerSecond = 2000
	newFlowsBurst     = 4000
)

var linkLocal4 = netip.MustParsePrefix("169.254.0.0/16")

// setGuards puts both tables in place, for exactly the guests of s, in one transaction.
func setGuards(ns *namespace, s *envState) error {
	c, err := ns.filters()
	if err != nil {
		return err
	}
	t := replaceTable(c, nftables.TableFamilyBridge, guestTable)
	four, six, err := sourceSets(t)
	if err != nil {
		return err
	}
	var elements4, elements6 []nftables.SetElement
	for _, g := range s.Guests {
		e4, e6 := sourceElements(g)
		elements4, elements6 = append(elements4, e4...), append(elements6, e6...)
	}
	if err := errors.Join(c.AddSet(four, elements4), c.AddSet(six, elements6)); err != nil {
		return fmt.Errorf("describe filters at the taps: %w", err)
	}
	addChains(c, t, tapChains(four, six)...)
	inner := replaceTable(c, nftables.TableFamilyINet, innerTable)
	outgoing := outgoingSet(inner)
	var free []nftables.SetElement
	for _, g := range s.Guests {
		if g.goesOut() {
			free = append(free, outgoingElement(g))
		}
	}
	if err := c.AddSet(outgoing, free); err != nil {
		return fmt.Errorf("describe filters of the environment: %w", err)
	}
	addChains(c, inner, innerChains(outgoing)...)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("set filters (the kernel needs nftables for bridges: CONFIG_NF_TABLES_BRIDGE): %w", err)
	}
	return nil
}

// sourceSets hold (tap, MAC, IP address): what a guest may send from.
func sourceSets(t *nftables.Table) (four, six *nftables.Set, err error) {
	key4, err4 := nftables.ConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr)
	key6, err6 := nftables.ConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIP6Addr)
	four = &nftables.Set{Table: t, Name: "source4", ID: 1, KeyType: key4, Concatenation: true}
	six = &nftables.Set{Table: t, Name: "source6", ID: 2, KeyType: key6, Concatenation: true}
	return four, six, errors.Join(err4, err6)
}

func sourceElements(g *guestState) (four, six []nftables.SetElement) {
	key := func(a netip.Addr) nftables.SetElement {
		// Each part is padded to a multiple of four bytes.
		k := append(ifname(g.tap()), g.mac()...)
		k = append(k, 0, 0)
		return nftables.SetElement{Key: append(k, a.AsSlice()...)}
	}
	return []nftables.SetElement{key(g.ipv4())}, []nftables.SetElement{key(g.ipv6()), key(g.linkLocal())}
}

// outgoingSet holds the addresses of the guests whose packets may leave. That a guest sends from its own address only
// is what the filter at its tap sees to. Who is not in the set stays inside.
func outgoingSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "outgoing", ID: 3, KeyType: nftables.TypeIPAddr}
}

func outgoingElement(g *guestState) nftables.SetElement {
	return nftables.SetElement{Key: g.ipv4().AsSlice()}
}

// setEgress lets the packets of g leave, or keeps them inside: those of connections that there are, too.
func setEgress(ns *namespace, g *guestState, out bool) error {
	c, err := ns.filters()
	if err != nil {
		return err
	}
	set := outgoingSet(&nftables.Table{Family: nftables.TableFamilyINet, Name: innerTable})
	element := []nftables.SetElement{outgoingElement(g)}
	if out {
		err = c.SetAddElements(set, element)
	} else {
		err = c.SetDeleteElements(set, element)
	}
	if err == nil {
		err = c.Flush()
	}
	if !out && errors.Is(err, unix.ENOENT) {
		return nil // it was not in there
	}
	if err != nil {
		return fmt.Errorf("change what a guest may reach: %w", err)
	}
	return nil
}

// notIn matches packets of IPv4 whose source is not in set.
func notIn(set *nftables.Set) []expr.Any {
	return append(
		family(unix.NFPROTO_IPV4),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: true},
	)
}

// allowGuest lets g send from its addresses.
func allowGuest(ns *namespace, g *guestState) error {
	err := changeSources(ns, func(c *nftables.Conn, four, six *nftables.Set) error {
		e4, e6 := sourceElements(g)
		return errors.Join(c.SetAddElements(four, e4), c.SetAddElements(six, e6))
	})
	if err != nil {
		return err
	}
	return setEgress(ns, g, g.goesOut())
}

// forbidGuest undoes allowGuest. What was not allowed needs no forbidding.
func forbidGuest(ns *namespace, g *guestState) error {
	err := changeSources(ns, func(c *nftables.Conn, four, six *nftables.Set) error {
		e4, e6 := sourceElements(g)
		return errors.Join(c.SetDeleteElements(four, e4), c.SetDeleteElements(six, e6))
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return setEgress(ns, g, false)
}

func changeSources(ns *namespace, change func(c *nftables.Conn, four, six *nftables.Set) error) error {
	c, err := ns.filters()
	if err != nil {
		return err
	}
	four, six, err := sourceSets(&nftables.Table{Family: nftables.TableFamilyBridge, Name: guestTable})
	if err == nil {
		err = change(c, four, six)
	}
	if err == nil {
		err = c.Flush()
	}
	if err != nil {
		return fmt.Errorf("change filter at the tap: %w", err)
	}
	return nil
}

// from matches frames whose link, source MAC, and address at offset of the network header are in set.
func from(set *nftables.Set, offset, length uint32) []expr.Any {
	// Registers 1 to 4 are of 16 bytes and the same as 8 to 23 of four: the link's name fills register 1,
	// the MAC the first half of register 2, and the address follows at 14.
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Payload{DestRegister: 2, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
		&expr.Payload{DestRegister: 14, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
	}
}

// fromARP is from for the sender's MAC as the ARP message itself states it.
func fromARP(set *nftables.Set) []expr.Any {
	m := from(set, 14, 4)
	m[1] = &expr.Payload{DestRegister: 2, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 6}
	return m
}

// tapChains pass what a guest says in its own name, and nothing else: no other protocol, no VLAN tag.
func tapChains(four, six *nftables.Set) []chain {
	const (
		nextHeader, icmpType, ndTarget = 6, 40, 48
		routerAdvert, advert, redirect = 134, 136, 137
	)
	next := func(proto byte) []expr.Any {
		return field(expr.PayloadBaseNetworkHeader, nextHeader, proto)
	}
	icmp := func(t byte) []expr.Any { return field(expr.PayloadBaseNetworkHeader, icmpType, t) }
	return []chain{
		{
			name: "tap", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting,
			priority: nftables.ChainPriorityRef(-300), policy: nftables.ChainPolicyDrop,
			rules: []rule{
				when(etherType(unix.ETH_P_IP), from(four, 12, 4), accept()),
				when(etherType(unix.ETH_P_ARP), from(four, 14, 4), fromARP(four), accept()),
				when(etherType(unix.ETH_P_IPV6), from(six, 8, 16), jump("ipv6")),
			},
		},
		{
			// Other extension headers than fragments would hide a neighbour advertisement from the rules
			// here; fragmented ones are ignored by whoever gets them (RFC 6980).
			name: "ipv6",
			rules: []rule{
				when(next(unix.IPPROTO_TCP), accept()),
				when(next(unix.IPPROTO_UDP), accept()),
				when(next(unix.IPPROTO_FRAGMENT), accept()),
				when(next(unix.IPPROTO_ICMPV6), icmp(routerAdvert), drop()),
				when(next(unix.IPPROTO_ICMPV6), icmp(redirect), drop()),
				when(next(unix.IPPROTO_ICMPV6), icmp(advert), from(six, ndTarget, 16), accept()),
				when(next(unix.IPPROTO_ICMPV6), icmp(advert), drop()),
				when(next(unix.IPPROTO_ICMPV6), accept()),
			},
		},
	}
}

// innerChains say what the namespace accepts for itself (DNS, connections to virtual addresses) and what it
// passes outward.
func innerChains(outgoing *nftables.Set) []chain {
	guests := iif(bridgeName)
	outward := when(guests, oif(uplinkName))
	single := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	input := []rule{
		when(iif("lo"), accept()),
		when(established(), accept()),
		when(invalid(), drop()),
		when(guests, transport(unix.IPPROTO_ICMP), accept()),
		when(guests, transport(unix.IPPROTO_ICMPV6), accept()),
	}
	for _, gateway := range []netip.Addr{Gateway4, Gateway6} {
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			input = append(input, when(guests, destination(single(gateway)), transport(proto), dport(53), accept()))
		}
	}
	for _, virtual := range []netip.Prefix{Virtual4, Virtual6} {
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			input = append(input, when(guests, destination(virtual), transport(proto), accept()))
		}
	}
	input = append(input, when(guests, reject()))
	return []chain{
		{
			name: "input", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput,
			priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop, rules: input,
		},
		{
			name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
			priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop,
			rules: []rule{
				// Only with br_netfilter do frames between guests come by here.
				when(guests, oif(bridgeName), accept()),
				when(iif(uplinkName), oif(bridgeName), established(), accept()),
				when(outward, notIn(outgoing), prohibited()),
				when(outward, destination(linkLocal4), drop()),
				when(outward, destination(Subnet4), drop()),
				// They would leave untranslated.
				when(outward, invalid(), drop()),
				when(outward, state(expr.CtStateBitNEW), fasterThan(newFlowsPerSecond, newFlowsBurst), drop()),
				when(outward, family(unix.NFPROTO_IPV4), accept()),
			},
		},
		{
			name: "leave", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting,
			priority: nftables.ChainPriorityNATSource, policy: nftables.ChainPolicyAccept,
			rules: []rule{when(oif(uplinkName), masquerade())},
		},
	}
}
