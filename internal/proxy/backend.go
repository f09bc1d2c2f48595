package proxy

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"time"
)

const (
	// restAfterFailure is how long a backend that could not be reached is chosen only when there is no other.
	restAfterFailure = time.Second
	// attemptsTime is how many connect timeouts one connection may take altogether.
	attemptsTime = 3
	// coldShare is the part of its share with which a slow start begins.
	coldShare = 0.1
)

var errNoBackend = errors.New("no active backend")

// backendKey is what a backend is known by from one configuration to the next.
type backendKey struct {
	id, netns    string
	address      netip.AddrPort
	peer, target string
	// datagrams is true of a route of PEER that leads to a port of UDP.
	datagrams bool
}

func (b *Backend) key() backendKey {
	return backendKey{id: b.ID, netns: b.Netns, address: b.Address, peer: b.Peer, target: b.Target}
}

// A user is what a backend serves: a connection, or a client of UDP.
type user interface {
	// abort ends it. It is called with the lock of its backends held, and does not wait.
	abort()
}

// A backend is a Backend in use by one listener. All but key is guarded by backends.mu.
type backend struct {
	key backendKey
	ns  *namespace
	// nsErr says why there is no namespace to dial from.
	nsErr error
	state BackendState
	// warm is when its slow start is over.
	warm time.Time
	// gone means that no configuration names it any more.
	gone bool
	// users are its live connections; open also counts those being made.
	users         map[user]struct{}
	open          int
	total, failed uint64
	lastErr       string
	restsUntil    time.Time
}

// A pool is backends that can take each other's place.
type pool struct {
	members []member
	// header means that connections begin with a PROXY header.
	header bool
	// datagrams means that they are ports of UDP, to which another host leads a client.
	datagrams bool
	turn      int // guarded by backends.mu
}

// A member is a backend in a pool. The same backend can be draining in another.
type member struct {
	*backend
	state BackendState
}

// pick chooses the active backend with the fewest connections, taking turns among equals. One that failed
// lately is chosen only when there is no other, and one in its slow start only now and then. It counts as open
// from here on, so that many clients at once spread.
func (s *backends) pick(p *pool, tried map[*backend]bool) *backend {
	if p == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	var best *backend
	var bestRank int
	for i := range p.members {
		m := p.members[(p.turn+i)%len(p.members)]
		if m.state != Active || tried[m.backend] {
			continue
		}
		rank := 0
		if now.Before(m.restsUntil) {
			rank += 2
		}
		if s.isCold(m.backend, now) {
			rank++
		}
		if best == nil || rank < bestRank || (rank == bestRank && m.open < best.open) {
			best, bestRank = m.backend, rank
		}
	}
	if best != nil {
		best.open++
		p.turn++
	}
	return best
}

// isCold casts lots on whether a backend in its slow start is passed over this time.
func (s *backends) isCold(b *backend, now time.Time) bool {
	left := b.warm.Sub(now)
	if left <= 0 || s.slowStart <= 0 {
		return false
	}
	share := max(coldShare, 1-float64(left)/float64(s.slowStart))
	return s.chance() >= share
}

// place says where b is to be dialed from.
func (s *backends) place(b *backend) (*namespace, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return b.ns, b.nsErr
}

// register makes u a user of b, which pick has chosen, for done to undo. It is false when b has left the
// configuration.
func (s *backends) register(b *backend, u user) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.gone {
		return false
	}
	b.users[u] = struct{}{}
	b.total++
	b.restsUntil = time.Time{}
	return true
}

// giveUp undoes pick: b could not be reached.
func (s *backends) giveUp(b *backend, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.open--
	b.fail(err)
}

func (b *backend) fail(err error) {
	b.failed++
	b.lastErr = err.Error()
	b.restsUntil = time.Now().Add(restAfterFailure)
}

// undo undoes pick, for a reason that is not the backend's.
func (s *backends) undo(b *backend) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.open--
}

// done undoes register and pick when the connection has ended.
func (s *backends) done(b *backend, u user) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(b.users, u)
	b.open--
}

// retire ends what b still carries. The caller holds mu.
func (b *backend) retire() {
	b.gone = true
	for u := range b.users {
		u.abort()
	}
}

func randomly() float64 { return rand.Float64() } //nolint:gosec // a secret would be of no use to anybody
