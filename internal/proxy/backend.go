package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// restAfterFailure is how long a backend that could not be reached is chosen only when there is no other.
const restAfterFailure = time.Second

// attemptsTime is how many connect timeouts one connection may take altogether.
const attemptsTime = 3

var errNoBackend = errors.New("no active backend")

// backendKey is what a backend is known by from one configuration to the next.
type backendKey struct {
	id, netns string
	address   netip.AddrPort
}

func (b *Backend) key() backendKey { return backendKey{b.ID, b.Netns, b.Address} }

// A backend is a Backend in use by one listener. What follows key is guarded by listener.mu.
type backend struct {
	key   backendKey
	state BackendState
	ns    *namespace
	// nsErr says why there is no namespace to dial from.
	nsErr error
	// gone means that no configuration names it any more.
	gone bool
	// relays are its live connections; open also counts those being made.
	relays        map[*relay]struct{}
	open          int
	total, failed uint64
	lastErr       string
	restsUntil    time.Time
}

// connect gives client a connection to one of the active backends. Nothing has been sent yet, so as long as
// one cannot be reached, the next is tried. The relay is registered with its backend, for done to undo.
func (l *listener) connect(ctx context.Context, client *net.TCPConn) (*backend, *relay, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptsTime*l.engine.connectTimeout)
	defer cancel()
	tried := map[*backend]bool{}
	last := errNoBackend
	for {
		b := l.pick(tried)
		if b == nil {
			return nil, nil, last
		}
		tried[b] = true
		server, err := l.dial(ctx, b)
		if err == nil {
			r := &relay{client: client, server: server}
			if l.register(b, r) {
				return b, r, nil
			}
			// It left the configuration just now: another one may take the connection.
			_ = server.Close()
			err = errGone
		}
		last = fmt.Errorf("connect to %s at %v: %w", b.key.id, b.key.address, err)
		l.giveUp(b, err)
		if ctx.Err() != nil {
			return nil, nil, last
		}
	}
}

// pick chooses the active backend with the fewest connections, taking turns among equals, and one that failed
// lately only when there is no other. It counts as open from here on, so that many clients at once spread.
func (l *listener) pick(tried map[*backend]bool) *backend {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	var best *backend
	var bestRests bool
	for i := range l.backends {
		b := l.backends[(l.turn+i)%len(l.backends)]
		if b.state != Active || tried[b] {
			continue
		}
		rests := now.Before(b.restsUntil)
		if best == nil || (bestRests && !rests) || (bestRests == rests && b.open < best.open) {
			best, bestRests = b, rests
		}
	}
	if best != nil {
		best.open++
		l.turn++
	}
	return best
}

func (l *listener) dial(ctx context.Context, b *backend) (*net.TCPConn, error) {
	l.mu.Lock()
	ns, err := b.ns, b.nsErr
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	timeout := l.engine.connectTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	return ns.dial(ctx, b.key.address)
}

func (l *listener) register(b *backend, r *relay) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b.gone {
		return false
	}
	b.relays[r] = struct{}{}
	b.total++
	b.restsUntil = time.Time{}
	return true
}

func (l *listener) giveUp(b *backend, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b.open--
	b.failed++
	b.lastErr = err.Error()
	b.restsUntil = time.Now().Add(restAfterFailure)
}

// done undoes register and pick when the connection has ended.
func (l *listener) done(b *backend, r *relay) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(b.relays, r)
	b.open--
}

// retire ends what b still carries. The caller holds mu.
func (b *backend) retire() {
	b.gone = true
	for r := range b.relays {
		r.abort()
	}
}
