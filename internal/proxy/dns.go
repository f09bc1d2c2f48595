package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Bounds of one DNS server, so that one environment's guests cannot take it from the others'.
const (
	queriesPerSecond = 1000 // for each source address, and at most as many at once
	maxForwarding    = 256  // questions that wait for the host's resolvers
	maxDNSConns      = 64   // TCP connections
	maxUDPAnswer     = 1232 // bytes; what fits into one packet on any link
	dnsIdle          = 10 * time.Second
)

// A dnsServer answers at one address, over UDP and TCP.
type dnsServer struct {
	engine *engine
	key    socketKey
	// zone is what it answers.
	zone       atomic.Pointer[zone]
	queries    atomic.Uint64
	dropped    atomic.Uint64
	limit      *limiter
	forwarding gate

	// Owned by whoever holds engine.mu.
	ns     *namespace
	udp    *dns.Server
	tcp    *dns.Server
	ended  sync.WaitGroup
	lastMu sync.Mutex
	last   error // guarded by lastMu
}

func newDNSServer(e *engine, key socketKey) *dnsServer {
	s := &dnsServer{engine: e, key: key, limit: newLimiter(queriesPerSecond)}
	s.forwarding.setLimit(maxForwarding)
	return s
}

// bind serves, or goes on serving, in ns. The caller holds engine.mu.
func (s *dnsServer) bind(ns *namespace, nsErr error) {
	if s.udp != nil && s.ns == ns && nsErr == nil {
		return
	}
	s.unbind()
	s.ns = ns
	if nsErr != nil {
		s.setError(nsErr)
		return
	}
	p, err := ns.listenPacket(s.key.address)
	if err != nil {
		s.setError(explainBind(ns, s.key.address, "udp", err))
		return
	}
	l, err := ns.listenNet(s.key.address)
	if err != nil {
		_ = p.Close()
		s.setError(explainBind(ns, s.key.address, "tcp", err))
		return
	}
	s.use(p, l)
}

// use serves on both sockets.
func (s *dnsServer) use(p net.PacketConn, l *net.TCPListener) {
	s.setError(nil)
	s.udp = &dns.Server{PacketConn: p, Handler: s, UDPSize: 4096}
	s.tcp = &dns.Server{
		Listener: &boundedListener{TCPListener: l, bound: maxDNSConns}, Handler: s,
		MaxTCPQueries: 128, IdleTimeout: func() time.Duration { return dnsIdle },
	}
	for _, server := range []*dns.Server{s.udp, s.tcp} {
		// Shutting down a server that has not begun yet would do nothing.
		begun := make(chan struct{})
		server.NotifyStartedFunc = sync.OnceFunc(func() { close(begun) })
		s.ended.Go(func() {
			if err := server.ActivateAndServe(); err != nil {
				s.setError(fmt.Errorf("serve DNS on %v: %w", s.key.address, err))
			}
			server.NotifyStartedFunc()
		})
		<-begun
	}
}

// unbind stops serving and waits for answers that are being given. The caller holds engine.mu.
func (s *dnsServer) unbind() {
	if s.udp == nil {
		return
	}
	// Errors say that the server had stopped by itself.
	_, _ = s.udp.Shutdown(), s.tcp.Shutdown()
	s.ended.Wait()
	s.udp, s.tcp = nil, nil
}

func (s *dnsServer) setError(err error) {
	s.lastMu.Lock()
	defer s.lastMu.Unlock()
	if err != nil && (s.last == nil || s.last.Error() != err.Error()) {
		s.engine.log.Warn("cannot serve DNS, will try again", "err", err)
	}
	s.last = err
}

func (s *dnsServer) error() error {
	s.lastMu.Lock()
	defer s.lastMu.Unlock()
	return s.last
}

func (s *dnsServer) failed() bool { return s.error() != nil }

// ServeDNS answers one question. It implements dns.Handler.
func (s *dnsServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s.queries.Add(1)
	over := "tcp"
	source := w.RemoteAddr()
	if _, ok := source.(*net.UDPAddr); ok {
		over = "udp"
	}
	from, err := netip.ParseAddrPort(source.String())
	if err != nil || !s.limit.allow(from.Addr(), time.Now()) {
		s.dropped.Add(1)
		return
	}
	a := s.answer(q, over, from.Addr())
	if a == nil {
		s.dropped.Add(1)
		return
	}
	size := dns.MaxMsgSize
	if over == "udp" {
		size = dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, min(int(opt.UDPSize()), maxUDPAnswer))
		}
	}
	if opt := q.IsEdns0(); opt != nil {
		a.SetEdns0(maxUDPAnswer, opt.Do())
	}
	a.Truncate(size)
	// Who asked may be gone.
	_ = w.WriteMsg(a)
}

// answer returns nil for a question that is dropped.
func (s *dnsServer) answer(q *dns.Msg, over string, client netip.Addr) *dns.Msg {
	refuse := func(code int) *dns.Msg { return new(dns.Msg).SetRcode(q, code) }
	switch {
	case q.Opcode != dns.OpcodeQuery:
		return refuse(dns.RcodeNotImplemented)
	case len(q.Question) != 1:
		return refuse(dns.RcodeFormatError)
	}
	question := q.Question[0]
	switch {
	case question.Qclass != dns.ClassINET, question.Qtype == dns.TypeAXFR, question.Qtype == dns.TypeIXFR:
		return refuse(dns.RcodeRefused)
	}
	z := s.zone.Load()
	if a := z.answer(q); a != nil {
		return a
	}
	if !z.forwards(client) {
		return refuse(dns.RcodeRefused)
	}
	if !s.forwarding.tryEnter() {
		return nil
	}
	defer s.forwarding.leave()
	a, err := s.engine.forward.ask(s.engine.ctx, q, over)
	if err != nil {
		s.engine.log.Debug("DNS question not answered by the host's resolvers", "err", err)
		return refuse(dns.RcodeServerFailure)
	}
	return a
}

// A boundedListener refuses connections beyond a bound.
type boundedListener struct {
	*net.TCPListener
	bound int64
	open  atomic.Int64
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.TCPListener.AcceptTCP()
		if err != nil {
			var temporary net.Error
			if errors.As(err, &temporary) && !errors.Is(err, net.ErrClosed) {
				// The server above tries again at once.
				time.Sleep(acceptPauseMin)
			}
			return nil, err
		}
		if l.open.Add(1) > l.bound {
			l.open.Add(-1)
			// With bytes unread or not, the peer sees a reset.
			_ = errors.Join(c.SetLinger(0), c.Close())
			continue
		}
		return &boundedConn{TCPConn: c, release: sync.OnceFunc(func() { l.open.Add(-1) })}, nil
	}
}

type boundedConn struct {
	*net.TCPConn
	release func()
}

func (c *boundedConn) Close() error {
	c.release()
	return c.TCPConn.Close()
}
