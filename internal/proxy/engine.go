package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
)

// An engine is what a Config has become.
type engine struct {
	// ctx ends with the process's work.
	ctx            context.Context
	log            *slog.Logger
	build          string
	connectTimeout time.Duration
	helloTimeout   time.Duration
	startedAt      time.Time
	// places bounds all connections; defaultPlaces is the bound of one listener that sets none.
	places        gate
	defaultPlaces int
	// tunnels bounds those to other hosts, and digging those among them that are being made.
	tunnels, digging gate
	forward          *forwarder
	// conns are the goroutines that serve a connection each.
	conns sync.WaitGroup
	// chance gives numbers from 0 to 1.
	chance func() float64
	// keep makes a configuration durable.
	keep func(*Config) error

	mu sync.Mutex
	// Guarded by mu.
	config     Config
	listeners  map[socketKey]service
	servers    map[socketKey]*dnsServer
	namespaces map[string]*namespace
	// keepErr says why the configuration in force would not outlive the process.
	keepErr error
	// left means that a newer proxy listens on the sockets now.
	left bool

	// peering is nil when nothing leads to other hosts. It is set under mu, and read by everybody.
	peering atomic.Pointer[identity]
}

func newEngine(ctx context.Context, o Options) *engine {
	e := &engine{
		ctx: ctx, log: o.Log, build: o.Build, connectTimeout: o.ConnectTimeout, startedAt: time.Now(),
		// A single listener may not starve all others.
		defaultPlaces: max(o.MaxConns/2, 1),
		forward:       newForwarder(o.ResolvConf, o.resolverPort),
		chance:        o.chance, keep: o.keep, helloTimeout: o.helloTimeout,
		listeners: map[socketKey]service{}, servers: map[socketKey]*dnsServer{}, namespaces: map[string]*namespace{},
	}
	e.places.setLimit(o.MaxConns)
	e.tunnels.setLimit(maxTunnels)
	e.digging.setLimit(maxDigging)
	return e
}

// apply puts c in force. Sockets whose namespace and address stay are kept, as are connections whose backend
// stays.
func (e *engine) apply(c *Config) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.Revision == 0 {
		c.Revision = e.config.Revision
		if !reflect.DeepEqual(*c, e.config) {
			c.Revision++
		}
	}
	if c.Revision < e.config.Revision {
		return fmt.Errorf("%w: revision %d, in force is %d", ErrStale, c.Revision, e.config.Revision)
	}
	changed := !reflect.DeepEqual(*c, e.config)
	e.config = *c
	e.settle(nil)
	if (changed || e.keepErr != nil) && !e.left {
		if e.keepErr = e.keep(c); e.keepErr != nil {
			e.log.Warn("the configuration is in force, but would not outlive this process", "err", e.keepErr)
		}
	}
	return nil
}

// settle makes the world what the configuration says, as far as it goes, with what an older proxy has handed
// over. After a newer one has taken over, only connections are left to be looked after. The caller holds mu.
func (e *engine) settle(in *inherited) {
	if p := e.config.Peering; p == nil {
		e.peering.Store(nil)
	} else if have := e.peering.Load(); have == nil || have.Peering != *p {
		e.peering.Store(&identity{Peering: *p})
	}
	outdated := e.dropNamespaces()
	wanted := map[socketKey]bool{}
	for _, lc := range e.config.Listeners {
		wanted[lc.key()] = true
	}
	for _, d := range e.config.DNS {
		for _, a := range d.Addresses {
			wanted[socketKey{d.Netns, a, TCP + UDP}] = true
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
		switch {
		case ok:
		case e.left:
			continue
		case lc.key().transport == UDP:
			l = newDatagrams(e, lc.key())
		default:
			l = newListener(e, lc.key())
		}
		e.listeners[lc.key()] = l
		l.update(lc, e.namespace)
		if e.left {
			continue
		}
		ns, err := e.namespace(lc.Netns)
		if in != nil && err == nil {
			l.takeOver(ns, in)
		}
		l.bind(ns, err)
	}
	if !e.left {
		e.settleDNS(in)
	}
}

func (e *engine) settleDNS(in *inherited) {
	for _, d := range e.config.DNS {
		z := newZone(d)
		for _, a := range d.Addresses {
			key := socketKey{d.Netns, a, TCP + UDP}
			s, ok := e.servers[key]
			if !ok {
				s = newDNSServer(e, key)
				e.servers[key] = s
			}
			s.zone.Store(z)
			ns, err := e.namespace(d.Netns)
			if in != nil && err == nil {
				s.takeOver(ns, in)
			}
			s.bind(ns, err)
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
		for _, r := range l.Routes {
			for _, b := range r.Backends {
				used[b.Netns] = true
			}
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
	if e.left {
		return
	}
	for _, l := range e.listeners {
		if l.failed() {
			e.settle(nil)
			return
		}
	}
	for _, s := range e.servers {
		if s.failed() {
			e.settle(nil)
			return
		}
	}
}

// close ends everything and waits for it.
func (e *engine) close() {
	e.mu.Lock()
	e.config.Listeners, e.config.DNS = nil, nil
	e.settle(nil)
	e.mu.Unlock()
	e.conns.Wait()
}

func (e *engine) identity() *identity { return e.peering.Load() }

// current is the configuration in force.
func (e *engine) current() Config {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.config
}

func (e *engine) status() *Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.statusLocked()
}

// statusLocked is status for those who hold mu.
func (e *engine) statusLocked() *Status {
	s := &Status{
		Version: protocolVersion, Build: e.build, PID: os.Getpid(), StartedAt: e.startedAt, Revision: e.config.Revision,
		Connections: e.places.inside(),
	}
	if e.keepErr != nil {
		s.Error = e.keepErr.Error()
	}
	for _, lc := range e.config.Listeners {
		if l, ok := e.listeners[lc.key()]; ok {
			s.Listeners = append(s.Listeners, l.status())
		}
	}
	if e.left {
		return s
	}
	for _, d := range e.config.DNS {
		st := DNSStatus{Netns: d.Netns}
		var errs []error
		for _, a := range d.Addresses {
			server := e.servers[socketKey{d.Netns, a, TCP + UDP}]
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

// offer collects what a newer proxy needs to take over. Traffic of UDP stands still from here on. The caller
// holds mu, and goes on with resume or leave.
func (e *engine) offer(o *offering) error {
	var errs []error
	for _, l := range e.listeners {
		errs = append(errs, l.offer(o))
	}
	for _, s := range e.servers {
		errs = append(errs, s.offer(o))
	}
	return errors.Join(errs...)
}

func (e *engine) resume() {
	for _, l := range e.listeners {
		l.resume()
	}
}

// leave stops taking anything new; connections live on.
func (e *engine) leave() {
	e.left = true
	for _, l := range e.listeners {
		l.leave()
	}
	for key, s := range e.servers {
		// Questions that wait for the host's resolvers are still answered.
		e.conns.Go(s.unbind)
		delete(e.servers, key)
	}
}

// inherit puts what an older proxy has handed over into service.
func (e *engine) inherit(in *inherited) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.config = in.config
	e.settle(in)
}
