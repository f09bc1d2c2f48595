package proxy

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// Each benchmark runs direct and through the proxy: it is the ratio that counts.
func versus(b *testing.B, backend netip.AddrPort, run func(b *testing.B, at netip.AddrPort)) {
	b.Run("direct", func(b *testing.B) { run(b, backend) })
	b.Run("proxy", func(b *testing.B) {
		p := start(b, Options{})
		at := freePort(b)
		p.apply(one(at, active("a", backend)))
		run(b, at)
	})
}

func BenchmarkThroughput(b *testing.B) {
	const chunk = 1 << 20
	backend := server(b, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	versus(b, backend, func(b *testing.B, at netip.AddrPort) {
		c, err := net.Dial("tcp", at.String())
		check(b, err)
		defer func() { _ = c.Close() }()
		buf := make([]byte, chunk)
		b.SetBytes(chunk)
		for b.Loop() {
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRoundTrip(b *testing.B) {
	versus(b, named(b, "a"), func(b *testing.B, at netip.AddrPort) {
		c := mustCall(b, at)
		for b.Loop() {
			_ = c.SetDeadline(time.Time{})
			if _, err := c.ask(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkConnections(b *testing.B) {
	backend := server(b, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	versus(b, backend, func(b *testing.B, at netip.AddrPort) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				c, err := net.Dial("tcp", at.String())
				if err != nil {
					b.Error(err)
					return
				}
				_ = c.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, c)
				_ = c.(*net.TCPConn).SetLinger(0) // no port stays behind in TIME_WAIT
				_ = c.Close()
			}
		})
	})
}

// What dialing inside a namespace costs over dialing in one's own.
func BenchmarkSocketInNamespace(b *testing.B) {
	path := b.TempDir() + "/ns"
	newNetns(b, path)
	for name, ns := range map[string]*namespace{"own": nil, "other": inside(b, path)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				p, err := ns.listenPacket(netip.MustParseAddrPort("127.0.0.1:0"))
				check(b, err)
				_ = p.Close()
			}
		})
	}
}
