package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// When accepting fails for want of something (descriptors, memory), it is tried again after a pause that
// grows from one to the other.
const (
	acceptPauseMin = 5 * time.Millisecond
	acceptPauseMax = time.Second
)

// A listener is a Listener in use.
type listener struct {
	engine *engine
	key    socketKey
	// places bounds its connections.
	places gate

	mu sync.Mutex
	// Guarded by mu.
	config   Listener
	backends []*backend
	turn     int
	total    uint64
	refused  uint64
	// err says why it does not listen.
	err error

	// Owned by whoever holds engine.mu.
	ns     *namespace
	socket *net.TCPListener
	// stop ends the accepting on socket, and stopped is closed when it has ended.
	stop    context.CancelFunc
	stopped chan struct{}
}

// update takes over what a new configuration says. Connections to backends that stay are not touched.
func (l *listener) update(c Listener, find func(path string) (*namespace, error)) {
	limit := c.MaxConns
	if limit == 0 {
		limit = l.engine.defaultPlaces
	}
	l.places.setLimit(limit)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.config = c
	old := make(map[backendKey]*backend, len(l.backends))
	for _, b := range l.backends {
		old[b.key] = b
	}
	l.backends = make([]*backend, len(c.Backends))
	for i, bc := range c.Backends {
		b, ok := old[bc.key()]
		if !ok {
			b = &backend{key: bc.key(), relays: map[*relay]struct{}{}}
		}
		delete(old, bc.key())
		b.state = bc.State
		b.ns, b.nsErr = find(bc.Netns)
		l.backends[i] = b
	}
	for _, b := range old {
		b.retire()
	}
}

// bind listens, or goes on listening, in ns. The caller holds engine.mu.
func (l *listener) bind(ns *namespace, nsErr error) {
	if l.socket != nil && l.ns == ns && nsErr == nil {
		return
	}
	l.unbind()
	l.ns = ns
	err := nsErr
	if err == nil {
		l.socket, err = ns.listen(l.key.address)
	}
	if err != nil {
		l.setError(explainBind(ns, l.key.address, "tcp", err))
		return
	}
	l.setError(nil)
	ctx, cancel := context.WithCancel(l.engine.ctx)
	l.stop, l.stopped = cancel, make(chan struct{})
	go l.accept(ctx, l.socket, l.stopped)
}

// unbind stops listening; connections live on. The caller holds engine.mu.
func (l *listener) unbind() {
	if l.socket == nil {
		return
	}
	l.stop()
	_ = l.socket.Close()
	<-l.stopped
	l.socket = nil
}

// retire unbinds and ends all connections.
func (l *listener) retire() {
	l.unbind()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.backends {
		b.retire()
	}
	l.backends = nil
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
func (l *listener) accept(ctx context.Context, socket *net.TCPListener, stopped chan<- struct{}) {
	defer close(stopped)
	pause := acceptPauseMin
	for {
		c, err := socket.AcceptTCP()
		switch {
		case err == nil:
			pause = acceptPauseMin
			if !l.admit(ctx) {
				reset(c)
				return
			}
			l.engine.conns.Go(func() { l.serve(c) })
		case errors.Is(err, net.ErrClosed):
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
	if !l.places.enter(ctx) {
		return false
	}
	if !l.engine.places.enter(ctx) {
		l.places.leave()
		return false
	}
	return true
}

func (l *listener) serve(client *net.TCPConn) {
	defer l.places.leave()
	defer l.engine.places.leave()
	b, r, err := l.connect(l.engine.ctx, client)
	l.mu.Lock()
	l.total++
	if err != nil {
		l.refused++
	}
	l.mu.Unlock()
	if err != nil {
		reset(client)
		l.engine.log.Debug("connection refused", "listener", l.key.address, "err", err)
		return
	}
	defer l.done(b, r)
	r.run()
}

func (l *listener) status() ListenerStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := ListenerStatus{ID: l.config.ID, Open: l.places.inside(), Total: l.total, Refused: l.refused}
	if l.err != nil {
		s.Error = l.err.Error()
	}
	for _, b := range l.backends {
		s.Backends = append(s.Backends, BackendStatus{
			ID: b.key.id, State: b.state, Open: b.open, Total: b.total, Failed: b.failed, LastError: b.lastErr,
		})
	}
	return s
}

// failed says whether something should be tried again: binding, or opening a backend's namespace.
func (l *listener) failed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err != nil || slices.ContainsFunc(l.backends, func(b *backend) bool { return b.nsErr != nil })
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
