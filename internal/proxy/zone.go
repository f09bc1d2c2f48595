package proxy

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// answerTTL is how long an answer may be kept, in seconds: names move when apps come and go.
const answerTTL = 5

// A zone is what one DNS configuration answers by itself. It is never changed.
type zone struct {
	records map[string][]netip.Addr // names in lower case, with the final dot
	// parents are names that have only names below them: they exist, without records.
	parents map[string]bool
	names   map[netip.Addr]string
	reverse []netip.Prefix
	forward bool
	clients map[netip.Addr]bool // for whom other questions are forwarded all the same
}

// forwards tells whether other questions of a client are passed on. A guest whose questions must not be has other
// addresses than that which it was given, the link-local one for instance, and none of them is in the list.
func (z *zone) forwards(client netip.Addr) bool { return z.forward || z.clients[client.Unmap()] }

func newZone(d DNS) *zone {
	z := &zone{
		records: make(map[string][]netip.Addr, len(d.Records)), parents: map[string]bool{Zone + ".": true},
		names: make(map[netip.Addr]string, len(d.Records)), reverse: d.Reverse, forward: d.Forward,
		clients: make(map[netip.Addr]bool, len(d.ForwardTo)),
	}
	for _, a := range d.ForwardTo {
		z.clients[a] = true
	}
	for name, addrs := range d.Records {
		fqdn := name + "."
		z.records[fqdn] = addrs
		for _, a := range addrs {
			// Of several names of an address, always the same is its name: the shortest, then the first.
			if old, ok := z.names[a]; !ok || len(fqdn) < len(old) || (len(fqdn) == len(old) && fqdn < old) {
				z.names[a] = fqdn
			}
		}
		for rest := fqdn; rest != Zone+"."; {
			_, rest, _ = strings.Cut(rest, ".")
			z.parents[rest] = true
		}
	}
	return z
}

// answer returns nil when the question is about names elsewhere.
func (z *zone) answer(q *dns.Msg) *dns.Msg {
	question := q.Question[0]
	name := strings.ToLower(question.Name)
	if name == Zone+"." || strings.HasSuffix(name, "."+Zone+".") {
		return z.answerName(q, name, question.Qtype)
	}
	if a, ok := reverseAddress(name); ok {
		return z.answerReverse(q, a, question.Qtype)
	}
	return nil
}

func (z *zone) answerName(q *dns.Msg, name string, kind uint16) *dns.Msg {
	addrs, ok := z.records[name]
	if !ok && !z.parents[name] {
		return nothing(q, dns.RcodeNameError, Zone+".")
	}
	a := reply(q)
	for _, addr := range addrs {
		head := dns.RR_Header{Name: q.Question[0].Name, Class: dns.ClassINET, Ttl: answerTTL}
		switch {
		case addr.Is4() && (kind == dns.TypeA || kind == dns.TypeANY):
			head.Rrtype = dns.TypeA
			a.Answer = append(a.Answer, &dns.A{Hdr: head, A: addr.AsSlice()})
		case addr.Is6() && (kind == dns.TypeAAAA || kind == dns.TypeANY):
			head.Rrtype = dns.TypeAAAA
			a.Answer = append(a.Answer, &dns.AAAA{Hdr: head, AAAA: addr.AsSlice()})
		}
	}
	if len(a.Answer) == 0 {
		return nothing(q, dns.RcodeSuccess, Zone+".")
	}
	return a
}

func (z *zone) answerReverse(q *dns.Msg, addr netip.Addr, kind uint16) *dns.Msg {
	ours := false
	for _, p := range z.reverse {
		ours = ours || p.Contains(addr)
	}
	if !ours {
		return nil
	}
	top := "in-addr.arpa."
	if addr.Is6() {
		top = "ip6.arpa."
	}
	name, ok := z.names[addr]
	switch {
	case !ok:
		return nothing(q, dns.RcodeNameError, top)
	case kind != dns.TypePTR && kind != dns.TypeANY:
		return nothing(q, dns.RcodeSuccess, top)
	}
	a := reply(q)
	head := dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: answerTTL}
	a.Answer = []dns.RR{&dns.PTR{Hdr: head, Ptr: name}}
	return a
}

func reply(q *dns.Msg) *dns.Msg {
	a := new(dns.Msg).SetReply(q)
	a.Authoritative, a.RecursionAvailable = true, true
	return a
}

// nothing says that there is no such name or record. The SOA tells resolvers how long that stays true.
func nothing(q *dns.Msg, code int, top string) *dns.Msg {
	a := reply(q)
	a.Rcode = code
	a.Ns = []dns.RR{&dns.SOA{
		Hdr: dns.RR_Header{Name: top, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: answerTTL},
		Ns:  "ns." + Zone + ".", Mbox: "nobody." + Zone + ".", Serial: 1,
		Refresh: 3600, Retry: 600, Expire: 86400, Minttl: answerTTL,
	}}
	return a
}

// reverseAddress reads the whole address that a name of in-addr.arpa or ip6.arpa stands for.
func reverseAddress(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(rest, ".")
		if len(labels) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
		return a, err == nil && a.Is4()
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	labels := strings.Split(rest, ".")
	if !ok || len(labels) != 32 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i, label := range labels {
		n, err := strconv.ParseUint(label, 16, 4)
		if err != nil || len(label) != 1 {
			return netip.Addr{}, false
		}
		b[15-i/2] |= byte(n) << (4 * (i % 2))
	}
	return netip.AddrFrom16(b), true
}
