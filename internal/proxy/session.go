package proxy

import (
	"container/list"
	"errors"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A sessionKey is what a client of UDP is known by.
type sessionKey struct {
	client netip.AddrPort
	to     netip.Addr // the address of ours that it writes to
}

// A session is one client of UDP with its backend.
type session struct {
	owner *datagrams
	key   sessionKey
	conn  *conn
	// tunnelled tells that conn is one end of a pair, because the backend is on another host, or was when it was chosen.
	tunnelled bool
	// to and source are the client and our own address as the kernel wants them.
	to     unix.Sockaddr
	source []byte
	// lastHeard is when either side was last heard, in Unix nanoseconds; answered says that the backend was.
	lastHeard atomic.Int64
	answered  atomic.Bool

	// Guarded by owner.mu. The backend is another one only while a tunnel is being made.
	backend  *backend
	isSteady bool
	at       *list.Element // among owner.fresh, unless it is steady
	over     bool
	paused   bool
	reading  sync.WaitGroup
}

func newSession(d *datagrams, key sessionKey, b *backend, c *conn) *session {
	s := &session{owner: d, key: key, backend: b, conn: c, to: sockaddr(key.client)}
	if d.key.address.Addr().Is6() {
		s.to = &unix.SockaddrInet6{Port: int(key.client.Port()), Addr: key.client.Addr().As16()}
	}
	switch {
	case key.to.Is4():
		s.source = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: key.to.As4()})
	case key.to.Is6():
		s.source = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: key.to.As16()})
	}
	s.lastHeard.Store(time.Now().UnixNano())
	return s
}

// heard notes that the client wrote again. The caller holds owner.mu.
func (s *session) heard() {
	s.lastHeard.Store(time.Now().UnixNano())
	d := s.owner
	if s.isSteady || !s.answered.Load() || d.steady[s.key.client.Addr()] >= max(d.limit/4, 1) {
		return
	}
	s.isSteady = true
	d.fresh.Remove(s.at)
	s.at = nil
	d.steady[s.key.client.Addr()]++
}

// send passes on what the client wrote. What finds no room is lost, as it may be with UDP.
func (s *session) send(b []byte) error {
	return sendDatagram(s.conn, b)
}

// read begins to read what the backend answers. The caller holds owner.mu.
func (s *session) read() {
	s.paused = false
	s.conn.readUntil(time.Now().Add(s.patience()))
	s.reading.Add(1)
	s.owner.engine.conns.Go(func() {
		defer s.reading.Done()
		s.receive()
	})
}

// patience is how long the session lasts in silence. The caller holds owner.mu.
func (s *session) patience() time.Duration {
	if s.isSteady {
		return s.owner.idle
	}
	return min(s.owner.idle, freshIdle)
}

// receive passes answers on until the session is over, or paused.
func (s *session) receive() {
	var n int
	var err error
	pass := func(fd uintptr) bool {
		buf := datagramBuffers.Get().(*[maxDatagram]byte)
		defer datagramBuffers.Put(buf)
		n, _, err = unix.Recvfrom(int(fd), buf[:], 0)
		if err != nil {
			return err != unix.EAGAIN && err != unix.EINTR
		}
		if n == 0 && s.tunnelled && hungUp(fd) {
			err = unix.ECONNRESET
			return true
		}
		s.answered.Store(true)
		s.lastHeard.Store(time.Now().UnixNano())
		if s.owner.answer(s, buf[:n]) != nil {
			s.owner.dropped.Add(1)
			return true
		}
		s.owner.out.Add(1)
		s.owner.traffic.sent.Add(uint64(n))
		return true
	}
	for {
		waitErr := s.conn.raw.Read(pass)
		switch {
		case errors.Is(waitErr, os.ErrDeadlineExceeded):
			if !s.goesOn() {
				return
			}
		case waitErr != nil:
			return // it was ended
		case err != nil && s.tunnelled:
			s.finish() // whose fault it is if it is one, the tunnel knows
			return
		case err != nil:
			s.fail(err)
			return
		}
	}
}

// goesOn looks at a session whose time is up: it may have been extended meanwhile.
func (s *session) goesOn() bool {
	s.owner.mu.Lock()
	defer s.owner.mu.Unlock()
	if s.over || s.paused {
		return false
	}
	until := time.Unix(0, s.lastHeard.Load()).Add(s.patience())
	if time.Now().Before(until) {
		s.conn.readUntil(until)
		return true
	}
	s.end()
	return false
}

// fail ends the session because its backend does not take datagrams.
func (s *session) fail(err error) {
	set := &s.owner.backends
	set.mu.Lock()
	s.backend.fail(err)
	set.mu.Unlock()
	s.finish()
}

// finish ends the session.
func (s *session) finish() {
	s.owner.mu.Lock()
	defer s.owner.mu.Unlock()
	s.end()
}

// abort implements user: the backend has left.
func (s *session) abort() {
	// Ending it takes locks that come before the one that is held.
	s.owner.engine.conns.Go(func() {
		s.owner.mu.Lock()
		defer s.owner.mu.Unlock()
		s.end()
	})
}

// end forgets the session. The caller holds owner.mu.
func (s *session) end() {
	if s.over {
		return
	}
	s.over = true
	d := s.owner
	delete(d.sessions, s.key)
	if s.at != nil {
		d.fresh.Remove(s.at)
		s.at = nil
	}
	if s.isSteady {
		if d.steady[s.key.client.Addr()]--; d.steady[s.key.client.Addr()] == 0 {
			delete(d.steady, s.key.client.Addr())
		}
	}
	_ = s.conn.Close()
	d.engine.places.leave()
	d.backends.done(s.backend, s)
}

var datagramBuffers = sync.Pool{New: func() any { return new([maxDatagram]byte) }}
