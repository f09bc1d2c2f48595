package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var testRecords = map[string][]netip.Addr{
	"web.internal":      {netip.MustParseAddr("10.101.0.1"), netip.MustParseAddr("fd00:7069:6e6e:101::1")},
	"0.web.internal":    {netip.MustParseAddr("10.100.0.2"), netip.MustParseAddr("fd00:7069:6e6e:100::2")},
	"v4.internal":       {netip.MustParseAddr("10.101.0.2")},
	"0.redis.internal":  {netip.MustParseAddr("10.100.0.7")},
	"alias.v4.internal": {netip.MustParseAddr("10.101.0.2")},
}

func TestZoneAnswers(t *testing.T) {
	z := newZone(DNS{
		Records: testRecords,
		Reverse: []netip.Prefix{netip.MustParsePrefix("10.100.0.0/15"), netip.MustParsePrefix("fd00:7069:6e6e::/48")},
	})
	for _, c := range []struct {
		name string
		kind uint16
		want string // the code, then answers; "-" when it is not answered here
	}{
		{"web.internal.", dns.TypeA, "NOERROR 10.101.0.1"},
		{"WEB.Internal.", dns.TypeA, "NOERROR 10.101.0.1"},
		{"web.internal.", dns.TypeAAAA, "NOERROR fd00:7069:6e6e:101::1"},
		{"web.internal.", dns.TypeANY, "NOERROR 10.101.0.1 fd00:7069:6e6e:101::1"},
		{"web.internal.", dns.TypeMX, "NOERROR"},
		{"v4.internal.", dns.TypeAAAA, "NOERROR"},
		{"0.web.internal.", dns.TypeA, "NOERROR 10.100.0.2"},
		{"1.web.internal.", dns.TypeA, "NXDOMAIN"},
		{"redis.internal.", dns.TypeA, "NOERROR"},
		{"nothing.internal.", dns.TypeA, "NXDOMAIN"},
		{"internal.", dns.TypeA, "NOERROR"},
		{"notinternal.", dns.TypeA, "-"},
		{"example.com.", dns.TypeA, "-"},
		{"web.internal.example.com.", dns.TypeA, "-"},
		{"1.0.101.10.in-addr.arpa.", dns.TypePTR, "NOERROR web.internal."},
		{"2.0.101.10.in-addr.arpa.", dns.TypePTR, "NOERROR v4.internal."},
		{"9.0.101.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{"1.0.101.10.in-addr.arpa.", dns.TypeTXT, "NOERROR"},
		{"1.0.168.192.in-addr.arpa.", dns.TypePTR, "-"},
		{"0.101.10.in-addr.arpa.", dns.TypePTR, "-"},
		{"x.0.101.10.in-addr.arpa.", dns.TypePTR, "-"},
		{mustReverse(t, "fd00:7069:6e6e:101::1"), dns.TypePTR, "NOERROR web.internal."},
		{mustReverse(t, "2001:db8::1"), dns.TypePTR, "-"},
	} {
		got := "-"
		if a := z.answer(new(dns.Msg).SetQuestion(c.name, c.kind)); a != nil {
			got = describe(a)
			if len(a.Answer) == 0 && len(a.Ns) != 1 {
				t.Errorf("%s: a negative answer without SOA", c.name)
			}
		}
		if got != c.want {
			t.Errorf("%s %s: got %s, want %s", dns.TypeToString[c.kind], c.name, got, c.want)
		}
	}
}

func mustReverse(t *testing.T, address string) string {
	t.Helper()
	name, err := dns.ReverseAddr(address)
	check(t, err)
	return name
}

func describe(a *dns.Msg) string {
	out := dns.RcodeToString[a.Rcode]
	for _, rr := range a.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			out += " " + rr.A.String()
		case *dns.AAAA:
			out += " " + rr.AAAA.String()
		case *dns.PTR:
			out += " " + rr.Ptr
		case *dns.TXT:
			out += " " + strings.Join(rr.Txt, "")[:4]
		}
	}
	return out
}

// resolver plays the host's: it answers any A question with 192.0.2.53 and has one large TXT record.
func resolver(t *testing.T) (o Options, asked func() []*dns.Msg) {
	t.Helper()
	var mu sync.Mutex
	var questions []*dns.Msg
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		questions = append(questions, q.Copy())
		mu.Unlock()
		a := new(dns.Msg).SetReply(q)
		head := dns.RR_Header{Name: q.Question[0].Name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET, Ttl: 60}
		switch q.Question[0].Qtype {
		case dns.TypeA:
			a.Answer = []dns.RR{&dns.A{Hdr: head, A: net.IPv4(192, 0, 2, 53)}}
		case dns.TypeTXT:
			for i := range 20 {
				a.Answer = append(a.Answer, &dns.TXT{Hdr: head, Txt: []string{fmt.Sprintf("%04d", i) + strings.Repeat("x", 200)}})
			}
		}
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			a.Truncate(1232)
		}
		_ = w.WriteMsg(a)
	})
	port := freePort(t).Port()
	var ended sync.WaitGroup
	t.Cleanup(ended.Wait)
	for _, network := range []string{"udp4", "tcp4"} {
		begun := make(chan struct{})
		s := &dns.Server{
			Addr: fmt.Sprintf("127.0.0.1:%d", port), Net: network, Handler: handler,
			NotifyStartedFunc: func() { close(begun) },
		}
		ended.Go(func() { _ = s.ListenAndServe() })
		<-begun
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	path := filepath.Join(t.TempDir(), "resolv.conf")
	check(t, os.WriteFile(path, []byte("nameserver 127.0.0.1\n"), 0o600))
	o.ResolvConf, o.resolverPort = path, fmt.Sprint(port)
	return o, func() []*dns.Msg {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(questions)
	}
}

func query(t testing.TB, network string, at netip.AddrPort, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: patience}
	a, _, err := c.Exchange(q, at.String())
	check(t, err)
	return a
}

func TestDNSServer(t *testing.T) {
	o, asked := resolver(t)
	p := start(t, o)
	at := freePort(t)
	server := DNS{Addresses: []netip.AddrPort{at}, Records: testRecords, Forward: true}
	p.apply(Config{DNS: []DNS{server}})
	for _, network := range []string{"udp", "tcp"} {
		if got := describe(query(t, network, at, new(dns.Msg).SetQuestion("web.internal.", dns.TypeA))); got != "NOERROR 10.101.0.1" {
			t.Errorf("%s: web.internal is %s", network, got)
		}
		if n := len(asked()); n > 0 {
			t.Fatalf("the host's resolver was asked %d times about our own names", n)
		}
	}
	q := new(dns.Msg).SetQuestion("Example.com.", dns.TypeA)
	q.SetEdns0(4096, false)
	q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
	a := query(t, "udp", at, q)
	if got := describe(a); got != "NOERROR 192.0.2.53" || a.Id != q.Id || a.Question[0].Name != "Example.com." {
		t.Errorf("forwarded: %s, %v", got, a)
	}
	if seen := asked()[0]; seen.Id == q.Id || len(seen.IsEdns0().Option) > 0 {
		t.Errorf("the guest's id or options were passed on: %v", seen)
	}
	// What does not fit is marked, and comes whole over TCP.
	if a := query(t, "udp", at, new(dns.Msg).SetQuestion("big.example.", dns.TypeTXT)); !a.Truncated || a.Len() > 512 {
		t.Errorf("large answer over UDP: truncated %v, %d bytes", a.Truncated, a.Len())
	}
	if a := query(t, "tcp", at, new(dns.Msg).SetQuestion("big.example.", dns.TypeTXT)); a.Truncated || len(a.Answer) != 20 {
		t.Errorf("large answer over TCP: truncated %v, %d records", a.Truncated, len(a.Answer))
	}
	for name, spoil := range map[string]func(*dns.Msg){
		"REFUSED": func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeAXFR },
		"NOTIMP":  func(q *dns.Msg) { q.Opcode = dns.OpcodeStatus },
	} {
		q := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
		spoil(q)
		if got := describe(query(t, "tcp", at, q)); got != name {
			t.Errorf("got %s, want %s", got, name)
		}
	}
	// Without forwarding, and with other records, on the same sockets.
	server.Forward = false
	server.Records = map[string][]netip.Addr{"web.internal": {netip.MustParseAddr("10.101.0.9")}}
	before := len(asked())
	p.apply(Config{DNS: []DNS{server}})
	if got := describe(query(t, "udp", at, new(dns.Msg).SetQuestion("example.com.", dns.TypeA))); got != "REFUSED" {
		t.Errorf("without forwarding: %s", got)
	}
	if got := describe(query(t, "udp", at, new(dns.Msg).SetQuestion("web.internal.", dns.TypeA))); got != "NOERROR 10.101.0.9" {
		t.Errorf("after the change: %s", got)
	}
	// For some only, and this client is none of them. Then it is.
	elsewhere := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
	server.ForwardTo = []netip.Addr{netip.MustParseAddr("10.100.0.7"), netip.MustParseAddr("::1")}
	p.apply(Config{DNS: []DNS{server}})
	for _, over := range []string{"udp", "tcp"} {
		if got := describe(query(t, over, at, elsewhere)); got != "REFUSED" {
			t.Errorf("forwarding to others, over %s: %s", over, got)
		}
		if got := describe(query(t, over, at, new(dns.Msg).SetQuestion("web.internal.", dns.TypeA))); got != "NOERROR 10.101.0.9" {
			t.Errorf("forwarding to others, over %s, a name of the environment: %s", over, got)
		}
	}
	if len(asked()) != before {
		t.Error("the host's resolver was asked although forwarding is off")
	}
	server.ForwardTo = append(server.ForwardTo, at.Addr()) // on this machine client and server have one address
	p.apply(Config{DNS: []DNS{server}})
	for _, over := range []string{"udp", "tcp"} {
		if got := describe(query(t, over, at, elsewhere)); got != "NOERROR 192.0.2.53" {
			t.Errorf("forwarding to this client, over %s: %s", over, got)
		}
	}
	if s := p.status().DNS[0]; s.Queries < 8 || s.Dropped != 0 {
		t.Errorf("status: %+v", s)
	}
	p.apply(Config{})
	c := dns.Client{Net: "tcp", Timeout: patience}
	if _, _, err := c.Exchange(new(dns.Msg).SetQuestion("web.internal.", dns.TypeA), at.String()); err == nil {
		t.Error("a server that left the configuration still answers")
	}
}

func TestDNSWithoutResolvers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	p := start(t, Options{ResolvConf: path})
	at := freePort(t)
	p.apply(Config{DNS: []DNS{{Addresses: []netip.AddrPort{at}, Forward: true}}})
	ask := func() string {
		return describe(query(t, "udp", at, new(dns.Msg).SetQuestion("example.com.", dns.TypeA)))
	}
	if got := ask(); got != "SERVFAIL" {
		t.Errorf("no resolv.conf: %s", got)
	}
	check(t, os.WriteFile(path, []byte("# nothing\n"), 0o600))
	if got := ask(); got != "SERVFAIL" {
		t.Errorf("empty resolv.conf: %s", got)
	}
}

func TestDNSPortTaken(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t) // for TCP too
	u, err := net.ListenPacket("udp4", at.String())
	check(t, err)
	defer func() { _ = u.Close() }()
	s, err := p.Apply(t.Context(), Config{DNS: []DNS{{Addresses: []netip.AddrPort{at}}}})
	check(t, err)
	if want := fmt.Sprintf("(pid %d)", os.Getpid()); !strings.Contains(s.DNS[0].Error, want) {
		t.Errorf("error %q, want one with %q", s.DNS[0].Error, want)
	}
	check(t, u.Close())
	eventually(t, "bound", func() (bool, string) {
		e := p.status().DNS[0].Error
		return e == "", e
	})
}

func TestLimiter(t *testing.T) {
	l := newLimiter(10)
	a, b := netip.MustParseAddr("10.100.0.2"), netip.MustParseAddr("10.100.0.3")
	now := time.Unix(1000, 0)
	allowed := func(source netip.Addr, n int) (count int) {
		for range n {
			if l.allow(source, now) {
				count++
			}
		}
		return count
	}
	if got := allowed(a, 100); got != 10 {
		t.Errorf("at once: %d", got)
	}
	if got := allowed(b, 5); got != 5 {
		t.Errorf("another source: %d", got)
	}
	now = now.Add(500 * time.Millisecond)
	if got := allowed(a, 100); got != 5 {
		t.Errorf("after half a second: %d", got)
	}
	for i := range 2 * maxSources {
		l.allow(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), now)
	}
	if len(l.sources) > maxSources {
		t.Errorf("%d sources are remembered", len(l.sources))
	}
	now = now.Add(2 * time.Second)
	if !l.allow(netip.MustParseAddr("10.8.0.1"), now) {
		t.Error("no room for a new source after the others were quiet")
	}
}
