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

const (
	// defaultSessions bounds the clients of a UDP listener that sets no bound.
	defaultSessions = 8192
	// defaultIdle is when a client of UDP is forgotten; one that was heard of only once, after freshIdle.
	defaultIdle = 2 * time.Minute
	freshIdle   = 30 * time.Second
	// maxDatagram is the largest that there is.
	maxDatagram = 1 << 16
)

// A datagrams serves UDP: each client, known by its address and the one that it writes to, has a session with
// one backend until both have been silent for a while.
type datagrams struct {
	engine   *engine
	key      socketKey
	backends backends
	traffic  traffic

	total, refused   atomic.Uint64
	in, out, dropped atomic.Uint64
	// socket is what answers go out by; nil while there is none.
	socket atomic.Pointer[socket]

	mu sync.Mutex
	// Guarded by mu.
	config   Listener
	err      error
	limit    int
	idle     time.Duration
	sessions map[sessionKey]*session
	// fresh are sessions whose client may be an invention of somebody else: it has not written again after it
	// was answered. They make room for others, the oldest first.
	fresh list.List // of *session
	// steady counts the other sessions of each source, of which none gets more than a quarter of the places.
	steady map[netip.Addr]int

	// Owned by whoever holds engine.mu.
	ns      *namespace
	reading sync.WaitGroup
}

func newDatagrams(e *engine, key socketKey) *datagrams {
	return &datagrams{
		engine: e, key: key, backends: backends{chance: e.chance},
		sessions: map[sessionKey]*session{}, steady: map[netip.Addr]int{},
	}
}

func (d *datagrams) update(c Listener, find func(path string) (*namespace, error)) {
	d.mu.Lock()
	d.config, d.limit, d.idle = c, c.MaxConns, time.Duration(c.IdleTimeoutMS)*time.Millisecond
	if d.limit == 0 {
		d.limit = min(d.engine.defaultPlaces, defaultSessions)
	}
	if d.idle == 0 {
		d.idle = defaultIdle
	}
	d.mu.Unlock()
	d.backends.update(c, find)
}

func (d *datagrams) bind(ns *namespace, nsErr error) {
	if d.socket.Load() != nil && d.ns == ns && nsErr == nil {
		return
	}
	d.unbind()
	d.ns = ns
	err := nsErr
	if err == nil {
		var s socket
		if s, err = ns.listenDatagrams(d.key.address); err == nil {
			d.use(s)
			return
		}
	}
	d.setError(explainBind(ns, d.key.address, "udp", err))
}

func (d *datagrams) use(s socket) {
	d.setError(nil)
	d.socket.Store(&s)
	d.read(s)
}

// read begins to read from s.
func (d *datagrams) read(s socket) {
	s.readUntil(time.Time{})
	d.reading.Go(func() { d.receive(s) })
}

// pause stops reading, and waits until nobody does; what comes waits in the kernel.
func (d *datagrams) pause() {
	if s := d.socket.Load(); s != nil {
		s.readUntil(time.Unix(1, 0))
	}
	d.reading.Wait()
}

func (d *datagrams) unbind() {
	s := d.socket.Swap(nil)
	if s == nil {
		return
	}
	_ = s.Close()
	d.reading.Wait()
}

func (d *datagrams) retire() {
	d.unbind()
	d.backends.retire()
}

func (d *datagrams) setError(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil && (d.err == nil || d.err.Error() != err.Error()) {
		d.engine.log.Warn("cannot listen, will try again", "listener", d.config.ID, "err", err)
	}
	d.err = err
}

func (d *datagrams) failed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err != nil || d.backends.wantNamespace()
}

func (d *datagrams) status() ListenerStatus {
	d.mu.Lock()
	s := ListenerStatus{ID: d.config.ID, Open: len(d.sessions), Total: d.total.Load(), Refused: d.refused.Load()}
	if d.err != nil {
		s.Error = d.err.Error()
	}
	d.mu.Unlock()
	s.Received, s.Sent = d.traffic.received.Load(), d.traffic.sent.Load()
	s.Datagrams = &DatagramStatus{In: d.in.Load(), Out: d.out.Load(), Dropped: d.dropped.Load()}
	s.Backends = d.backends.status()
	return s
}

// receive reads what clients send, until the socket is closed or paused.
func (d *datagrams) receive(s socket) {
	buf, control := make([]byte, maxDatagram), make([]byte, 128)
	for {
		var n, controlled int
		var from unix.Sockaddr
		var err error
		waitErr := s.raw.Read(func(fd uintptr) bool {
			n, controlled, _, from, err = unix.Recvmsg(int(fd), buf, control, 0)
			return err != unix.EAGAIN && err != unix.EINTR
		})
		if waitErr != nil {
			return // closed or paused
		}
		if err != nil {
			// An error of an earlier answer: who it was for is gone.
			continue
		}
		d.in.Add(1)
		key := sessionKey{addrOf(from), destination(control[:controlled])}
		if err := d.pass(key, buf[:n]); err != nil {
			d.dropped.Add(1)
			d.engine.log.Debug("datagram dropped", "listener", d.key.address, "client", key.client, "err", err)
		}
	}
}

// destination is the address that a datagram was sent to.
func destination(control []byte) netip.Addr {
	messages, _ := unix.ParseSocketControlMessage(control)
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			// ifindex, our address, the address in the packet
			return netip.AddrFrom4([4]byte(m.Data[4:8]))
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			return netip.AddrFrom16([16]byte(m.Data[:16]))
		}
	}
	return netip.Addr{}
}

// pass sends what a client has sent to its backend.
func (d *datagrams) pass(key sessionKey, b []byte) error {
	for range 2 {
		s, err := d.session(key)
		if err != nil {
			return err
		}
		err = s.send(b)
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			// The answer to an earlier datagram: nobody listens there. Another backend may.
			s.fail(err)
			continue
		case s.tunnelled && (errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)):
			s.finish()
			continue
		}
		if err == nil {
			d.traffic.received.Add(uint64(len(b)))
		}
		return err
	}
	return errNoBackend
}

// errNoRoom means that all places are taken by clients that are known to be real.
var errNoRoom = errors.New("there are too many clients")

// session gives the session of a client, a new one if need be.
func (d *datagrams) session(key sessionKey) (*session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.sessions[key]; s != nil {
		s.heard()
		return s, nil
	}
	if len(d.sessions) >= d.limit || !d.engine.places.tryEnter() {
		oldest := d.fresh.Front()
		if oldest == nil {
			d.refused.Add(1)
			return nil, errNoRoom
		}
		oldest.Value.(*session).end()
		if !d.engine.places.tryEnter() {
			d.refused.Add(1)
			return nil, errNoRoom
		}
	}
	s, err := d.begin(key)
	if err != nil {
		d.refused.Add(1)
		d.engine.places.leave()
		return nil, err
	}
	d.add(s)
	d.total.Add(1)
	return s, nil
}

// add makes s known and begins to read what its backend answers. The caller holds mu.
func (d *datagrams) add(s *session) {
	d.sessions[s.key] = s
	if !s.isSteady {
		s.at = d.fresh.PushBack(s)
	} else {
		d.steady[s.key.client.Addr()]++
	}
	s.read()
}

// begin connects a client to a backend.
func (d *datagrams) begin(key sessionKey) (*session, error) {
	tried := map[*backend]bool{}
	last := errNoBackend
	for {
		b := d.backends.pick(d.backends.everybody(), tried)
		if b == nil {
			return nil, last
		}
		tried[b] = true
		c, far, err := d.connect(b)
		if errors.Is(err, errTunnels) {
			d.backends.undo(b)
			return nil, err
		}
		if err == nil {
			s := newSession(d, key, b, c)
			if d.backends.register(b, s) {
				if s.tunnelled = far != nil; s.tunnelled {
					d.engine.conns.Go(func() { d.lead(s, b, far) })
				}
				return s, nil
			}
			err = errors.Join(errGone, c.Close())
			if far != nil {
				_ = far.Close()
				d.engine.digging.leave()
				d.engine.leaveTunnel()
			}
		}
		last = err
		d.backends.giveUp(b, err)
	}
}

// answer sends a datagram of a backend's to a client, from the address that the client knows.
func (d *datagrams) answer(s *session, b []byte) error {
	out := d.socket.Load()
	if out == nil {
		return os.ErrClosed
	}
	var err error
	closed := out.raw.Control(func(fd uintptr) { _, err = unix.SendmsgN(int(fd), b, s.source, s.to, unix.MSG_DONTWAIT) })
	return errors.Join(err, closed)
}
