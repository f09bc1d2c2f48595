package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/network"
	"github.com/pinnacehq/pinnace/internal/proxy"
)

// routeState says what connections an instance gets.
type routeState string

const (
	routeNone     routeState = "none"     // none; its ports are bound all the same, so that nobody takes them
	routeActive   routeState = "active"   // new ones
	routeDraining routeState = "draining" // those that it has
)

// member is an attempt that has a place in an environment's network.
type member struct {
	instance, environment, app string
	ordinal                    uint32
	netns                      string
	address                    netip.Addr
	ports                      map[string]manifest.Port
	state                      routeState
}

// routes keeps the proxy and the virtual addresses in step with what is ready.
type routes struct {
	agent *Agent

	applying sync.Mutex // held while a configuration is on its way, so that an older one cannot overtake

	changed chan struct{} // has room for one: what the server says of names has changed

	mu           sync.Mutex // guards what follows
	members      map[string]*member
	environments []*pinnacev1.AssignedEnvironment
	status       *proxy.Status
}

func newRoutes(a *Agent) *routes {
	return &routes{agent: a, changed: make(chan struct{}, 1), members: map[string]*member{}}
}

// run keeps the proxy up to date until ctx is done: when names change, and from time to time, because a
// proxy that was started anew has no configuration.
func (r *routes) run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-r.changed:
		case <-time.After(resyncEvery):
		}
		if err := r.sync(ctx); err != nil && ctx.Err() == nil {
			r.agent.Log.Warn("bring the routing up to date", "err", err)
		}
	}
}

// setEnvironments takes over what the server says of names and virtual addresses. The next sync acts on it.
func (r *routes) setEnvironments(envs []*pinnacev1.AssignedEnvironment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.environments = envs
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// join makes an attempt known, without traffic.
func (r *routes) join(t *attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members[t.id] = &member{
		instance: t.id, environment: t.assignment.Environment, app: t.assignment.App, ordinal: t.assignment.Ordinal,
		netns: t.attachment.Netns, address: t.attachment.IPv4.Addr(), ports: t.workload.manifest.Ports, state: routeNone,
	}
}

// leave forgets an instance; its connections end.
func (r *routes) leave(ctx context.Context, instance string) error {
	r.mu.Lock()
	delete(r.members, instance)
	r.mu.Unlock()
	return r.sync(ctx)
}

// set changes what connections an instance gets, and returns when the proxy acts on it.
func (r *routes) set(ctx context.Context, instance string, state routeState) error {
	r.mu.Lock()
	m := r.members[instance]
	same := m == nil || m.state == state
	if !same {
		m.state = state
	}
	r.mu.Unlock()
	if same {
		return nil
	}
	return r.sync(ctx)
}

func (r *routes) state(instance string) routeState {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.members[instance]; m != nil {
		return m.state
	}
	return routeNone
}

// openConnections counts the live connections to an instance.
func (r *routes) openConnections(ctx context.Context, instance string) (int, error) {
	status, err := r.agent.Proxy.Status(ctx)
	if err != nil {
		return 0, err
	}
	return status.OpenTo(instance), nil
}

// sync makes the proxy and the virtual addresses what they should be.
func (r *routes) sync(ctx context.Context) error {
	r.applying.Lock()
	defer r.applying.Unlock()
	r.mu.Lock()
	cfg, virtual := r.config()
	r.mu.Unlock()

	var errs []error
	for _, env := range slices.Sorted(maps.Keys(virtual)) {
		if err := r.agent.Network.SetVirtualAddresses(ctx, env, virtual[env]); err != nil {
			errs = append(errs, fmt.Errorf("virtual addresses of %s: %w", env, err))
		}
	}
	status, err := r.agent.Proxy.Apply(ctx, cfg)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("configure the proxy: %w", err))...)
	}
	r.mu.Lock()
	r.status = status
	r.mu.Unlock()
	for _, env := range r.unused(virtual) {
		if err := r.agent.Network.RemoveEnvironment(ctx, env); err != nil {
			errs = append(errs, fmt.Errorf("remove the network of %s: %w", env, err))
		}
	}
	return errors.Join(errs...)
}

// unused are the environments with a network here in which nothing runs or is about to.
func (r *routes) unused(used map[string][]netip.Addr) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(r.agent.Network.Environments(), func(env string) bool {
		_, runs := used[env]
		return runs || slices.ContainsFunc(r.environments, func(e *pinnacev1.AssignedEnvironment) bool { return e.Name == env })
	})
}

// bindError says why a port of the instance cannot be listened on, or nil.
func (r *routes) bindError(instance string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[instance]
	if m == nil || r.status == nil {
		return nil
	}
	var errs []error
	for _, l := range r.listeners(m) {
		if status, ok := r.status.Listener(l.ID); ok && status.Error != "" {
			errs = append(errs, errors.New(status.Error))
		}
	}
	return errors.Join(errs...)
}

// config builds the proxy's configuration, and the virtual addresses of each environment in use here.
func (r *routes) config() (proxy.Config, map[string][]netip.Addr) {
	listeners := map[string]*proxy.Listener{}
	netns := map[string]string{}
	for _, id := range slices.Sorted(maps.Keys(r.members)) {
		m := r.members[id]
		netns[m.environment] = m.netns
		for _, l := range r.listeners(m) {
			have := listeners[l.ID]
			if have == nil {
				have = &l
				listeners[l.ID] = have
			} else {
				have.Backends = append(have.Backends, l.Backends...)
			}
		}
	}
	var cfg proxy.Config
	for _, id := range slices.Sorted(maps.Keys(listeners)) {
		cfg.Listeners = append(cfg.Listeners, *listeners[id])
	}
	virtual := map[string][]netip.Addr{}
	for _, env := range slices.Sorted(maps.Keys(netns)) {
		records, addresses := r.names(env)
		virtual[env] = addresses
		cfg.DNS = append(cfg.DNS, proxy.DNS{
			Netns:     netns[env],
			Addresses: []netip.AddrPort{netip.AddrPortFrom(network.Gateway4, 53), netip.AddrPortFrom(network.Gateway6, 53)},
			Records:   records,
			Reverse:   []netip.Prefix{network.Subnet4, network.Virtual4, network.Subnet6, network.Virtual6},
			Forward:   true,
		})
	}
	return cfg, virtual
}

// names are the DNS records of an environment and the virtual addresses of its apps.
func (r *routes) names(env string) (map[string][]netip.Addr, []netip.Addr) {
	records := map[string][]netip.Addr{}
	var virtual []netip.Addr
	for _, app := range r.apps(env) {
		addrs := virtualAddresses(app)
		records[app.App+"."+proxy.Zone] = addrs
		virtual = append(virtual, addrs...)
	}
	for _, m := range r.members {
		if m.environment == env {
			name := fmt.Sprintf("%d.%s.%s", m.ordinal, m.app, proxy.Zone)
			// During a rollout two instances have one ordinal; the one that is ready has the name.
			if _, taken := records[name]; !taken || m.state == routeActive {
				records[name] = []netip.Addr{m.address}
			}
		}
	}
	return records, virtual
}

func (r *routes) apps(env string) []*pinnacev1.AssignedApp {
	for _, e := range r.environments {
		if e.Name == env {
			return e.Apps
		}
	}
	return nil
}

func virtualAddresses(app *pinnacev1.AssignedApp) []netip.Addr {
	var addrs []netip.Addr
	for _, text := range []string{app.VirtualAddress, app.VirtualAddressV6} {
		if addr, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// listeners are what one member's ports need, with the member as the only backend.
func (r *routes) listeners(m *member) []proxy.Listener {
	var out []proxy.Listener
	add := func(id, netns string, address netip.AddrPort, port int) {
		l := proxy.Listener{ID: id, Netns: netns, Address: address, Protocol: proxy.TCP}
		if m.state != routeNone {
			state := proxy.Active
			if m.state == routeDraining {
				state = proxy.Draining
			}
			l.Backends = []proxy.Backend{{
				ID: m.instance, Netns: m.netns, State: state,
				Address: netip.AddrPortFrom(m.address, uint16(port)), //nolint:gosec // The manifest bounds it.
			}}
		}
		out = append(out, l)
	}
	for _, name := range slices.Sorted(maps.Keys(m.ports)) {
		port := m.ports[name]
		if port.Protocol != "tcp" || port.Expose == "none" {
			continue
		}
		for _, app := range r.apps(m.environment) {
			if app.App != m.app {
				continue
			}
			for _, addr := range virtualAddresses(app) {
				at := netip.AddrPortFrom(addr, uint16(port.Port)) //nolint:gosec // The manifest bounds it.
				add(strings.Join([]string{"internal", m.environment, m.app, at.String()}, "/"), m.netns, at, port.Port)
			}
		}
		if port.Expose == "public" && port.Edge == "raw" {
			at := netip.AddrPortFrom(r.agent.PublicAddress, uint16(port.PublicPort)) //nolint:gosec // The manifest bounds it.
			add("public/"+at.String(), "", at, port.Port)
		}
	}
	slices.SortFunc(out, func(a, b proxy.Listener) int { return cmp.Compare(a.ID, b.ID) })
	return out
}
