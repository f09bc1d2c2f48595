package proxy

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// backends are those of one listener.
type backends struct {
	// chance gives numbers from 0 to 1; tests say which.
	chance func() float64

	mu sync.Mutex
	// Guarded by mu.
	slowStart time.Duration
	known     map[backendKey]*backend
	order     []*backend
	all       *pool            // of TCP and UDP
	named     map[string]*pool // of SNI and PEER, by name or by "*." and the rest of it
}

// update takes over what a new configuration says. Connections to backends that stay are not touched.
func (s *backends) update(c Listener, find func(path string) (*namespace, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slowStart = time.Duration(c.SlowStartMS) * time.Millisecond
	before := s.known
	s.known, s.order = map[backendKey]*backend{}, nil
	warm := time.Time{}
	if slices.ContainsFunc(slices.Collect(values(before)), func(b *backend) bool { return b.state == Active }) {
		// There are others to take the load meanwhile.
		warm = time.Now().Add(s.slowStart)
	}
	s.all, s.named = nil, map[string]*pool{}
	if c.Protocol != SNI && c.Protocol != PEER {
		s.all = s.pool(before, Route{Backends: c.Backends, ProxyProtocol: c.ProxyProtocol}, warm, find)
	}
	for _, r := range c.Routes {
		p := s.pool(before, r, warm, find)
		for _, name := range r.Names {
			s.named[name] = p
		}
	}
	for _, b := range before {
		if s.known[b.key] != b {
			b.retire()
		}
	}
}

func (s *backends) pool(before map[backendKey]*backend, r Route, warm time.Time, find func(string) (*namespace, error)) *pool {
	p := &pool{header: r.ProxyProtocol != "", datagrams: r.Protocol == UDP}
	for _, c := range r.Backends {
		key := c.key()
		key.datagrams = p.datagrams
		b := s.known[key]
		if b == nil {
			if b = before[key]; b == nil {
				b = &backend{key: key, users: map[user]struct{}{}}
			}
			if b.state != Active {
				b.warm = warm
			}
			b.state = c.State
			s.known[key] = b
			s.order = append(s.order, b)
			b.ns, b.nsErr = find(c.Netns)
		}
		if c.State == Active {
			b.state = Active // in one pool at least
		}
		p.members = append(p.members, member{b, c.State})
	}
	return p
}

func values(m map[backendKey]*backend) func(yield func(*backend) bool) {
	return func(yield func(*backend) bool) {
		for _, b := range m {
			if !yield(b) {
				return
			}
		}
	}
}

// pool gives the backends of everybody.
func (s *backends) everybody() *pool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}

// of gives the backends of a server name, or nil.
func (s *backends) of(name string) *pool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.named[name]; p != nil {
		return p
	}
	_, parent, _ := strings.Cut(name, ".")
	return s.named["*."+parent]
}

// retire ends all connections.
func (s *backends) retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.known {
		b.retire()
	}
	s.known, s.order, s.all, s.named = nil, nil, nil, nil
}

func (s *backends) status() []BackendStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []BackendStatus
	for _, b := range s.order {
		list = append(list, BackendStatus{
			ID: b.key.id, State: b.state, Open: b.open, Total: b.total, Failed: b.failed, LastError: b.lastErr,
		})
	}
	return list
}

// wantNamespace says whether there is a backend whose namespace could not be opened.
func (s *backends) wantNamespace() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.order, func(b *backend) bool { return b.nsErr != nil })
}
