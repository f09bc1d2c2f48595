package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// helloTimeout is how long a client has for what must come before it is known where it wants to go.
const helloTimeout = 5 * time.Second

// A stranger is a client whose backend is not known yet.
type stranger struct {
	*conn
	// from and to are the ends of its connection, by what a load balancer says if there is one. To is looked
	// up when it is asked for.
	from, to netip.AddrPort
	// hello is what it has sent so far, to be passed on.
	hello []byte
	// choose gives the backends for it, as of now.
	choose func() *pool
	// through is the connection in its TLS, when it is of another host; host is which.
	through *secured
	host    string
}

// client is the client's side of a relay.
func (s *stranger) client() side {
	if s.through != nil {
		return s.through
	}
	return s.conn
}

// refuse ends a connection that was led nowhere. Of another host's, the answer has to arrive.
func (s *stranger) refuse() {
	if s.through != nil {
		_ = s.through.Close()
		return
	}
	s.conn.reset()
}

func (l *listener) serve(client *conn, peer netip.AddrPort) {
	defer l.places.leave()
	defer l.engine.places.leave()
	l.total.Add(1)
	s := &stranger{conn: client, from: peer, choose: l.backends.everybody}
	known := l.receive(s)
	if s.host != "" {
		defer l.hosts.leave(s.host, s.through)
	}
	if !known {
		return
	}
	b, r, err := l.connect(l.engine.ctx, s)
	if err := l.welcome(s, err); err != nil {
		if r != nil {
			r.abort()
			l.backends.done(b, r)
		}
		l.refused.Add(1)
		s.refuse()
		l.engine.log.Debug("connection refused", "listener", l.key.address, "err", err)
		return
	}
	defer l.backends.done(b, r)
	r.run()
}

// receive reads what must come first. It is false when the client was turned away, and closed.
func (l *listener) receive(s *stranger) bool {
	trusted, protocol := l.trusts(s.from.Addr())
	if !trusted && protocol != SNI && protocol != PEER {
		return true
	}
	turn := l.waiting.enter(s.conn)
	defer l.waiting.leave(turn)
	s.readUntil(time.Now().Add(l.engine.helloTimeout))
	if trusted {
		from, to, err := readHeader(s)
		if err != nil {
			l.turnAway(s, turn, err)
			return false
		}
		if from.IsValid() {
			s.from, s.to = from, to
		}
	}
	var err error
	switch protocol {
	case SNI:
		err = l.readHello(s)
	case PEER:
		s.writeUntil(time.Now().Add(l.engine.helloTimeout))
		err = l.greet(l.engine.ctx, s)
	}
	if err != nil {
		l.turnAway(s, turn, err)
		return false
	}
	s.readUntil(time.Time{})
	s.writeUntil(time.Time{})
	return true
}

var (
	errNoName      = errors.New("asks for no server name")
	errUnknownName = errors.New("asks for a server name that nobody has")
)

// readHello finds out where a TLS client wants to go.
func (l *listener) readHello(s *stranger) error {
	buf := buffers.Get().(*[copySize]byte)
	defer buffers.Put(buf)
	var h helloReader
	for {
		n, err := s.Read(buf[:])
		if err != nil {
			return err
		}
		done, err := h.feed(buf[:n])
		if err != nil {
			return err
		}
		if done {
			break
		}
	}
	if h.ech {
		l.turnedAway.ech.Add(1)
	}
	if h.name == "" {
		return errNoName
	}
	s.hello = h.raw
	s.choose = func() *pool { return l.backends.of(h.name) }
	if s.choose() == nil {
		return fmt.Errorf("%w: %s", errUnknownName, h.name)
	}
	return nil
}

// connect gives a client a connection to one of its backends. Nothing has been sent yet, so as long as one
// cannot be reached, the next is tried. The relay is registered with its backend, for done to undo.
func (l *listener) connect(ctx context.Context, s *stranger) (*backend, *relay, error) {
	until := time.Now().Add(attemptsTime * l.engine.connectTimeout)
	var tried map[*backend]bool // made when there is a second try
	last := errNoBackend
	for {
		p := s.choose()
		b := l.backends.pick(p, tried)
		if b == nil {
			return nil, nil, last
		}
		server, err := l.dial(ctx, b, until)
		if err == nil {
			r := &relay{client: s.client(), server: server, traffic: &l.traffic}
			switch {
			case !l.backends.register(b, r):
				// It left the configuration just now: another one may take the connection.
				err = errors.Join(errGone, server.Close())
			default:
				if err = l.introduce(s, server, p.header); err == nil {
					return b, r, nil
				}
				// Something was sent, so no other may be tried.
				l.backends.done(b, r)
				return nil, nil, errors.Join(fmt.Errorf("begin with %s: %w", b.key.id, err), server.Close())
			}
		}
		last = fmt.Errorf("connect to %s at %v: %w", b.key.id, b.key.address, err)
		l.backends.giveUp(b, err)
		if ctx.Err() != nil || !time.Now().Before(until) {
			return nil, nil, last
		}
		if tried == nil {
			tried = map[*backend]bool{}
		}
		tried[b] = true
	}
}

func (l *listener) dial(ctx context.Context, b *backend, until time.Time) (side, error) {
	ns, err := l.backends.place(b)
	if err != nil {
		return nil, err
	}
	if b.key.datagrams {
		return l.dialDatagrams(b, ns)
	}
	c, err := ns.connect(b.key.address, unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	// On one host a connection is made at once; only what takes longer needs a clock.
	if c.isConnected() && b.key.peer == "" {
		return c, nil
	}
	timeout := min(l.engine.connectTimeout, time.Until(until))
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout.Round(time.Millisecond)))
	defer cancel()
	if err := c.awaitConnected(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	if b.key.peer != "" {
		return l.engine.secure(ctx, c, b.key.peer, b.key.target)
	}
	return c, nil
}

// introduce sends a backend what comes before what the client says from here on.
func (l *listener) introduce(s *stranger, server side, header bool) error {
	var first []byte
	if header {
		if !s.to.IsValid() {
			s.to = s.local()
		}
		first = proxyHeader(s.from, s.to)
	}
	if len(s.hello) > 0 {
		first = append(first, s.hello...)
		l.traffic.received.Add(uint64(len(s.hello)))
	}
	if len(first) == 0 {
		return nil
	}
	server.writeUntil(time.Now().Add(l.engine.connectTimeout))
	if _, err := server.Write(first); err != nil {
		return err
	}
	server.writeUntil(time.Time{})
	return nil
}

// turnAway closes a client that cannot be led anywhere, and tells it why as far as its protocol lets us.
func (l *listener) turnAway(s *stranger, turn *turn, err error) {
	var answer []byte
	// A fatal alert, as TLS has it: unrecognized_name or decode_error.
	alert := func(code byte) []byte { return []byte{21, 3, 3, 0, 2, 2, code} }
	count := &l.turnedAway.left
	switch {
	case turn.evicted():
		count = &l.turnedAway.evicted
	case errors.Is(err, os.ErrDeadlineExceeded):
		count = &l.turnedAway.slow
	case errors.Is(err, errNoHost), errors.Is(err, errHostFull):
		count = &l.turnedAway.notHost
	case errors.Is(err, errNoTarget):
		count = &l.turnedAway.unknownName
	case errors.Is(err, errHeader):
		count = &l.turnedAway.header
	case errors.Is(err, errNoName):
		count, answer = &l.turnedAway.noName, alert(112)
	case errors.Is(err, errUnknownName):
		count, answer = &l.turnedAway.unknownName, alert(112)
	case errors.Is(err, errPlainHTTP):
		count, answer = &l.turnedAway.plainHTTP, []byte(httpAnswer)
	case errors.Is(err, errNotTLS):
		count = &l.turnedAway.notTLS
	case errors.Is(err, errMalformed), errors.Is(err, errTooLong):
		count, answer = &l.turnedAway.malformed, alert(50)
	}
	count.Add(1)
	l.engine.log.Debug("client turned away", "listener", l.key.address, "client", s.from, "err", err)
	defer func() { _ = s.Close() }()
	if answer == nil {
		return
	}
	s.writeUntil(time.Now().Add(time.Second))
	if _, err := s.Write(answer); err != nil {
		return
	}
	// Closing with bytes unread would make the kernel throw the answer away.
	s.CloseWrite()
	s.readUntil(time.Now().Add(time.Second))
	_, _ = io.Copy(io.Discard, io.LimitReader(s, maxHelloRaw))
}

const httpAnswer = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 38\r\n\r\n" +
	"This port is for TLS. Try https://...\n"
