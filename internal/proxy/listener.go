package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// When accepting fails for want of something (descriptors, memory), it is tried again after a pause that
// grows from one to the other.
const (
	acceptPauseMin = 5 * time.Millisecond
	acceptPauseMax = time.Second
)

// A service is a Listener in use: a listener or a datagrams.
type service interface {
	update(c Listener, find func(path string) (*namespace, error))
	// bind listens, or goes on listening, in ns; unbind stops, and what is connected lives on. The caller holds
	// engine.mu.
	bind(ns *namespace, nsErr error)
	unbind()
	// retire unbinds and ends all that is connected.
	retire()
	// failed says whether something should be tried again: binding, or opening a backend's namespace.
	failed() bool
	status() ListenerStatus
	// offer gives descriptors to a newer proxy, resume goes on when that has not taken them, and leave stops
	// taking anything new when it has. TakeOver uses those of an older proxy instead of binding.
	offer(o *offering) error
	resume()
	leave()
	takeOver(ns *namespace, in *inherited)
}

// A listener serves TCP, SNI and PEER.
type listener struct {
	engine *engine
	key    socketKey
	// places bounds its connections.
	places   gate
	backends backends
	waiting  waiting
	hosts    hosts // of PEER
	traffic  traffic

	total, refused atomic.Uint64
	dropped        atomic.Uint64 // datagrams of other hosts' clients
	turnedAway     turnedAway
	leaving        atomic.Bool

	mu sync.Mutex
	// Guarded by mu.
	config Listener
	// err says why it does not listen.
	err error

	// Owned by whoever holds engine.mu.
	ns     *namespace
	socket *socket
	// stop ends the accepting on socket, and stopped is closed when it has ended.
	stop    context.CancelFunc
	stopped chan struct{}
}

func newListener(e *engine, key socketKey) *listener {
	return &listener{engine: e, key: key, backends: backends{chance: e.chance}}
}

func (l *listener) update(c Listener, find func(path string) (*namespace, error)) {
	limit := c.MaxConns
	if limit == 0 {
		limit = l.engine.defaultPlaces
	}
	l.places.setLimit(limit)
	l.waiting.setLimit(min(max(limit/2, 1), maxWaiting))
	l.mu.Lock()
	l.config = c
	l.mu.Unlock()
	// No host takes the places of all others.
	l.hosts.update(c.Peers, max(limit/2, 1))
	l.backends.update(c, find)
}

func (l *listener) bind(ns *namespace, nsErr error) {
	if l.socket != nil && l.ns == ns && nsErr == nil {
		return
	}
	l.unbind()
	l.ns = ns
	if nsErr != nil {
		l.setError(explainBind(ns, l.key.address, "tcp", nsErr))
		return
	}
	s, err := ns.listen(l.key.address)
	if err != nil {
		l.setError(explainBind(ns, l.key.address, "tcp", err))
		return
	}
	l.use(s)
}

func (l *listener) use(s socket) {
	l.setError(nil)
	ctx, cancel := context.WithCancel(l.engine.ctx)
	l.socket, l.stop, l.stopped = &s, cancel, make(chan struct{})
	go l.accept(ctx, s, l.stopped)
}

func (l *listener) unbind() {
	if l.socket == nil {
		return
	}
	l.stop()
	_ = l.socket.Close()
	<-l.stopped
	l.socket = nil
}

func (l *listener) leave() {
	// A connection that waits for a place gets one: nobody else can have it any more.
	l.leaving.Store(true)
	l.unbind()
}

func (l *listener) retire() {
	l.unbind()
	l.waiting.end()
	l.backends.retire()
}

func (l *listener) setError(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil && (l.err == nil || l.err.Error() != err.Error()) {
		l.engine.log.Warn("cannot listen, will try again", "listener", l.config.ID, "err", err)
	}
	l.err = err
}

// accept takes connections until the socket is closed. One that finds no place is held until there is one,
// and those behind it wait in the kernel's queue.
func (l *listener) accept(ctx context.Context, s socket, stopped chan<- struct{}) {
	defer close(stopped)
	pause := acceptPauseMin
	for {
		fd, peer, err := s.accept()
		switch {
		case err == nil:
			pause = acceptPauseMin
			c, err := newConn(fd, "client")
			if err != nil {
				_ = unix.Close(fd)
				continue
			}
			if !l.admit(ctx) {
				c.reset()
				return
			}
			l.engine.conns.Go(func() { l.serve(c, peer) })
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, syscall.ECONNABORTED):
			// The client left before its turn came.
		default:
			l.engine.log.Warn("cannot accept a connection, pausing", "listener", l.key.address, "pause", pause, "err", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, acceptPauseMax)
		}
	}
}

// admit takes a place of the listener's and one of the whole proxy's.
func (l *listener) admit(ctx context.Context) bool {
	if !l.places.enter(ctx) && !l.forced(&l.places) {
		return false
	}
	if !l.engine.places.enter(ctx) && !l.forced(&l.engine.places) {
		l.places.leave()
		return false
	}
	return true
}

func (l *listener) forced(g *gate) bool {
	if l.leaving.Load() {
		g.force()
		return true
	}
	return false
}

func (l *listener) failed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err != nil || l.backends.wantNamespace()
}

func (l *listener) status() ListenerStatus {
	l.mu.Lock()
	s := ListenerStatus{ID: l.config.ID, Open: l.places.inside(), Total: l.total.Load(), Refused: l.refused.Load()}
	if l.err != nil {
		s.Error = l.err.Error()
	}
	l.mu.Unlock()
	s.Received, s.Sent = l.traffic.received.Load(), l.traffic.sent.Load()
	s.SplicedIn, s.SplicedOut = l.traffic.splicedIn.Load(), l.traffic.splicedOut.Load()
	s.TurnedAway = l.turnedAway.status()
	s.Backends = l.backends.status()
	return s
}

// trusts says whether connections from peer begin with a PROXY header, and what protocol they speak.
func (l *listener) trusts(peer netip.Addr) (trusted bool, protocol string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	trusted = slices.ContainsFunc(l.config.AcceptProxy, func(p netip.Prefix) bool { return p.Contains(peer) })
	return trusted, l.config.Protocol
}

// explainBind says why listening failed and, when the port is taken, by whom.
func explainBind(ns *namespace, address netip.AddrPort, protocol string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		who := portHolder(ns, address, protocol)
		if who == "" {
			who = "something that cannot be seen, or by connections that have just ended"
		}
		err = fmt.Errorf("port %d is in use by %s", address.Port(), who)
	}
	return fmt.Errorf("listen on %s %v: %w", protocol, address, err)
}
