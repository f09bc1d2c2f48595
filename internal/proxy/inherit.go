package proxy

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// offer adds what the listener has. The caller holds engine.mu.
func (l *listener) offer(o *offering) error {
	if l.socket == nil {
		return nil
	}
	return o.add(about(passedSocket, l.key, l.ns), *l.socket)
}

func about(kind string, key socketKey, ns *namespace) passed {
	return passed{Kind: kind, Netns: key.netns, Address: key.address, Transport: key.transport, Inode: ns.id()}
}

// takeOver listens on the socket of an older proxy, if there is one.
func (l *listener) takeOver(ns *namespace, in *inherited) {
	fd, ok := take(in.sockets, l.key, ns)
	if !ok {
		return
	}
	c, err := newConn(fd, "inherited")
	if err != nil {
		_ = unix.Close(fd)
		return
	}
	l.ns = ns
	l.use(socket{c})
}

// resume does nothing: connections were taken all the time.
func (*listener) resume() {}

// offer stops all traffic, and adds the socket and the sessions. The caller holds engine.mu.
func (d *datagrams) offer(o *offering) error {
	s := d.socket.Load()
	if s == nil {
		return nil
	}
	d.pause()
	p := about(passedSocket, d.key, d.ns)
	if err := o.add(p, *s); err != nil {
		return err
	}
	p.Kind = passedSession
	var errs []error
	for _, s := range d.all() {
		if !s.pause() {
			continue
		}
		d.mu.Lock()
		k := s.backend.key
		d.mu.Unlock()
		p.Client, p.To, p.Steady, p.Tunnelled = s.key.client, s.key.to, s.isSteady, s.tunnelled
		p.Backend = &Backend{ID: k.id, Netns: k.netns, Address: k.address, Peer: k.peer, Target: k.target}
		errs = append(errs, o.add(p, socket{s.conn}))
	}
	return errors.Join(errs...)
}

func (d *datagrams) all() []*session {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]*session, 0, len(d.sessions))
	for _, s := range d.sessions {
		list = append(list, s)
	}
	return list
}

// pause stops passing answers on, and waits until nobody does. It is false when the session is over.
func (s *session) pause() bool {
	s.owner.mu.Lock()
	s.paused = true
	over := s.over
	s.conn.readUntil(time.Unix(1, 0))
	s.owner.mu.Unlock()
	s.reading.Wait()
	return !over
}

// resume goes on after offer, because nobody has taken over.
func (d *datagrams) resume() {
	if s := d.socket.Load(); s != nil {
		d.read(*s)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.sessions {
		if s.paused {
			s.read()
		}
	}
}

// takeOver reads from the socket of an older proxy, and goes on with its sessions.
func (d *datagrams) takeOver(ns *namespace, in *inherited) {
	fd, ok := take(in.sockets, d.key, ns)
	if !ok {
		return
	}
	c, err := newConn(fd, "inherited")
	if err != nil {
		_ = unix.Close(fd)
		return
	}
	d.ns = ns
	s := socket{c}
	d.socket.Store(&s) // which answers go out by, from the first session on
	d.mu.Lock()
	for _, s := range in.sessions[d.key] {
		d.adopt(s)
	}
	d.mu.Unlock()
	delete(in.sessions, d.key)
	d.use(s)
}

// adopt goes on with a session whose backend is still there. The caller holds mu.
func (d *datagrams) adopt(from inheritedSession) {
	b := d.backends.choose(from.Backend)
	if b == nil || !d.engine.places.tryEnter() {
		d.backends.unchoose(b)
		_ = unix.Close(from.fd)
		return
	}
	c, err := newConn(from.fd, "backend")
	if err != nil {
		_ = unix.Close(from.fd)
		d.engine.places.leave()
		d.backends.unchoose(b)
		return
	}
	s := newSession(d, sessionKey{from.Client, from.To}, b, c)
	s.isSteady, s.tunnelled = from.Steady, from.Tunnelled
	s.answered.Store(from.Steady)
	d.backends.register(b, s)
	d.add(s)
}

// choose is pick for a backend that was picked before, whatever its state is now.
func (s *backends) choose(c *Backend) *backend {
	if c == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.known[c.key()]
	if b != nil {
		b.open++
	}
	return b
}

func (s *backends) unchoose(b *backend) {
	if b == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b.open--
}

// leave ends the sessions here: they go on elsewhere.
func (d *datagrams) leave() {
	d.unbind()
	for _, s := range d.all() {
		d.mu.Lock()
		s.end()
		d.mu.Unlock()
	}
}

// offer adds both sockets. The caller holds engine.mu.
func (s *dnsServer) offer(o *offering) error {
	if s.udp == nil {
		return nil
	}
	for kind, c := range map[string]any{passedDNSUDP: s.udp.PacketConn, passedDNSTCP: s.tcp.Listener.(*boundedListener).TCPListener} {
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			return err
		}
		if err := o.add(about(kind, s.key, s.ns), socket{&conn{raw: raw}}); err != nil {
			return err
		}
	}
	return nil
}

// takeOver serves on the sockets of an older proxy, if there are any.
func (s *dnsServer) takeOver(ns *namespace, in *inherited) {
	udp, haveUDP := take(in.dnsUDP, s.key, ns)
	tcp, haveTCP := take(in.dnsTCP, s.key, ns)
	var p net.PacketConn
	var l net.Listener
	var err error
	if haveUDP {
		f := os.NewFile(uintptr(udp), "inherited")
		p, err = net.FilePacketConn(f)
		err = errors.Join(err, f.Close()) // FilePacketConn has taken a copy
	}
	if haveTCP {
		f := os.NewFile(uintptr(tcp), "inherited")
		var lErr error
		l, lErr = net.FileListener(f)
		err = errors.Join(err, lErr, f.Close())
	}
	listener, isTCP := l.(*net.TCPListener)
	if err != nil || !haveUDP || !isTCP {
		// What there is of the pair is given up, and bound anew.
		if p != nil {
			_ = p.Close()
		}
		if l != nil {
			_ = l.Close()
		}
		return
	}
	s.ns = ns
	s.use(p, listener)
}
