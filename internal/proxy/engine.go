package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// An engine is what a Config has become.
type engine struct {
	// ctx ends with the process's work.
	ctx            context.Context
	log            *slog.Logger
	connectTimeout time.Duration
	startedAt      time.Time
	// places bounds all connections; defaultPlaces is the bound of one listener that sets none.
	places        gate
	defaultPlaces int
	forward       *forwarder
	// conns are the goroutines that serve a connection each.
	conns sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	config     Config
	listeners  map[socketKey]*listener
	servers    map[socketKey]*dnsServer
	namespaces map[string]*namespace
}

func newEngine(ctx context.Context, o Options) *engine {
	e := &engine{
		ctx: ctx, log: o.Log, connectTimeout: o.ConnectTimeout, startedAt: time.Now(),
		// A single listener may not starve all others.
		defaultPlaces: max(o.MaxConns/2, 1),
		forward:       newForwarder(o.ResolvConf, o.resolverPort),
		listeners:     map[socketKey]*listener{}, servers: map[socketKey]*dnsServer{}, namespaces: map[string]*namespace{},
	}
	e.places.setLimit(o.MaxConns)
	return e
}

// apply puts c in force. Sockets whose namespace and address stay are kept, as are connections whose backend
// stays.
func (e *engine) apply(c *Config) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.Revision == 0 {
		c.Revision = e.config.Revision + 1
	}
	if c.Revision < e.config.Revision {
		return fmt.Errorf("%w: revision %d, in force is %d", ErrStale, c.Revision, e.config.Revision)
	}
	e.config = *c
	e.settle()
	return nil
}

// settle makes the world what the configuration says, as far as it goes. The caller holds mu.
func (e *engine) settle() {
	outdated := e.dropNamespaces()
	wanted := map[socketKey]bool{}
	for _, lc := range e.config.Listeners {
		wanted[lc.key()] = true
	}
	for _, d := range e.config.DNS {
		for _, a := range d.Addresses {
			wanted[socketKey{d.Netns, a}] = true
		}
	}
	// What has to go goes first: it may hold a port that another needs.
	for key, l := range e.listeners {
		if !wanted[key] || outdated[key.netns] {
			l.unbind()
		}
		if !wanted[key] {
			l.retire()
			delete(e.listeners, key)
		}
	}
	for key, s := range e.servers {
		if !wanted[key] || outdated[key.netns] {
			s.unbind()
		}
		if !wanted[key] {
			delete(e.servers, key)
		}
	}
	for _, lc := range e.config.Listeners {
		l, ok := e.listeners[lc.key()]
		if !ok {
			l = &listener{engine: e, key: lc.key()}
			e.listeners[lc.key()] = l
		}
		l.update(lc, e.namespace)
		l.bind(e.namespace(lc.Netns))
	}
	for _, d := range e.config.DNS {
		z := newZone(d)
		for _, a := range d.Addresses {
			key := socketKey{d.Netns, a}
			s, ok := e.servers[key]
			if !ok {
				s = newDNSServer(e, key)
				e.servers[key] = s
			}
			s.zone.Store(z)
			s.bind(e.namespace(d.Netns))
		}
	}
}

// dropNamespaces closes namespaces that are not named any more and those whose path leads elsewhere by now,
// and returns the paths.
func (e *engine) dropNamespaces() map[string]bool {
	used := map[string]bool{}
	for _, l := range e.config.Listeners {
		used[l.Netns] = true
		for _, b := range l.Backends {
			used[b.Netns] = true
		}
	}
	for _, d := range e.config.DNS {
		used[d.Netns] = true
	}
	dropped := map[string]bool{}
	for path, ns := range e.namespaces {
		if !used[path] || !ns.is(path) {
			ns.close()
			delete(e.namespaces, path)
			dropped[path] = true
		}
	}
	return dropped
}

// namespace returns the open namespace of path. The caller holds mu.
func (e *engine) namespace(path string) (*namespace, error) {
	if ns, ok := e.namespaces[path]; ok || path == "" {
		return ns, nil
	}
	ns, err := openNamespace(path)
	if err != nil {
		return nil, fmt.Errorf("open namespace: %w", err)
	}
	e.namespaces[path] = ns
	return ns, nil
}

// retry settles again when something could not be had: the port may be free by now, the namespace there.
func (e *engine) retry() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.listeners {
		if l.failed() {
			e.settle()
			return
		}
	}
	for _, s := range e.servers {
		if s.failed() {
			e.settle()
			return
		}
	}
}

// close ends everything and waits for it.
func (e *engine) close() {
	e.mu.Lock()
	e.config.Listeners, e.config.DNS = nil, nil
	e.settle()
	e.mu.Unlock()
	e.conns.Wait()
}

func (e *engine) status() *Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := &Status{
		Version: protocolVersion, PID: os.Getpid(), StartedAt: e.startedAt, Revision: e.config.Revision,
		Connections: e.places.inside(),
	}
	for _, lc := range e.config.Listeners {
		s.Listeners = append(s.Listeners, e.listeners[lc.key()].status())
	}
	for _, d := range e.config.DNS {
		st := DNSStatus{Netns: d.Netns}
		var errs []error
		for _, a := range d.Addresses {
			server := e.servers[socketKey{d.Netns, a}]
			st.Queries += server.queries.Load()
			st.Dropped += server.dropped.Load()
			errs = append(errs, server.error())
		}
		if err := errors.Join(errs...); err != nil {
			st.Error = err.Error()
		}
		s.DNS = append(s.DNS, st)
	}
	return s
}
