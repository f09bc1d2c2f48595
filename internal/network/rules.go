package network

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A rule is a list of matches and, at its end, what to do with a packet that all of them match. The functions
// below are the vocabulary; they read like nft(8).
type rule []expr.Any

// when joins matches and verdicts to a rule.
func when(parts ...[]expr.Any) rule { return slices.Concat(parts...) }

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func accept() []expr.Any { return verdict(expr.VerdictAccept) }

func drop() []expr.Any { return verdict(expr.VerdictDrop) }

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// reject answers with "port unreachable" of the packet's own family.
func reject() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}
}

// prohibited answers with "administratively prohibited" of the packet's own family, which programs see as "no route to
// host".
func prohibited() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// field matches packets with those bytes at offset.
func field(base expr.PayloadBase, offset uint32, data ...byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data},
	}
}

func etherType(t uint16) []expr.Any {
	return field(expr.PayloadBaseLLHeader, 12, binaryutil.BigEndian.PutUint16(t)...)
}

func meta(key expr.MetaKey, data ...byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
}

func iif(name string) []expr.Any { return meta(expr.MetaKeyIIFNAME, ifname(name)...) }

func oif(name string) []expr.Any { return meta(expr.MetaKeyOIFNAME, ifname(name)...) }

// iifPrefix matches every link whose name begins so.
func iifPrefix(p string) []expr.Any { return meta(expr.MetaKeyIIFNAME, []byte(p)...) }

func oifPrefix(p string) []expr.Any { return meta(expr.MetaKeyOIFNAME, []byte(p)...) }

func family(proto byte) []expr.Any { return meta(expr.MetaKeyNFPROTO, proto) }

func transport(proto byte) []expr.Any { return meta(expr.MetaKeyL4PROTO, proto) }

func dport(port uint16) []expr.Any {
	return field(expr.PayloadBaseTransportHeader, 2, binaryutil.BigEndian.PutUint16(port)...)
}

// destination matches packets to p, in an inet table.
func destination(p netip.Prefix) []expr.Any { return address(p, 16, 24) }

// source matches packets from p, in an inet table.
func source(p netip.Prefix) []expr.Any { return address(p, 12, 8) }

func address(p netip.Prefix, offset4, offset6 uint32) []expr.Any {
	proto, offset, size := byte(unix.NFPROTO_IPV4), offset4, 4
	if p.Addr().Is6() {
		proto, offset, size = unix.NFPROTO_IPV6, offset6, 16
	}
	return append(
		family(proto),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(size)},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(size), Mask: ipNet(p).Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	)
}

// state matches packets in one of the states of connection tracking.
func state(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func established() []expr.Any { return state(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED) }

func invalid() []expr.Any { return state(expr.CtStateBitINVALID) }

// fasterThan matches packets beyond a rate.
func fasterThan(perSecond uint64, burst uint32) []expr.Any {
	return []expr.Any{&expr.Limit{
		Type: expr.LimitTypePkts, Rate: perSecond, Unit: expr.LimitTimeSecond, Burst: burst, Over: true,
	}}
}

// notUnicast matches packets to addresses that are the namespace's own, broadcast, multicast, or unreachable.
func notUnicast() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)},
	}
}

// ifname is a link's name as the kernel compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// A chain is where a table meets packets, with its rules in order. One without a hook is for jumps.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	policy   nftables.ChainPolicy
	rules    []rule
}

// addChains adds chains and then their rules, so that jumps may lead forward.
func addChains(c *nftables.Conn, t *nftables.Table, chains ...chain) {
	made := make([]*nftables.Chain, len(chains))
	for i, ch := range chains {
		made[i] = &nftables.Chain{Name: ch.name, Table: t}
		if ch.hook != nil {
			made[i].Type, made[i].Hooknum, made[i].Priority, made[i].Policy = ch.kind, ch.hook, ch.priority, &ch.policy
		}
		c.AddChain(made[i])
	}
	for i, ch := range chains {
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: made[i], Exprs: r})
		}
	}
}

// replaceTable begins a table anew. Adding it first lets the removal succeed; all is one transaction.
func replaceTable(c *nftables.Conn, fam nftables.TableFamily, name string) *nftables.Table {
	t := &nftables.Table{Family: fam, Name: name}
	c.AddTable(t)
	c.DelTable(t)
	return c.AddTable(t)
}
