package agent

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/network"
	"github.com/pinnacehq/pinnace/internal/proxy"
)

// config builds the proxy's configuration, and the virtual addresses of each environment in use here. Two
// instances of an app share a listener where their ports have the same number, whatever they listen on
// themselves; while a release changes the number, there are two listeners. It is called with mu held.
func (r *routes) config() (proxy.Config, map[string][]netip.Addr) {
	listeners := map[string]*proxy.Listener{}
	netns := map[string]string{}
	here := slices.SortedFunc(maps.Values(r.members), byInstance)
	for _, m := range here {
		netns[m.environment] = m.netns
	}
	elsewhere := r.elsewhere(netns)
	owners := map[string]string{}
	for _, m := range slices.Concat(here, elsewhere) {
		owner := m.environment + "/" + m.app
		for _, l := range r.listeners(m) {
			switch have := listeners[l.ID]; {
			case have == nil:
				listeners[l.ID], owners[l.ID] = &l, owner
			case have.Protocol != l.Protocol:
			case l.Protocol == proxy.SNI:
				have.Routes = withRoutes(have.Routes, l.Routes)
			case owners[l.ID] == owner:
				have.Backends = append(have.Backends, l.Backends...)
			}
		}
	}
	var cfg proxy.Config
	for _, id := range slices.Sorted(maps.Keys(listeners)) {
		cfg.Listeners = append(cfg.Listeners, *listeners[id])
	}
	r.peering(&cfg)
	virtual := map[string][]netip.Addr{}
	for _, env := range slices.Sorted(maps.Keys(netns)) {
		records, addresses := r.names(env, elsewhere)
		virtual[env] = addresses
		forward, clients := r.forwarding(env)
		cfg.DNS = append(cfg.DNS, proxy.DNS{
			Netns:     netns[env],
			Addresses: []netip.AddrPort{netip.AddrPortFrom(network.Gateway4, 53), netip.AddrPortFrom(network.Gateway6, 53)},
			Records:   records,
			Reverse:   []netip.Prefix{network.Subnet4, network.Virtual4, network.Subnet6, network.Virtual6},
			Forward:   forward,
			ForwardTo: clients,
		})
	}
	return cfg, virtual
}

// forwarding says for whom the environment's DNS asks elsewhere: for everybody, or, when there is an instance that must
// not reach the outside by that way either, for a list of the others.
func (r *routes) forwarding(env string) (all bool, clients []netip.Addr) {
	all = true
	for _, id := range slices.Sorted(maps.Keys(r.members)) {
		switch m := r.members[id]; {
		case m.environment != env:
		case m.egress == network.EgressNone:
			all = false
		default:
			for _, a := range []netip.Addr{m.address, m.address6} {
				if a.IsValid() {
					clients = append(clients, a)
				}
			}
		}
	}
	if all {
		return true, nil
	}
	return false, clients
}

func byInstance(a, b *member) int { return cmp.Compare(a.instance, b.instance) }

// names are the DNS records of an environment, and the virtual addresses of its apps and of its instances elsewhere.
func (r *routes) names(env string, elsewhere []*member) (map[string][]netip.Addr, []netip.Addr) {
	records := map[string][]netip.Addr{}
	var virtual []netip.Addr
	for _, app := range r.apps(env) {
		addrs := virtualAddresses(app)
		records[app.App+"."+proxy.Zone] = addrs
		virtual = append(virtual, addrs...)
	}
	holders := map[string]*member{}
	for _, m := range elsewhere {
		if m.environment == env && m.address.IsValid() && !slices.Contains(virtual, m.address) {
			virtual = append(virtual, m.address)
		}
	}
	for _, m := range slices.Concat(slices.Collect(maps.Values(r.members)), elsewhere) {
		if m.environment != env || !m.address.IsValid() {
			continue
		}
		name := ordinalName(m.app, m.ordinal)
		if held := holders[name]; held == nil || m.outranks(held) {
			holders[name] = m
			records[name] = []netip.Addr{m.address}
		}
	}
	return records, virtual
}

// outranks tells which of two members with the same ordinal has its name, as there are during a rollout: the
// one that gets connections, the newer one when both do.
func (m *member) outranks(other *member) bool {
	if active := m.gets() == routeActive; active != (other.gets() == routeActive) {
		return active
	}
	return m.joined > other.joined
}

func (r *routes) apps(env string) []*pinnacev1.AssignedApp {
	for _, e := range r.fleet.environments {
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

// slowStart is for how long an instance that comes to others is spared, so that it is not buried under the
// connections of all new clients while its caches are cold.
const slowStart = 10 * time.Second

// listeners are what one member's ports need, with the member as the only backend.
func (r *routes) listeners(m *member) []proxy.Listener {
	var out []proxy.Listener
	add := func(id, netns string, address netip.AddrPort, port manifest.Port) {
		l := proxy.Listener{
			ID: id, Netns: netns, Address: address, Protocol: port.Protocol, Backends: m.backends(port),
			SlowStartMS: int(slowStart.Milliseconds()),
		}
		if port.ProxyProtocol == manifest.ProxyProtocolV2 {
			// Whoever connects, the instance reads a header first.
			l.ProxyProtocol = proxy.ProxyV2
		}
		out = append(out, l)
	}
	for _, name := range slices.Sorted(maps.Keys(m.ports)) {
		port := m.ports[name]
		if port.Expose == manifest.ExposeNone || m.peer != "" && m.netns == "" {
			continue // but a route may lead there
		}
		if m.peer != "" && m.address.IsValid() {
			at := addrPort(m.address, port.Port)
			add(listenerID(port, "internal", m.environment, m.app, at.String()), m.netns, at, port)
		}
		for _, app := range r.apps(m.environment) {
			if app.App != m.app {
				continue
			}
			for _, addr := range virtualAddresses(app) {
				at := addrPort(addr, port.Port)
				add(listenerID(port, "internal", m.environment, m.app, at.String()), m.netns, at, port)
			}
		}
	}
	for _, p := range r.public(m) {
		if r.fleet.noIngress {
			break // other hosts lead here
		}
		add(listenerID(p.Port, "public", p.at.String()), "", p.at, p.Port)
		if len(p.names) > 0 {
			byName(&out[len(out)-1], m.environment+"/"+m.app+"/"+p.name, p.names)
		}
	}
	slices.SortFunc(out, func(a, b proxy.Listener) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// listenerID tells apart what listens at the same address over TCP and over UDP.
func listenerID(port manifest.Port, parts ...string) string {
	if port.Protocol == manifest.ProtocolUDP {
		parts = append(parts, manifest.ProtocolUDP)
	}
	return strings.Join(parts, "/")
}

// backends is the member as a backend at one of its ports, or nothing while it gets no connections.
func (m *member) backends(port manifest.Port) []proxy.Backend {
	b := proxy.Backend{ID: m.instance, Netns: m.netns, Address: addrPort(m.address, port.Port)}
	if m.peer != "" {
		b = m.remoteBackend(port)
	}
	switch m.gets() {
	case routeActive:
		b.State = proxy.Active
	case routeDraining:
		b.State = proxy.Draining
	default:
		return nil
	}
	return []proxy.Backend{b}
}

// publicPort is a port of a member that is reached from outside.
type publicPort struct {
	manifest.Port
	name  string
	at    netip.AddrPort // of this host
	names []string       // that it is told apart by from others at the same address
}

// public are the ports of a member that are reached from outside: where its environment says, and those of which it
// says nothing where their manifest says. It is called with mu held.
func (r *routes) public(m *member) []publicPort {
	var out []publicPort
	routed := map[string]bool{}
	for _, app := range r.apps(m.environment) {
		if app.App != m.app {
			continue
		}
		for _, route := range app.Routes {
			port, ok := m.ports[route.Port]
			addr, err := r.agent.PublicAddress, error(nil)
			if route.Address != "" {
				addr, err = netip.ParseAddr(route.Address)
			}
			if !ok || err != nil || route.PublicPort == 0 || route.PublicPort > 65535 {
				continue // a port of another release, or nowhere
			}
			routed[route.Port] = true
			p := publicPort{Port: port, name: route.Port, at: addrPort(addr, int(route.PublicPort))}
			if port.Edge == manifest.EdgeSNI {
				p.names = route.Names
			}
			out = append(out, p)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.ports)) {
		if port := m.ports[name]; isRawPublic(port) && !routed[name] {
			out = append(out, publicPort{Port: port, name: name, at: addrPort(r.agent.PublicAddress, port.PublicPort)})
		}
	}
	return out
}

// collides tells whether two ports cannot both be listened on, or told apart.
func (p publicPort) collides(o publicPort) bool {
	a, b := p.at.Addr(), o.at.Addr()
	if p.at == o.at && len(p.names) > 0 && len(o.names) > 0 {
		return slices.ContainsFunc(p.names, func(name string) bool { return slices.Contains(o.names, name) })
	}
	return p.Protocol == o.Protocol && p.at.Port() == o.at.Port() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}

// String is the port as people write it: "80" or "53 (udp)".
func (p publicPort) String() string {
	text := strconv.Itoa(int(p.at.Port()))
	if p.Protocol == manifest.ProtocolUDP {
		text += " (udp)"
	}
	return text
}

func isRawPublic(p manifest.Port) bool {
	return p.Expose == manifest.ExposePublic && p.Edge == manifest.EdgeRaw
}

func addrPort(addr netip.Addr, port int) netip.AddrPort {
	return netip.AddrPortFrom(addr, uint16(port))
}
