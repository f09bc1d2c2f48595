package proxy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A client of UDP whose backend is on another host is led there by a tunnel: one end of a pair of sockets is the backend of
// its session, the other one is relayed to the other host, in a stream of its own with a frame for each datagram. So the
// kernel keeps what waits, and drops what is too much; and when a newer proxy takes the session over, the tunnel stays with
// the one that made it.
const (
	// maxDigging is how many tunnels are being made at a time. Each costs both hosts a handshake, and who asks for it may be an
	// invention; beyond, datagrams of new clients are dropped.
	maxDigging = 64
	// maxTunnels bounds those that there are, for the same reason.
	maxTunnels = 2048
	// tunnelRoom is what one direction of a tunnel may keep, in bytes; the kernel counts twice that, its own structures
	// included.
	tunnelRoom = 128 << 10
	// peerIdle is when the host of the backend ends a flow on which nothing is said: later than the host of the client does,
	// which knows whether that client is real.
	peerIdle = defaultIdle + freshIdle
)

var errTunnels = errors.New("too many clients are led to other hosts, or on their way there")

// connect gives a session its end of a connection to a backend. For one on another host, far is the end that is to be led
// there.
func (d *datagrams) connect(b *backend) (near, far *conn, err error) {
	if b.key.peer == "" {
		ns, err := d.backends.place(b)
		if err != nil {
			return nil, nil, err
		}
		near, err = ns.connect(b.key.address, unix.SOCK_DGRAM)
		return near, nil, err
	}
	if !d.engine.enterTunnel() {
		return nil, nil, errTunnels
	}
	if near, far, err = datagramPair(); err != nil {
		d.engine.digging.leave()
		d.engine.leaveTunnel()
	}
	return near, far, err
}

// lead carries a session to its backend, or to another one when that cannot be reached, until one of them ends.
func (d *datagrams) lead(s *session, b *backend, far *conn) {
	defer d.engine.leaveTunnel()
	b, server := d.dig(s, b)
	d.engine.digging.leave()
	if server == nil {
		_ = far.Close() // which ends the session
		return
	}
	r := &relay{client: newFramed(far, 0, &d.dropped), server: server, traffic: &traffic{}}
	if !d.backends.join(b, r) {
		r.abort()
		return
	}
	defer d.backends.part(b, r)
	r.run()
}

// dig makes the connection to a session's backend. When there is none to be had, the session gets another backend, which
// gets what its client has sent meanwhile. Without any it returns nil.
func (d *datagrams) dig(s *session, b *backend) (*backend, side) {
	until := time.Now().Add(attemptsTime * d.engine.connectTimeout)
	tried := map[*backend]bool{}
	for {
		server, err := d.reach(b, until)
		if err == nil {
			return b, server
		}
		d.engine.log.Debug("no way to a backend", "listener", d.key.address, "backend", b.key.id, "err", err)
		tried[b] = true
		if b = d.change(s, err, tried); b == nil || !time.Now().Before(until) || d.engine.ctx.Err() != nil {
			return nil, nil
		}
	}
}

// reach connects to a backend.
func (d *datagrams) reach(b *backend, until time.Time) (side, error) {
	ns, err := d.backends.place(b)
	if err != nil {
		return nil, err
	}
	if b.key.peer == "" {
		c, err := ns.connect(b.key.address, unix.SOCK_DGRAM)
		if err != nil {
			return nil, err
		}
		return newFramed(c, 0, &d.dropped), nil
	}
	c, err := ns.connect(b.key.address, unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	timeout := min(d.engine.connectTimeout, time.Until(until))
	ctx, cancel := context.WithTimeoutCause(d.engine.ctx, timeout, fmt.Errorf("no answer within %v", timeout.Round(time.Millisecond)))
	defer cancel()
	if err := c.awaitConnected(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return d.engine.secure(ctx, c, b.key.peer, b.key.target)
}

// change gives a session another backend, none of those that were tried. It is nil when there is none, or the session is
// over.
func (d *datagrams) change(s *session, why error, tried map[*backend]bool) *backend {
	d.mu.Lock()
	defer d.mu.Unlock()
	set, was := &d.backends, s.backend
	var b *backend
	for !s.over {
		if b = set.pick(set.everybody(), tried); b == nil || set.register(b, s) {
			break
		}
		set.undo(b) // it has left the configuration
		tried[b] = true
	}
	if b != nil {
		set.done(was, s)
		s.backend = b
	}
	set.mu.Lock()
	defer set.mu.Unlock()
	was.fail(why)
	return b
}

// enterTunnel takes what a tunnel needs: the place of a connection, beside that of its session, and its turn to be made.
func (e *engine) enterTunnel() bool {
	taken := []*gate{}
	for _, g := range []*gate{&e.digging, &e.tunnels, &e.places} {
		if !g.tryEnter() {
			for _, t := range taken {
				t.leave()
			}
			return false
		}
		taken = append(taken, g)
	}
	return true
}

// leaveTunnel gives back all but the turn.
func (e *engine) leaveTunnel() {
	e.tunnels.leave()
	e.places.leave()
}

// join has u end with a backend, until part. It is false when b has left the configuration. It counts for nothing: its
// session does.
func (s *backends) join(b *backend, u user) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.gone {
		return false
	}
	b.users[u] = struct{}{}
	return true
}

func (s *backends) part(b *backend, u user) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(b.users, u)
}

// datagramPair is two sockets of which each gets the datagrams that are sent by the other, and learns when it is closed.
func datagramPair() (near, far *conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	for _, fd := range fds {
		// The kernel may allow less; then less waits.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, tunnelRoom)
	}
	if near, err = newConn(fds[0], "tunnel"); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	if far, err = newConn(fds[1], "tunnel"); err != nil {
		return nil, nil, errors.Join(err, near.Close(), unix.Close(fds[1]))
	}
	return near, far, nil
}

// dialDatagrams connects to a backend on this host for a flow of another one's.
func (l *listener) dialDatagrams(b *backend, ns *namespace) (side, error) {
	c, err := ns.connect(b.key.address, unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	return newFramed(c, peerIdle, &l.dropped), nil
}
